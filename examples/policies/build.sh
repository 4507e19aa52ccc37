#!/usr/bin/env bash
# Builds the examples into a directory [default: here], with clang, lld and python3. Nothing is written there before
# all of them are built.
set -euo pipefail
cd "$(dirname "$0")"
to=${1:-.}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for name in deny-shell-pipes require-review-for-payments; do
    clang --target=wasm32 -mcpu=mvp -std=c11 -Os -Wall -Wextra -Werror -ffreestanding -fno-builtin -nostdlib \
        -Wl,--no-entry -Wl,--strip-all -Wl,-z,stack-size=4096 -o "$scratch/$name.wasm" "$name.c"
    python3 without_table.py "$scratch/$name.wasm"
done
install -m 644 "$scratch"/*.wasm "$to"
