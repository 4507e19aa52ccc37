#!/usr/bin/env bash
# Fuzzes every target for so many seconds, as many targets at once as there are cores, and prints what each executed.
# It fails if a target finds something; the input is kept in fuzz/artifacts. docs/testing.md describes the targets.
#
#   tests/fuzz.sh SECONDS
#
# FUZZ_TARGETS chooses targets, FUZZ_CORPUS is where corpora grow (fuzz/corpus).
set -euo pipefail
cd "$(dirname "$0")/.."

seconds=$1
corpora=${FUZZ_CORPUS:-fuzz/corpus}
logs=$(mktemp -d)
trap 'rm -rf "$logs"' EXIT
# cargo-fuzz needs flags of a nightly compiler.
export RUSTC_BOOTSTRAP=1

command -v cargo-fuzz >/dev/null || cargo install cargo-fuzz --locked --quiet
read -ra targets <<<"${FUZZ_TARGETS:-$(cargo fuzz list | tr '\n' ' ')}"
# The programs are started without cargo, which would build them again if a source changes in between.
cargo fuzz build
programs=${CARGO_TARGET_DIR:-fuzz/target}/$(rustc -vV | sed -n 's/^host: //p')/release
# As cargo-fuzz sets it.
export ASAN_OPTIONS=detect_odr_violation=0
export corpora logs programs seconds

one() {
    local target=$1 log=$logs/$1 ended=0
    mkdir -p "$corpora/$target" "fuzz/artifacts/$target"
    # An input of 16 KiB makes no allocation of more than 64 MiB, and none takes 10 seconds.
    "$programs/$target" -max_total_time="$seconds" -max_len=16384 -timeout=10 -rss_limit_mb=2048 -malloc_limit_mb=64 \
        -artifact_prefix="fuzz/artifacts/$target/" -print_final_stats=1 \
        "$corpora/$target" "fuzz/seeds/$target" >"$log" 2>&1 || ended=$?
    if [ "$ended" -ne 0 ]; then
        tail -n 60 "$log"
        printf 'FAILED: %s found something\n' "$target"
        return 1
    fi
    local executed covered
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    covered=$(sed -n 's/.*cov: \([0-9]*\).*/\1/p' "$log" | tail -n 1)
    printf '%s: %d executions, %d edges\n' "$target" "$executed" "$covered"
}
export -f one
printf '%s\n' "${targets[@]}" | xargs -P "$(nproc)" -I '{}' bash -euo pipefail -c 'one {}'
