#!/usr/bin/env bash
# Looks for modules that compile dearly, with each line of arguments that docs/testing.md has, and fails if one takes
# more memory than the limit there. Built beside the program, so that dependencies have the features that they have in it.
set -euo pipefail
cd "$(dirname "$0")/.."
cargo build --release --locked -p evidenceos -p evidenceos-sandbox --example shapes
sed -n 's/^cargo run --release -p evidenceos-sandbox --example shapes -- //p' docs/testing.md | {
    lines=0
    while read -r -a arguments; do
        printf '$ shapes %s\n' "${arguments[*]}"
        # 1 says that one took too much memory or time; only the first is the same on every machine.
        found=$("${CARGO_TARGET_DIR:-target}/release/examples/shapes" "${arguments[@]}" </dev/null) || [ $? = 1 ]
        printf '%s\n' "$found"
        awk '/^[a-z-]+ .* tried, / && $2 > 256 { print "too much memory: " $1; bad = 1 } END { exit bad }' <<<"$found"
        lines=$((lines + 1))
    done
    [ "$lines" -ge 3 ] || { echo "docs/testing.md has $lines lines of arguments" >&2; exit 1; }
}
