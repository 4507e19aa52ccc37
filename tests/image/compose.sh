#!/usr/bin/env bash
# The Compose lab of docs/deployment-guide.md, on a real engine, with the project's own file and the
# guide's own commands: first with materials of `lab init`, then with some made by hand.
#
# What is not the guide's: the lab's address (so that another lab keeps its ports), the host's
# network for builds (an engine may have no bridge), and `docker-compose` where there is no plugin.
source "$(dirname "$0")/common.sh"

# Neither root nor the 1000 that the file assumes.
user=54321
scratch=$(mktemp -d)
chmod 755 "$scratch"
lab=
attached=
finish() {
    local status=$?
    # The whole of `up`, which may still build.
    [ -z "$attached" ] || { kill -- "-$attached" && wait "$attached"; } 2>/dev/null || true
    if [ -n "$lab" ]; then
        ((status == 0)) || { tail -n 20 "$scratch/up.log"; compose logs --tail 30; } >&2 || true
        compose down -v --remove-orphans >/dev/null 2>&1 || true
    fi
    cd /
    rm -rf "$scratch"
}
trap finish EXIT

# --- the guide's commands -----------------------------------------------------------------------

guide=$root/docs/deployment-guide.md
block() { # name
    awk -v mark="<!-- test: $1 -->" '
        $0 == mark { found = 1; next }
        found && /^```/ { if (on) exit; on = 1; next }
        on' "$guide" |
        sed "s/localhost:\(50051\|8081\|9464\)/$address:\1/g; s/lab init ops/& --san $address/; s/IP:127.0.0.1/&,IP:$address/"
}
[ "$(block build)" = 'docker build -t evidenceos:local .' ] || fail 'tests/image/run.sh builds otherwise than the guide'
# As they stand. The user who runs them is not root, and Compose is called as it is called here.
stage="id() { echo $user; }
mkdir() { command mkdir \"\$@\" && chown $user \"\$@\"; }
docker() { case \$1 in compose) shift && command ${compose[*]} \"\$@\" ;; *) command docker \"\$@\" ;; esac; }"
guide() { # block
    local text
    text=$(block "$1")
    [ -n "$text" ] || fail "the guide has no commands \"$1\""
    bash -euo pipefail -c "$stage
$text"
}
guide_as_user() { # block
    block "$1" | setpriv --reuid $user --regid $user --clear-groups bash -euo pipefail 2>"$scratch/said" ||
        fail "$1: $(cat "$scratch/said")"
}

# A fresh clone that belongs to the user.
clone() { # name
    mkdir "$scratch/$1"
    git -C "$root" ls-files -z --cached --others --exclude-standard |
        tar -C "$root" --null -T - -c --ignore-failed-read 2>/dev/null | tar -C "$scratch/$1" -xp
    # What the image learns its commit from.
    if [ -d "$root/.git" ]; then
        mkdir "$scratch/$1/.git"
        for part in HEAD packed-refs refs; do
            [ ! -e "$root/.git/$part" ] || cp -r "$root/.git/$part" "$scratch/$1/.git/"
        done
    fi
    echo "EVIDENCEOS_BIND=$address" >"$scratch/$1/.env"
    chown -R $user:$user "$scratch/$1"
}
# Works in a clone from now on.
enter() { # name
    cd "$scratch/$1"
    printf 'services: {evidenceos: {build: {network: host}}}\n' >"$scratch/override.yml"
    export COMPOSE_FILE=docker-compose.yml:$scratch/override.yml COMPOSE_PROJECT_NAME=evidenceos-$1-$$
    lab=$1
}
container() { compose ps -q evidenceos; }
serves() {
    local id
    id=$(container) && [ -n "$id" ] && is_healthy "$id"
}
serves_again() { serves && [ "$(field "$(container)" '{{.RestartCount}}')" = 1 ]; }
as() { # role command…
    ./evidenceos --endpoint "https://$address:50051" --profile "ops/clients/$1/profile.toml" "${@:2}"
}
# With the files of the second part.
by() { # name command…
    ./evidenceos --endpoint "https://$address:50051" --tls-ca ops/certs/ca.crt --tls-cert "ops/clients/$1.crt" \
        --tls-key "ops/clients/$1.key" "${@:2}"
}
web() { curl -sS --cacert ops/certs/ca.crt "$@"; }

# In the foreground, as the guide has it, in a process group of its own.
up_attached() {
    set -m
    guide up >"$scratch/up.log" 2>&1 &
    attached=$!
    set +m
}
detach() {
    wait "$attached" || true
    attached=
}
up() { # what is to serve
    compose up -d >/dev/null 2>&1
    until_true 120 "$1" serves
}
said() { compose logs --no-color >"$scratch/said" 2>&1 && grep -qF -- "$1" "$scratch/said"; }
# An entry of the log.
add() { # name
    sed "s/^tumour/$1/" labels.csv >other-labels.csv
    as operator holdout add other-labels.csv --ref "$1" --p0 0.7 --fresh-items
}
grows() { # name
    add "$1" >"$scratch/grows.log" 2>&1 || fail "the log does not go on with $1: $(cat "$scratch/grows.log")"
}
receipts_verify() { # receipts…
    local receipt
    [ "$(as submitter log key)" = "$(cat log.vkey)" ] || fail 'another log'
    rm -rf mirror
    as submitter log entries -o mirror >/dev/null
    for receipt in "$@"; do
        ./evidenceos verify "$receipt" --key log.vkey --log mirror >"$scratch/verified" 2>&1 || fail "$receipt: $(cat "$scratch/verified")"
    done
}
# The service in the foreground, where it is not going to serve.
once() { timeout 60 "${compose[@]}" run --rm evidenceos "$@"; }

# --- both Composes ------------------------------------------------------------------------------

if [ "${compose[*]}" = docker-compose ] && command -v go >/dev/null; then
    # The library with which Compose 2 reads the file.
    GOBIN=$scratch/bin go install github.com/compose-spec/compose-go/v2/cmd@v2.16.2 2>"$scratch/go.log" || fail "$(cat "$scratch/go.log")"
    "$scratch/bin/cmd" "$root/docker-compose.yml" >/dev/null || fail 'Compose 2 does not read docker-compose.yml'
    passed 'Compose 2 reads the file too'
fi

# --- materials of lab init ----------------------------------------------------------------------

clone by-lab
enter by-lab
guide lab >/dev/null
# The profiles name this machine; this lab has an address of its own.
for profile in ops/clients/*/profile.toml; do
    sed -i "s|https://localhost:50051|https://$address:50051|" "$profile"
    chown $user:$user "$profile"
done
for variable in EVIDENCEOS_UID=$user EVIDENCEOS_GID=$user EVIDENCEOS_AUTH_POLICY=/certs/policy.toml; do
    grep -qx "$variable" .env || fail "$variable is not in .env: $(cat .env)"
done
[ "$(stat -c '%a %u' ops/keys/*.key | sort -u)" = "600 $user" ] || fail 'the signing key has another mode or owner'
[ -z "$(find ops .env ! -user $user)" ] || fail "not the user's: $(find ops .env ! -user $user)"
passed 'lab init by the image: materials and .env belong to the user'

compose config -q || fail 'docker-compose.yml'
up_attached
until_true 300 'the lab serves' serves
guide cli >/dev/null
passed 'docker compose up --build: healthy'

id=$(container)
[ "$(field "$id" '{{.HostConfig.ReadonlyRootfs}} {{.HostConfig.CapDrop}} {{.HostConfig.SecurityOpt}} {{.Config.User}}')" = \
    "true [ALL] [no-new-privileges:true] $user:$user" ] || fail 'the container is not confined'
guide use >"$scratch/used" || fail "$(cat "$scratch/used")"
# A busy disk may take longer than the decision may wait for it; that is answered UNAVAILABLE.
allowed() { guide use | grep '"decision":"ALLOW"' >/dev/null; }
until_true 60 'preflight allows the call' allowed
passed 'gRPC, preflight and metrics answer from the host'

refused 'client certificate' ./evidenceos --endpoint "https://$address:50051" --tls-ca ops/certs/ca.crt holdout list
status=$(web -o /dev/null -w '%{http_code}' -H 'x-request-id: 2' -d '{"toolName":"ls","params":{}}' "https://$address:8081/v1/preflight_tool_call")
[ "$status" = 401 ] || fail "preflight without a certificate: $status"
[ "$(web -o /dev/null -w '%{http_code}' "https://$address:8081/readyz")" = 200 ] || fail '/readyz wants a certificate'
if curl -sS -m 5 -o /dev/null "http://$address:8081/readyz" 2>/dev/null; then fail 'preflight answers without TLS'; fi
curl -sSf "http://$address:9464/metrics" >"$scratch/metrics"
grep -q '^evidenceos_' "$scratch/metrics" || fail 'no metrics'
passed 'without a certificate: gRPC and preflight refuse, probes and metrics are served'

write_claim .
as operator holdout add labels.csv --ref mine --p0 0.7 >/dev/null 2>&1
./evidenceos claim pack predictions.csv -o claim.wasm >/dev/null
as submitter claim run claim.wasm --holdout mine --require-certified --receipt receipt.json --json >result.json 2>/dev/null ||
    fail "not certified: $(cat result.json)"
claim=$(grep -o '"claim_id": *"[0-9a-f]*"' result.json | cut -d'"' -f4)
[ -n "$claim" ] || fail "no claim id: $(cat result.json)"
as submitter log key >log.vkey
./evidenceos verify receipt.json --key log.vkey >/dev/null
passed 'a certified claim over mTLS; its receipt verifies offline'

guide exec 2>&1 | grep -F "$(basename ops/keys/*.key .key)" >/dev/null || fail 'keys list in the container'
passed 'another command in the container'

# --- killed -------------------------------------------------------------------------------------

as submitter log entries >before.jsonl
as submitter account show >account.before
kill -KILL "$(field "$id" '{{.State.Pid}}')"
until_true 120 'it is started again by Docker' serves_again
as submitter claim show "$claim" | grep certified >/dev/null || fail 'the claim is lost'
as submitter account show | diff account.before - || fail 'the account is another'
[ "$(as submitter log key)" = "$(cat log.vkey)" ] || fail 'another log'
as submitter log entries >after.jsonl
cmp -n "$(stat -c %s before.jsonl)" before.jsonl after.jsonl || fail 'the log did not only grow'
as submitter log entries -o mirror >/dev/null
./evidenceos verify receipt.json --key log.vkey --log mirror >/dev/null || fail 'the receipt does not verify in the log'
# Another question, by one prediction: the same one again would be a duplicate of the first.
sed '$s/0$/x/; $s/1$/0/; $s/x$/1/' predictions.csv >others.csv
cmp -s predictions.csv others.csv && fail 'the second claim is the first'
./evidenceos claim pack others.csv -o other.wasm >/dev/null
as submitter claim run other.wasm --holdout mine --name second --require-certified >second.log 2>&1 || fail "no claim after it: $(cat second.log)"
passed 'SIGKILL: Docker starts it again, nothing is lost, the log only grew'

compose stop >/dev/null 2>&1
id=$(compose ps -aq evidenceos 2>/dev/null || compose ps -q evidenceos)
[ "$(field "$id" '{{.State.ExitCode}}')" = 0 ] || fail "stop: exit code $(field "$id" '{{.State.ExitCode}}')"
detach
compose down >/dev/null 2>&1
[ -z "$(docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME")" ] || fail 'down left a container'
[ -z "$(find ops ! -user $user ! -path ops/data/keys)" ] || fail "not the user's: $(find ops ! -user $user)"
[ -s ops/data/evidenceos.db ] || fail 'the data is gone'
guide backup >"$scratch/backup.log" 2>&1 || fail "$(cat "$scratch/backup.log")"
[ -s backup/backup.json ] || fail 'no backup'
passed 'stop: exit code 0; down leaves the data; a backup of it'

up 'it serves after down'
as submitter claim show "$claim" | grep certified >/dev/null || fail 'the claim is lost'
# What the backup does not have; by another principal, as the first has used its share up.
sed '1s/0$/x/; 1s/1$/0/; 1s/x$/1/' predictions.csv >third.csv
cmp -s predictions.csv third.csv && fail 'the third claim is the first'
./evidenceos claim pack third.csv -o third.wasm >/dev/null
as operator claim run third.wasm --holdout mine --name third --receipt third.json >third.log 2>&1 || fail "the third claim: $(cat third.log)"
receipts_verify receipt.json third.json
size=$(as submitter log entries | wc -l)
passed 'up after down: the claim is there, and the log goes on'

# --- a copy of the past, beside an anchor that knows more -------------------------------------------

guide restore >"$scratch/restore.log" 2>&1 || fail "restore: $(cat "$scratch/restore.log")"
grep -q 'the directory is read-only' "$scratch/restore.log" || fail "restore does not say it: $(cat "$scratch/restore.log")"
up 'the copy serves reads'
said 'serves reads only' || fail "its first line: $(cat "$scratch/said")"
said "anchor /anchor remembers $size entries" || fail "it says: $(cat "$scratch/said")"
said 'log recover' || fail 'it does not say what to do'
as submitter claim show "$claim" | grep certified >/dev/null || fail 'reads are not served'
refused 'read-only' add held
compose down >/dev/null 2>&1
refused "remembers $size entries" once log continue --nothing-was-signed-since --because hope
guide recover >"$scratch/recover.log" 2>&1 || fail "recover: $(cat "$scratch/recover.log")"
grep -q 'recovered 1 entries' "$scratch/recover.log" || fail "recover: $(cat "$scratch/recover.log")"
up 'it serves after log recover'
receipts_verify receipt.json third.json
grows after-recover
rm -r ops/data-lost
passed 'an older backup: reads are served, nothing can be stated against the anchor; log recover, and the log goes on'

# --- moved with its anchor ----------------------------------------------------------------------------

clone moved
guide move >"$scratch/move.log" 2>&1 || fail "move: $(cat "$scratch/move.log")"
cp -a evidenceos log.vkey labels.csv receipt.json third.json "$scratch/moved/"
enter moved
up 'the moved lab serves'
said 'reads only' && fail "it asks something: $(cat "$scratch/said")"
grows after-move
as submitter claim show "$claim" | grep certified >/dev/null || fail 'the claim is lost'
receipts_verify receipt.json third.json
passed 'moved with its anchor: nothing is asked, the log goes on, receipts verify'

compose down >/dev/null 2>&1
guide backup >"$scratch/backup.log" 2>&1 || fail "$(cat "$scratch/backup.log")"
guide restore >"$scratch/restore.log" 2>&1 || fail "restore: $(cat "$scratch/restore.log")"
up 'the restored lab serves'
said 'reads only' && fail "it asks something: $(cat "$scratch/said")"
grows after-restore
receipts_verify receipt.json third.json
passed 'a backup beside an anchor that remembers exactly it: nothing is asked'

# --- a copy of the past, and no anchor ------------------------------------------------------------------

compose down >/dev/null 2>&1
rm -r backup ops/data-lost
guide backup >"$scratch/backup.log" 2>&1 || fail "$(cat "$scratch/backup.log")"
rm -r ops/anchor
mkdir ops/anchor
chown $user:$user ops/anchor
guide restore >"$scratch/restore.log" 2>&1 || fail "restore: $(cat "$scratch/restore.log")"
up 'the restored lab serves reads'
said 'serves reads only' || fail "its first line: $(cat "$scratch/said")"
as operator server info | grep 'log continue' >/dev/null || fail 'server info does not say what to do'
as submitter claim show "$claim" | grep certified >/dev/null || fail 'reads are not served'
refused 'read-only' add held
guide continue >"$scratch/continue.log" 2>&1 || fail "continue: $(cat "$scratch/continue.log")"
up 'it serves after log continue'
grows after-continue
as submitter log entries | grep log_continued | grep -F 'the disk died right after this backup' >/dev/null || fail 'the statement is no entry'
receipts_verify receipt.json third.json
compose down >/dev/null 2>&1
passed 'a backup without its anchor: reads are served until the operator says what happened, which is an entry'

# --- what is wrong is said ----------------------------------------------------------------------

mv ops/certs/server.crt "$scratch/server.crt"
refused '/certs/server.crt' once
mv "$scratch/server.crt" ops/certs/
key=$(echo ops/keys/*.key)
chmod 640 "$key"
refused 'chmod' once
refused "/data/keys/$(basename "$key")" once
chmod 600 "$key"
chown root ops/certs/server.key
refused '/certs/server.key' once
refused "$user" once
chown $user ops/certs/server.key
passed 'a file that is missing, a key that is open to the group, a file of another owner: said with path and user'

# --- by hand ------------------------------------------------------------------------------------

cp evidenceos "$scratch/evidenceos"
clone by-hand
enter by-hand
cp "$scratch/evidenceos" .
guide_as_user openssl
up_attached
until_true 120 'the lab of hand-made materials serves' serves
write_claim .
refused 'operator' by olga holdout add labels.csv --ref mine --p0 0.7
by alice holdout list >/dev/null
passed 'materials by OpenSSL: whoever has a certificate is a submitter, nobody an operator'

guide_as_user policy
compose up -d >/dev/null 2>&1
until_true 120 'the lab with a policy serves' serves
until_true 60 'the guide'\''s operator is one' by olga holdout add labels.csv --ref mine --p0 0.7
guide by-option | grep mine >/dev/null || fail 'the holdout is not listed'
./evidenceos claim pack predictions.csv -o claim.wasm >/dev/null
by alice claim run claim.wasm --holdout mine --require-certified --receipt receipt.json >/dev/null 2>&1 || fail 'not certified'
by alice log key >log.vkey
./evidenceos verify receipt.json --key log.vkey >/dev/null
refused 'operator role' by alice holdout retire mine --yes
passed 'with the guide'\''s policy: an operator, and a certified claim'
compose down >/dev/null 2>&1
detach
