#!/usr/bin/env bash
# The example guests by compilers that are not ours: each is built from its source, admitted, run and judged; then
# receipts, answers and verdicts are checked offline, and the judged vectors against Python's.
#
# Usage: tests/foreign/guests.sh [PROGRAM], `evidenceos` [default: EVIDENCEOS_BIN, else target/debug/evidenceos].
# It needs clang, wasm-ld and python3. If no Rust compiler has the target wasm32-unknown-unknown, the committed Rust
# guest is run instead. Loopback only; the port is the system's choice.
set -euo pipefail
cd "$(dirname "$0")/../.."
examples=$PWD/examples/guests
guide=$PWD/docs/guests.md
bin=$(realpath -e "${1:-${EVIDENCEOS_BIN:-target/debug/evidenceos}}")

source tests/foreign/scratch.sh
export EVIDENCEOS_BIN=$bin PYTHONDONTWRITEBYTECODE=1

# --- sources -----------------------------------------------------------------------------------

python3 "$examples/tumours.py" tables tables
for table in c/tumours.h rust/tumours.rs; do
    cmp -s "tables/$table" "$examples/$table" || fail "$table is not what tumours.py writes"
done
passed 'the tables are what tumours.py writes'
python3 - "$guide" "$examples"/{c/guest.h,c/nearest_centroid.c,rust/ask_and_choose.rs} <<'PY'
import re, sys
guide = open(sys.argv[1]).read()
blocks = {block for _, block in re.findall(r"^```(c|rust)\n(.*?)^```$", guide, re.M | re.S)}
missing = [path for path in sys.argv[2:] if open(path).read() not in blocks]
if missing: sys.exit(f"docs/guests.md does not show {missing} as they are")
PY
passed 'docs/guests.md shows the sources as they are'

# --- modules -----------------------------------------------------------------------------------

rust_compiler() { # prints the first one that has the target
    local candidate libraries
    for candidate in "${RUSTC:-rustc}" /usr/bin/rustc; do
        libraries=$("$candidate" --print target-libdir --target wasm32-unknown-unknown 2>/dev/null) || continue
        [ -d "$libraries" ] && echo "$candidate" && return
    done
}
built() { # language module: the same compiler must make the same bytes
    if cmp -s "built/$1/built-with.txt" "$examples/$1/built-with.txt"; then
        cmp "built/$1/$2" "$examples/$1/$2" || fail "$2 is not what this compiler made of it before"
        passed "$2: built, byte for byte the committed one"
    else
        passed "$2: built by another compiler than the committed one, $(paste -sd ' ' "built/$1/built-with.txt")"
    fi
}
bash "$examples/build.sh" -o built c >build.log 2>&1 || fail 'the C guest does not build'
built c nearest_centroid.wasm
RUSTC=$(rust_compiler || true)
if [ -n "$RUSTC" ]; then
    export RUSTC
    bash "$examples/build.sh" -o built rust >build.log 2>&1 || fail 'the Rust guest does not build'
    built rust ask_and_choose.wasm
else
    mkdir -p built/rust
    cp "$examples/rust/ask_and_choose.wasm" built/rust
    passed 'ask_and_choose.wasm: the committed one, since no Rust compiler here has the target wasm32-unknown-unknown'
fi

# --- runs --------------------------------------------------------------------------------------

./evidenceos-daemon --data-dir data --listen 127.0.0.1:0 --preflight-listen off --metrics-listen off \
    >daemon.out 2>daemon.log &
daemon=$!
for _ in $(seq 300); do
    grep -qs 'Log key' daemon.out && break
    kill -0 "$daemon" 2>/dev/null || fail 'the daemon does not start'
    read -rt 0.1 <> <(:) || true
done
EVIDENCEOS_ENDPOINT="http://$(grep -o '127\.0\.0\.1:[0-9]*' daemon.out | head -n 1)"
export EVIDENCEOS_ENDPOINT
python3 "$examples/tumours.py" labels >labels.csv
python3 "$examples/tumours.py" predictions >predictions.csv
"$bin" holdout add labels.csv --ref tumours --p0 0.8 --sealed-budget-bits 64 --principal-sealed-budget-bits 64 \
    >holdout.txt 2>>client.log
"$bin" log key >log.vkey

# Runs a module; leaves NAME.json, its receipt and its trace, and demands that one of these models was judged.
judge() { # name module models… -- flags…
    local name=$1 module=$2 models=() model
    shift 2
    while [ "$1" != -- ]; do
        models+=("$1")
        shift
    done
    shift
    "$bin" --json claim run "$module" --name "$name" --holdout tumours --receipt "$name.receipt.json" "$@" \
        >"$name.json" 2>>client.log
    "$bin" claim trace "$(field "$name" claim_id)" -o traces/ >/dev/null
    python3 "$examples/trace.py" "traces/$(field "$name" claim_id).trace" --judged >"$name.judged"
    for model in "${models[@]}"; do
        awk -F, -v model="$model" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == model) at = i; next } { print $at }' \
            predictions.csv | cmp -s - "$name.judged" && return
    done
    fail "$name: what was judged is no prediction of ${models[*]}"
}
field() { # name field
    python3 -c 'import json, sys; print(json.load(open(sys.argv[1] + ".json"))[sys.argv[2]])' "$1" "$2"
}
is() { # name field wanted
    [ "$(field "$1" "$2")" = "$3" ] || fail "$1: $2 is $(field "$1" "$2"), wanted $3: $(cat "$1.json")"
}

# At most 29 of 440 items are wrong by either model: however the holdout was split, that is certified.
asking=(--symbols 16 --max-answer-bits 8)
judge c built/c/nearest_centroid.wasm three --
is c outcome certified
is c canonical_output 00
is c charged_answer_microbits 0
passed 'nearest_centroid: certified, and it asked nothing'
judge rust built/rust/ask_and_choose.wasm three two -- "${asking[@]}"
is rust outcome certified
is rust charged_answer_microbits 8000000
# Symbol 0a would be two thirds right.
[[ $(field rust canonical_output) =~ ^0[b-f]$ ]] || fail "it emitted $(field rust canonical_output)"
passed 'ask_and_choose: certified, and its two answers cost 8 bits'
for guest in c/nearest_centroid rust/ask_and_choose; do
    cmp -s "built/$guest.wasm" "$examples/$guest.wasm" && continue
    language=${guest%/*} flags=()
    [ "$language" = c ] || flags=("${asking[@]}")
    judge "committed-$language" "$examples/$guest.wasm" three two -- "${flags[@]}"
    is "committed-$language" outcome certified
    is "committed-$language" canonical_output "$(field "$language" canonical_output)"
    cmp "committed-$language.judged" "$language.judged" || fail "the committed $guest submits other predictions"
    passed "the committed $guest behaves equally"
done

# --- offline -----------------------------------------------------------------------------------

"$bin" holdout retire tumours --yes >/dev/null
"$bin" holdout open tumours -o opening.json --yes >/dev/null
"$bin" log entries -o mirror/ >/dev/null
kill "$daemon"
wait "$daemon" || fail "the daemon ended with $?"
daemon=
unset EVIDENCEOS_ENDPOINT
for receipt in *.receipt.json; do
    "$bin" verify "$receipt" --key log.vkey >verified.log 2>&1 || fail "$receipt"
done
passed 'every receipt verifies from its file'
"$bin" verify --key log.vkey --log mirror/ --opened opening.json --traces traces/ >verified.log 2>&1 || fail 'the log'
passed 'every answer and verdict follows from the opened labels'
