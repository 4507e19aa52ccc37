#!/usr/bin/env bash
# How accounts.json is written, as the kernel sees it: the whole file to accounts.tmp, fsync,
# rename over accounts.json, fsync of the directory; nothing else ever opens it for writing.
# Usage: EVIDENCEOS_BIN=path/to/evidenceos tests/foreign/accounts_strace.sh
set -euo pipefail
bin=$(realpath "${EVIDENCEOS_BIN:-target/release/evidenceos}")
scratch=$(mktemp -d)
trap 'kill "${daemon:-}" 2>/dev/null || true; rm -rf "$scratch"' EXIT
cd "$scratch"
ln -s "$bin" evidenceos-daemon

strace -f -y -e trace=openat,creat,write,pwrite64,fsync,fdatasync,rename,renameat,renameat2,unlink,truncate,ftruncate \
    -o trace ./evidenceos-daemon --data-dir data --listen 127.0.0.1:0 --preflight-listen off --metrics-listen off \
    --log error >out 2>err &
tracer=$!
for _ in $(seq 300); do
    grep -q 'Log key' out && break
    kill -0 "$tracer" || { cat err; exit 1; }
    read -rt 0.1 <> <(:) || true
done
daemon=$(cat data/LOCK)
export EVIDENCEOS_ENDPOINT="http://$(grep -o '127.0.0.1:[0-9]*' out | head -1)"
alice=bearer:$(printf alice | sha256sum | cut -c1-64)
"$bin" account limit "$alice" 20000 >/dev/null
"$bin" account grant "$alice" 5000 --reason 'a test' --wait >/dev/null
grep -qF "\"$alice\":{\"credit_balance\":15000," data/accounts.json
kill "$daemon"
wait "$tracer" || true
daemon=

# One letter a step on the file: o(pen), w(rite), s(ync), r(ename), d(irectory synced).
steps=$(awk '
    /openat\(.*accounts\.tmp"/                        { printf "o" }
    /write\([0-9]+<[^>]*accounts\.tmp>/               { printf "w" }
    / fsync\([0-9]+<[^>]*accounts\.tmp>/              { printf "s" }
    /rename[a-z0-9]*\(.*accounts\.tmp".*accounts\.json"/ { printf "r"; renamed = 1 }
    / fsync\([0-9]+<[^>]*\/data>/ && renamed          { printf "d"; renamed = 0 }
' trace)
echo "accounts.json: $steps"
[[ $steps =~ ^(ow+srd)+$ ]] || { echo 'not the documented sequence' >&2; exit 1; }
# Nobody writes to the file in place.
if grep -E 'openat\(.*accounts\.json", [^)]*O_(WRONLY|RDWR|TRUNC)' trace; then
    echo 'accounts.json is opened for writing' >&2
    exit 1
fi
