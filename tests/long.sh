#!/usr/bin/env bash
# A long campaign by its name: what CI plays in small, or not at all. docs/testing.md says what each
# looks for.
#
#   tests/long.sh sim [SEEDS]          the simulator, 100,000 seeds
#   tests/long.sh crash [ROUNDS]       200 rounds of load, death and restart
#   tests/long.sh power [CUTS]         500 power cuts
#   tests/long.sh mutants [ARGUMENT…]  every mutant of cargo-mutants in what decides verdicts, as
#                                      tests/mutants/campaign.py plays them (--help)
#   tests/long.sh fuzz [SECONDS]       600 seconds of each fuzz target, as many targets at once as there are cores;
#                                      FUZZ_TARGETS="note tile" chooses targets, FUZZ_CORPUS is a directory of
#                                      corpora that grow (fuzz/corpus)
#   tests/long.sh attacks [ARGUMENT…]  one caller at its worst, and many strangers, beside an honest one, as
#                                      tests/attacks/attacks.py plays them (--help)
set -euo pipefail
cd "$(dirname "$0")/.."

name=${1:-}
shift || true
case $name in
sim)
    EVIDENCEOS_SIM_SEEDS=${1:-100000} cargo test --release --locked -p evidenceos-driver --test driver simulation
    ;;
crash)
    cargo run --locked -p evidenceos-crash -- rounds "${1:-200}"
    ;;
power)
    cargo run --locked -p evidenceos-crash -- power "${1:-500}"
    ;;
mutants)
    command -v cargo-mutants >/dev/null || cargo install cargo-mutants --locked
    tests/mutants/campaign.py "$@"
    ;;
attacks)
    cargo build --release --workspace --locked
    tests/attacks/run.sh "${CARGO_TARGET_DIR:-target}/release/evidenceos-daemon" "$@"
    ;;
fuzz)
    tests/fuzz.sh "${1:-600}"
    ;;
*)
    sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0" >&2
    exit 64
    ;;
esac
