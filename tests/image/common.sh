# What the tests of the image share. Sourced; not a test.
# shellcheck shell=bash
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
image=evidenceos:local
# A loopback address of its own, so that a lab that runs already keeps its ports.
address=127.0.0.77

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
passed() { printf '  ok  %s\n' "$*"; }

# Asks until the answer is yes. The pause is a read that nobody answers.
until_true() { # seconds what command…
    local deadline=$((SECONDS + $1)) what=$2
    shift 2
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "not within its time: $what"
        read -rt 0.2 <> <(:) || true
    done
}

# That a command fails, and says this.
refused() { # text command…
    local text=$1 said
    shift
    said=$("$@" 2>&1) && fail "was not refused: $*"
    grep -qF -- "$text" <<<"$said" || fail "$* does not say \"$text\": $said"
}

docker info >/dev/null 2>&1 || fail 'no Docker engine answers; tests/image/run.sh can start one'
[ "$(id -u)" = 0 ] || fail 'run it as root: files in the tests belong to other users'

if docker compose version >/dev/null 2>&1; then
    compose=(docker compose)
else
    compose=(docker-compose)
fi
compose() { "${compose[@]}" "$@"; }

# The command out of the image, for this machine.
take_binary() { # where to
    local container
    container=$(docker create "$image")
    docker cp -q "$container:/usr/local/bin/evidenceos" "$1" 2>/dev/null ||
        docker cp "$container:/usr/local/bin/evidenceos" "$1" >/dev/null
    docker rm "$container" >/dev/null
}

field() { # container template
    docker inspect -f "$2" "$1"
}
is_healthy() { [ "$(field "$1" '{{.State.Health.Status}}')" = healthy ]; }

# shellcheck source=tests/claim.sh
source "$root/tests/claim.sh"
