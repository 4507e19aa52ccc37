#!/usr/bin/env bash
# Builds the example guests, or those that are named. A module is written once the sandbox's own check has passed it.
#
#   build.sh [-o DIR] [c] [rust]      DIR/c, DIR/rust [default: beside this file]
#
# It needs `evidenceos` (EVIDENCEOS_BIN [default: the one on PATH]); for C clang and wasm-ld; for Rust a compiler with
# the target wasm32-unknown-unknown (RUSTC [default: rustc]).
set -euo pipefail
evidenceos=$(command -v "${EVIDENCEOS_BIN:-evidenceos}") || {
    echo 'error: no evidenceos to check the modules with; name it: EVIDENCEOS_BIN=path/to/evidenceos build.sh' >&2
    exit 1
}
evidenceos=$(realpath "$evidenceos")
rustc=${RUSTC:-rustc}
here=$(realpath "$(dirname "$0")")
to=$here
if [ "${1:-}" = -o ]; then
    mkdir -p "$2"
    to=$(realpath "$2")
    shift 2
fi
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# Without the features that later compilers switch on by themselves, so that they make the same code; 4 KiB of stack.
build_c() { # source module
    clang --target=wasm32 -mcpu=mvp -std=c11 -O2 -Wall -Wextra -Werror -ffreestanding -fno-builtin -nostdlib \
        -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=4096 -o "$2" "$1"
}
version_c() {
    clang --version | head -n 1
    wasm-ld --version
}

# A megabyte of stack is the default, and memory is paid by the page: 16 KiB are enough.
build_rust() { # source module
    "$rustc" --edition 2021 --crate-type cdylib --target wasm32-unknown-unknown -D warnings \
        -C opt-level=s -C lto -C panic=abort -C strip=symbols -C link-arg=-zstack-size=16384 -o "$2" "$1"
}
version_rust() {
    "$rustc" --version
}

guest() { # language source
    local built=$scratch/${2%.*}.wasm
    cd "$here/$1" # paths in panics are then the same everywhere
    "build_$1" "$2" "$built"
    "version_$1" >"$scratch/built-with.txt"
    # A warning is a mistake here: a guest that emits or submits nothing is never judged.
    "$evidenceos" --json claim check "$built" >"$scratch/checked.json"
    grep -q '"warnings":\[\]' "$scratch/checked.json" || {
        cat "$scratch/checked.json" >&2
        exit 1
    }
    mkdir -p "$to/$1"
    install -m 644 "$built" "$scratch/built-with.txt" "$to/$1"
    echo "$to/$1/$(basename "$built")"
}

[ $# -gt 0 ] || set -- c rust
for language; do
    case $language in
    c) guest c nearest_centroid.c ;;
    rust) guest rust ask_and_choose.rs ;;
    *)
        echo "build.sh knows c and rust, not $language" >&2
        exit 2
        ;;
    esac
done
