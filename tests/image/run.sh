#!/usr/bin/env bash
# Builds the image once, as the guide says, and tests it: by itself, in the Compose lab, as a pod.
#
# It uses the Docker engine that answers. Where none does, CI_DOCKER_UP is a command that starts
# one and prints what a shell must set to reach it (DOCKER_HOST=…).
# CI_DOCKER_BUILD: more options for `docker build`.
set -euo pipefail
cd "$(dirname "$0")/../.."

if ! docker info >/dev/null 2>&1; then
    if [ -z "${CI_DOCKER_UP:-}" ]; then
        echo 'FAILED: no Docker engine answers, and CI_DOCKER_UP does not say how to start one' >&2
        exit 1
    fi
    settings=$(bash -c "$CI_DOCKER_UP")
    eval "$settings"
fi

step() {
    local started=$SECONDS
    printf '\n--- image: %s\n' "$1"
    shift
    "$@"
    printf -- '--- %d s\n' $((SECONDS - started))
}

# With the host's network, since an engine may have no bridge for builds.
build() {
    # shellcheck disable=SC2086
    docker build --network=host ${CI_DOCKER_BUILD:-} -t evidenceos:local . >"$log" 2>&1 || {
        tail -n 40 "$log" >&2
        exit 1
    }
}
log=$(mktemp)
trap 'rm -f "$log"' EXIT

step 'docker build -t evidenceos:local .' build
for test in image compose pod; do
    step "$test.sh" bash "tests/image/$test.sh"
done
