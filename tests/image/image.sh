#!/usr/bin/env bash
# The image by itself: what is in it, how large it is, and that it runs as the Dockerfile promises.
source "$(dirname "$0")/common.sh"

scratch=$(mktemp -d)
container=evidenceos-image-$$
finish() {
    local status=$?
    ((status == 0)) || docker logs "$container" 2>&1 | tail -n 20 >&2 || true
    docker rm -fv "$container" >/dev/null 2>&1 || true
    docker volume rm "$container" "$container-anchor" >/dev/null 2>&1 || true
    rm -rf "$scratch"
}
trap finish EXIT

# --- what it says of itself -------------------------------------------------------------------

version=$(awk -F'"' '/^\[workspace.package\]/ { on = 1 } on && /^version/ { print $2; exit }' "$root/Cargo.toml")
label() { field "$image" "{{index .Config.Labels \"org.opencontainers.image.$1\"}}"; }
[ "$(label version)" = "$version" ] || fail "its label says version $(label version), Cargo.toml $version"
[ "$(label licenses)" = Apache-2.0 ] || fail 'no licence'
for name in title description revision; do
    [ -n "$(label $name)" ] || fail "no label $name"
done
[ "$(field "$image" '{{.Config.User}}')" = 65532:65532 ] || fail 'another user'
[ "$(field "$image" '{{len .Config.Volumes}}')" = 0 ] || fail 'it has a VOLUME'
[ "$(field "$image" '{{json .Config.Entrypoint}}')" = '["/usr/local/bin/evidenceos-daemon"]' ] || fail 'another entry point'
case $(field "$image" '{{.Config.StopSignal}}') in
'' | SIGTERM | '<no value>') ;;
*) fail 'another stop signal' ;;
esac
ports=$(field "$image" '{{range $port, $_ := .Config.ExposedPorts}}{{$port}} {{end}}')
[ "$ports" = '50051/tcp 8081/tcp 9464/tcp ' ] || fail "its ports are $ports"
# No credential can hide in it.
if grep -iE 'token|secret|hmac|password' <<<"$(field "$image" '{{json .Config.Env}}')"; then fail 'a credential'; fi
passed "labels, user, ports, no volume; version $version"

# Our layers: what the COPY lines put over the base.
sizes=$(docker history --no-trunc --human=false --format '{{.Size}} {{.CreatedBy}}' "$image" |
    grep -E 'COPY .* (/usr/local/(bin|share)|/data)' | cut -d' ' -f1)
[ "$(wc -l <<<"$sizes")" = 3 ] || fail "layers: $sizes"
size=$(awk '{ sum += $1 } END { print sum }' <<<"$sizes")
((size <= 37000000)) || fail "our layers have $size bytes, more than 37 MB"
passed "our layers: $size bytes"

# --- what is in it ----------------------------------------------------------------------------

docker create --name "$container" "$image" >/dev/null
docker export "$container" | tar --numeric-owner -tvf - >"$scratch/list"
docker rm "$container" >/dev/null
grep -qE ' usr/local/bin/evidenceos-daemon -> evidenceos$' "$scratch/list" || fail 'evidenceos-daemon is no link to evidenceos'
[ "$(grep -c ' usr/local/bin/.' "$scratch/list")" = 2 ] || fail 'more than one program'
grep -qE '^drwx.* 65532/65532 .* data/$' "$scratch/list" || fail "/data: $(grep ' data/' "$scratch/list")"
if grep -E ' (usr/)?bin/(ba)?sh$' "$scratch/list"; then fail 'it has a shell'; fi
for page in man/man1/evidenceos.1 man/man1/evidenceos-claim-run.1 bash-completion/completions/evidenceos{,-daemon}; do
    grep -qE "^-rw-r--r-- 0/0 .* usr/local/share/$page\$" "$scratch/list" || fail "no $page"
done
passed 'one program under two names, no shell, /data is its user'\''s; manual pages and completions'

take_binary "$scratch/evidenceos"
for text in EVIDENCEOS_FAILPOINT "$root/" "$HOME/"; do
    if grep -qaF -- "$text" "$scratch/evidenceos"; then fail "\"$text\" is in the program"; fi
done
passed 'no failpoints, no paths of this machine in the program'

# --- how it runs ------------------------------------------------------------------------------

run() { docker run --rm --network none "$@"; }
# The commit is that of the checkout, if it is one.
told=$version
if commit=$(git -C "$root" rev-parse HEAD 2>/dev/null) && [ -d "$root/.git" ]; then told="$version (${commit:0:12})"; fi
[ "$(run "$image" --version)" = "evidenceos-daemon $told" ] || fail "--version: $(run "$image" --version), not $told"
[ "$(run --entrypoint evidenceos "$image" --version)" = "evidenceos $told" ] || fail 'evidenceos --version'
run "$image" lab init --help | grep 'evidenceos lab init' >/dev/null || fail 'the daemon does not hand lab to the CLI'
if run "$image" healthcheck >/dev/null 2>&1; then fail 'healthcheck finds a daemon where none is'; fi
passed 'both names; healthcheck fails where no daemon is'

# Fresh volumes for the data and the anchor, and nothing else that could be written.
docker run -d --name "$container" --network none --read-only --cap-drop ALL \
    --security-opt no-new-privileges:true --tmpfs /tmp --health-interval 1s \
    -v "$container:/data" -v "$container-anchor:/anchor" "$image" >/dev/null
until_true 60 'healthy' is_healthy "$container"
[ "$(docker top "$container" -o pid,args | awk 'NR == 2 { print $1 }')" = "$(field "$container" '{{.State.Pid}}')" ] ||
    fail 'the daemon is not the first process'
# Beside it only children of its own, which run guests, and at times the healthcheck.
pid=$(field "$container" '{{.State.Pid}}')
others=$(docker top "$container" -o pid,ppid,args | awk -v pid="$pid" 'NR > 1 && $1 != pid && !/ healthcheck/')
[ -n "$others" ] || fail 'no process that runs guests'
if awk -v pid="$pid" '$2 != pid || !/ sandbox-child /' <<<"$others" | grep .; then fail 'another process'; fi
docker exec "$container" evidenceos server info >"$scratch/info" || fail 'the CLI in the container'
grep -q '^guests .*seccomp on' "$scratch/info" || fail "guests without a filter of system calls: $(cat "$scratch/info")"
docker exec "$container" evidenceos server info --json | grep -q 'no anchor' && fail 'the image has no anchor'
passed 'a read-only root, no capabilities, fresh volumes: healthy'

docker stop -t 60 "$container" >/dev/null
[ "$(field "$container" '{{.State.ExitCode}}')" = 0 ] || fail "SIGTERM: exit code $(field "$container" '{{.State.ExitCode}}')"
docker logs "$container" >"$scratch/log" 2>&1
docker start "$container" >/dev/null
until_true 60 'healthy again' is_healthy "$container"
passed 'SIGTERM to the first process: exit code 0; it starts again'
