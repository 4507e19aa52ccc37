#!/usr/bin/env bash
# The pod of the Helm chart without Kubernetes: the volumes as a kubelet makes them, the init
# container and the daemon with the chart's confinement, and a probe from another container.
source "$(dirname "$0")/common.sh"

scratch=$(mktemp -d)
chmod 755 "$scratch"
name=evidenceos-pod-$$
host=evidenceos.default.svc
finish() {
    local status=$?
    ((status == 0)) || docker logs "$name" 2>&1 | tail -n 20 >&2 || true
    docker rm -f "$name" >/dev/null 2>&1 || true
    docker network rm "$name" >/dev/null 2>&1 || true
    umount "$scratch/keys" 2>/dev/null || true
    rm -rf "$scratch"
}
trap finish EXIT
docker network create "$name" >/dev/null

# --- volumes --------------------------------------------------------------------------------------

docker run --rm --network none -u "$(id -u):$(id -g)" -v "$scratch:/lab" -w /lab "$image" \
    lab init pki --san "$host" --san "$address" >/dev/null
key_id=$(basename "$scratch"/pki/keys/*.key .key)
write_claim "$scratch"

# A Secret with fsGroup: links through ..data to files root:65532 0440, whatever mode was asked for.
secret() { # name files…
    local at=$scratch/$1 file
    local version=..2026_01_01_00_00_00.$RANDOM$RANDOM
    mkdir -p "$at/$version"
    for file in "${@:2}"; do
        install -m 0440 -o root -g 65532 "$file" "$at/$version/"
        ln -sfn "..data/$(basename "$file")" "$at/$(basename "$file")"
    done
    chown -R root:65532 "$at"
    chmod 2755 "$at/$version"
    chmod 3777 "$at"
    ln -s "$version" "$at/..data_tmp"
    mv -T "$at/..data_tmp" "$at/..data"
}
secret key-secret "$scratch/pki/keys/$key_id.key"
secret tls "$scratch"/pki/certs/{server.crt,server.key,ca.crt}
# A ConfigMap.
mkdir "$scratch/policy"
install -m 0644 "$scratch/pki/certs/policy.toml" "$scratch/policy/"
# What the probe and the operator have.
install -d -o 65532 "$scratch/client"
install -m 0400 -o 65532 "$scratch"/pki/clients/operator/{ca.crt,client.crt,client.key} "$scratch/client/"

# emptyDir in memory: the kubelet's directory is root's, and cannot be changed by us.
mkdir "$scratch/keys"
empty_dir() {
    umount "$scratch/keys" 2>/dev/null || true
    mount -t tmpfs -o mode=3777,uid=0,gid=65532,size=1m tmpfs "$scratch/keys"
}

# --- containers -----------------------------------------------------------------------------------

confined=(--user 65532:65532 --read-only --cap-drop ALL --security-opt no-new-privileges:true)
init() {
    docker run --rm --network none "${confined[@]}" -v "$scratch/key-secret:/run/secrets/keys:ro" -v "$scratch/keys:/work" \
        "$image" keys import --from /run/secrets/keys --data-dir /work >"$scratch/init.log" 2>&1 ||
        fail "keys import: $(cat "$scratch/init.log")"
}
# As the chart sets it.
more=()
start() { # data directory, extraArgs…
    docker run -d --name "$name" --network "$name" --network-alias "$host" -p "$address::50051" "${confined[@]}" \
        --tmpfs /tmp:mode=1777,size=64m -v "$scratch/$1:/data" -v "$scratch/keys/keys:/data/keys:ro" \
        -v "$scratch/$1-anchor:/anchor" -e EVIDENCEOS_ANCHORS=/anchor/ -v "$scratch/tls:/etc/evidenceos/tls:ro" -v "$scratch/policy:/etc/evidenceos/policy:ro" \
        -e EVIDENCEOS_LISTEN=0.0.0.0:50051 -e EVIDENCEOS_PREFLIGHT_LISTEN=0.0.0.0:8081 -e EVIDENCEOS_METRICS_LISTEN=0.0.0.0:9464 \
        -e EVIDENCEOS_DATA_DIR=/data -e EVIDENCEOS_TLS_CERT=/etc/evidenceos/tls/server.crt \
        -e EVIDENCEOS_TLS_KEY=/etc/evidenceos/tls/server.key -e EVIDENCEOS_MTLS_CLIENT_CA=/etc/evidenceos/tls/ca.crt \
        -e EVIDENCEOS_REQUIRE_CLIENT_CERT=true -e EVIDENCEOS_PREFLIGHT_TLS=true \
        -e EVIDENCEOS_AUTH_POLICY=/etc/evidenceos/policy/policy.toml -e EVIDENCEOS_KEY_PROVIDER=file \
        -e EVIDENCEOS_DRAIN_DELAY=1s "${more[@]}" "$image" "${@:2}" >/dev/null
}
# Waits for a pod that is to end by itself; what it said is in $scratch/log.
ends_with() { # status
    local status
    status=$(timeout 60 docker wait "$name") || fail 'it does not end'
    docker logs "$name" >"$scratch/log" 2>&1
    docker rm "$name" >/dev/null
    [ "$status" = "$1" ] || fail "it ended with $status: $(cat "$scratch/log")"
}
# What the chart's README has the pod do.
runbook() { # name
    awk -v mark="<!-- test: $1 -->" '$0 == mark { on = 1 } on && /extraArgs/ { print; exit }' "$root/deploy/helm/evidenceos/README.md" |
        sed "s/.*extraArgs=\\[\"//; s/\"\\]'.*//; s/\",\"/\n/g; s,https://log.example.org/,/mirror,"
}
stop() {
    docker stop -t 60 "$name" >/dev/null
    [ "$(field "$name" '{{.State.ExitCode}}')" = 0 ] || fail "exit code $(field "$name" '{{.State.ExitCode}}')"
    docker rm "$name" >/dev/null
}
cli() {
    docker run --rm --network "$name" "${confined[@]}" -v "$scratch/client:/client:ro" -v "$scratch/labels.csv:/labels.csv:ro" \
        -e EVIDENCEOS_ENDPOINT="https://$host:50051" -e EVIDENCEOS_TLS_CA=/client/ca.crt --entrypoint evidenceos "$image" "$@"
}
operator=(--tls-cert /client/client.crt --tls-key /client/client.key)
probe() {
    cli "$@" probe --wait 60 --preflight "https://$host:8081" --metrics "http://$host:9464" >"$scratch/probe.log" 2>&1 ||
        fail "probe: $(cat "$scratch/probe.log")"
}
serial() {
    local port
    port=$(docker port "$name" 50051/tcp | sed -n 's/.*://p;1q')
    timeout 10 openssl s_client -connect "$address:$port" -servername "$host" </dev/null 2>/dev/null | openssl x509 -noout -serial
}
is_renewed() { [ "$(serial)" = "$renewed" ]; }

# --- both kinds of claims -------------------------------------------------------------------------

pod() { # directory owner mode
    local data=$1
    install -d "$scratch/$data" "$scratch/$data-anchor"
    chown "$2" "$scratch/$data" "$scratch/$data-anchor"
    chmod "$3" "$scratch/$data" "$scratch/$data-anchor"

    empty_dir
    init
    [ "$(stat -c '%a %u:%g' "$scratch/keys/keys")" = '700 65532:65532' ] ||
        [ "$(stat -c '%a %u:%g' "$scratch/keys/keys")" = '2700 65532:65532' ] || fail "keys: $(stat -c '%a %u:%g' "$scratch/keys/keys")"
    [ "$(stat -c '%a %u' "$scratch/keys/keys/$key_id.key")" = '600 65532' ] || fail 'the imported key'
    # An init container may run again.
    init
    start "$data"
    probe
    probe "${operator[@]}"
    grep -q 'serves log' "$scratch/probe.log" || fail "no call was made: $(cat "$scratch/probe.log")"
    passed "$data ($2 $3): keys imported twice, probed without and with a certificate"

    cli "${operator[@]}" holdout add /labels.csv --ref mine --p0 0.7 >/dev/null 2>&1 || fail 'no holdout'
    cli "${operator[@]}" log key >"$scratch/log.vkey"
    # Keys are in memory, never in the claim.
    [ -z "$(ls -A "$scratch/$data/keys")" ] || fail 'a signing key reached the claim'

    # Another pod of the StatefulSet: memory is empty again, the claim is there.
    stop
    empty_dir
    init
    start "$data"
    probe "${operator[@]}"
    cli "${operator[@]}" holdout show mine >/dev/null || fail 'the holdout is lost'
    [ "$(cli "${operator[@]}" log key)" = "$(cat "$scratch/log.vkey")" ] || fail 'another log'
    passed "$data: SIGTERM ends it with 0; the next pod has the log and the holdout"

    # Killed, and started again in the same pod.
    docker kill "$name" >/dev/null
    docker start "$name" >/dev/null
    probe "${operator[@]}"
    cli "${operator[@]}" holdout show mine >/dev/null || fail 'the holdout is lost'
    passed "$data: SIGKILL, and the container starts again"
}
pod claim-of-fsgroup root:65532 2775

# A renewed certificate comes by another ..data.
(
    cd "$scratch"
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -subj /CN=renewed -keyout renewed.key -out renewed.csr
    openssl x509 -req -in renewed.csr -CA pki/ca/ca.crt -CAkey pki/ca/ca.key -days 30 -out renewed.crt \
        -extfile <(printf 'extendedKeyUsage=serverAuth\nsubjectAltName=DNS:%s\n' "$host")
) >/dev/null 2>&1
renewed=$(openssl x509 -in "$scratch/renewed.crt" -noout -serial)
[ "$(serial)" != "$renewed" ] || fail 'renewed already'
mkdir "$scratch/new"
cp "$scratch/renewed.crt" "$scratch/new/server.crt"
cp "$scratch/renewed.key" "$scratch/new/server.key"
secret tls "$scratch"/new/server.{crt,key} "$scratch/pki/certs/ca.crt"
until_true 60 'the renewed certificate is served' is_renewed
probe "${operator[@]}"
passed 'a Secret that changes: the new certificate is served without a restart'
stop

# What a kubelet does to a claim whose owner is another (a restored snapshot): group bits for all.
chown -R :65532 "$scratch/claim-of-fsgroup"
chmod -R g+rw "$scratch/claim-of-fsgroup"
start claim-of-fsgroup
ends_with 1
grep -q 'fix-permissions\|chmod' "$scratch/log" || fail "secrets that the group can read: $(cat "$scratch/log")"
docker run --rm --network none "${confined[@]}" -v "$scratch/claim-of-fsgroup:/data" -v "$scratch/keys/keys:/data/keys" \
    "$image" keys fix-permissions >"$scratch/fix.log" 2>&1 || fail "keys fix-permissions: $(cat "$scratch/fix.log")"
start claim-of-fsgroup
probe "${operator[@]}"
stop
passed 'a claim whose secrets a kubelet opened to the group: refused, mended by keys fix-permissions'

# --- volumes that come back -----------------------------------------------------------------------

volume=claim-of-fsgroup
cp "$scratch/labels.csv" "$scratch/items.csv"
# An entry of the log.
add() { # name
    sed "s/^tumour/$1/" "$scratch/items.csv" >"$scratch/labels.csv"
    cli "${operator[@]}" holdout add /labels.csv --ref "$1" --p0 0.7 --fresh-items
}
grows() { # name
    add "$1" >"$scratch/grows.log" 2>&1 || fail "the log does not go on with $1: $(cat "$scratch/grows.log")"
}
entries() { cli "${operator[@]}" log entries; }
goes_on() { # as what
    start "$volume"
    probe "${operator[@]}"
    if docker logs "$name" 2>&1 | grep 'reads only'; then fail 'it asks something'; fi
    grows "$1"
    [ "$(cli "${operator[@]}" log key)" = "$(cat "$scratch/log.vkey")" ] || fail 'another log'
}
serves_reads_only() {
    start "$volume"
    probe "${operator[@]}"
    cli "${operator[@]}" holdout show mine >/dev/null || fail 'reads are not served'
    refused 'read-only' add held
    docker logs "$name" 2>&1 | grep 'serves reads only' >/dev/null || fail 'its first line does not say it'
}
told() { # name of what the README says
    local arguments
    mapfile -t arguments < <(runbook "$1")
    ((${#arguments[@]} > 3)) || fail "the chart's README has no command \"$1\""
    start "$volume" "${arguments[@]}"
    ends_with 0
    cp "$scratch/log" "$scratch/told"
    # A cluster starts what has ended again.
    start "$volume" "${arguments[@]}"
    ends_with 1
}

# A snapshot of the data alone comes back, and the anchor knows of more.
cp -a "$scratch/$volume" "$scratch/snapshot"
goes_on after-the-snapshot
size=$(entries | wc -l)
stop
mv "$scratch/$volume" "$scratch/lost"
cp -a "$scratch/snapshot" "$scratch/$volume"
serves_reads_only
docker logs "$name" 2>&1 | grep -F "anchor /anchor remembers $size entries" >/dev/null || fail "it says: $(docker logs "$name" 2>&1)"
stop
more=(-v "$scratch/lost/log:/mirror:ro")
told recover
grep -q 'recovered 1 entries' "$scratch/told" || fail "it says: $(cat "$scratch/told")"
more=()
goes_on after-recover
stop
passed 'a snapshot beside a newer anchor: reads are served; by the README'\''s command it is recovered, and the log goes on'

# The anchor's volume is lost.
find "$scratch/$volume-anchor" -mindepth 1 -delete
serves_reads_only
stop
told continue
goes_on after-continue
entries | grep log_continued >/dev/null || fail 'the statement is no entry'
stop
passed 'a volume without its anchor: reads are served until the README'\''s command says what happened, which is an entry'

# Both volumes, elsewhere.
mv "$scratch/$volume" "$scratch/moved"
mv "$scratch/$volume-anchor" "$scratch/moved-anchor"
volume=moved
goes_on after-the-move
stop
passed 'both volumes moved: nothing is asked, and the log goes on'

pod claim-of-local-path root:root 0777
stop
