#!/usr/bin/env bash
# The daemon while somebody sets the system's clock: libfaketime stands between it and the clock,
# reads the offset from a file at every look, and leaves the monotonic clock alone.
# Usage: EVIDENCEOS_BIN=path/to/evidenceos tests/foreign/clock.sh
set -euo pipefail
root=$(realpath "$(dirname "$0")/../..")
# shellcheck source=tests/claim.sh
source "$root/tests/claim.sh"
bin=$(realpath "${EVIDENCEOS_BIN:-target/release/evidenceos}")
library=$(find /usr/lib /usr/local/lib -name libfaketimeMT.so.1 | head -1)
[ -n "$library" ] || { echo 'libfaketime is not installed' >&2; exit 1; }
scratch=$(mktemp -d)
daemon=
trap 'kill "${daemon:-}" 2>/dev/null || true; rm -rf "$scratch"' EXIT
cd "$scratch"
ln -s "$bin" evidenceos-daemon

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    cat err >&2
    exit 1
}
passed() { printf '  ok  %s\n' "$*"; }

# At noon no test meets a midnight that is nobody's doing.
now=$(date +%s)
noon=$((now - now % 86400 + 43200 - now))
# Sets the daemon's clock to so many days and minutes after noon of today.
set_clock() {
    printf '%+d\n' $((noon + $1 * 86400 + ${2:-0} * 60)) >offset.new
    mv offset.new offset
}

start() {
    LD_PRELOAD=$library FAKETIME_TIMESTAMP_FILE=$scratch/offset FAKETIME_NO_CACHE=1 \
        FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 EVIDENCEOS_DEFAULT_DAILY_MINT_LIMIT=100 \
        ./evidenceos-daemon --data-dir data --listen 127.0.0.1:0 --preflight-listen off \
        --metrics-listen off --log error >out 2>>err &
    daemon=$!
    for _ in $(seq 300); do
        grep -q 'Log key' out && break
        kill -0 "$daemon" || fail 'the daemon does not start'
        read -rt 0.1 <> <(:) || true
    done
    EVIDENCEOS_ENDPOINT="http://$(grep -o '127.0.0.1:[0-9]*' out | head -1)"
    export EVIDENCEOS_ENDPOINT
}

alice=bearer:$(printf alice | sha256sum | cut -c1-64)
# One grant of one credit: the touch that mints where a day is due. Then the file and the wire agree.
grants=0
touch_account() {
    grants=$((grants + 1))
    "$bin" account grant "$alice" 1 --reason "touch $grants" --wait >/dev/null
}
# The file has so much balance, so much left of the day's mint, and this day, counted from today.
account_is() { # balance remaining day, what
    touch_account
    local wanted="\"$alice\":{\"credit_balance\":$1,\"daily_mint_remaining\":$2,\"last_mint_day\":$((today + $3)),"
    grep -qF "$wanted" data/accounts.json || fail "$4: $(grep -F "$alice" data/accounts.json), wanted $wanted"
    "$bin" --json account show "$alice" | tr -d ' \n' | grep -q "\"credit_balance\":$1[,}]" ||
        fail "$4: the wire says $("$bin" --json account show "$alice")"
    passed "$4"
}
held() { "$bin" server info | grep -q 'confirm-clock'; }

today=$((now / 86400))
: >err
set_clock 0
start
"$bin" account limit "$alice" 20000 >/dev/null
account_is 10001 100 0 'opened at its limit, and then the limit was raised'

# Two claims that are not executed: one with a module, one without.
write_claim .
"$bin" holdout add labels.csv --ref mine --p0 0.7 >/dev/null
"$bin" claim pack predictions.csv -o claim.wasm >/dev/null
"$bin" claim create --holdout mine --name empty >/dev/null
"$bin" claim create --holdout mine --name waits >/dev/null
stored() { "$bin" --json account show | grep -o '"stored_bytes": *[0-9]*' | grep -o '[0-9]*$'; }
bare=$(stored)
"$bin" claim commit waits claim.wasm >/dev/null
[ "$(stored)" -ge $((bare + $(stat -c %s claim.wasm))) ] || fail "the module does not count: $(stored) bytes"

set_clock -2
account_is 10002 100 0 'a clock that goes back mints nothing, and the day of the mint stays'
! held || fail 'a clock that goes back holds nothing up'
set_clock 0
account_is 10003 100 0 'nor when it is put right'

set_clock 3
account_is 10004 100 0 'days that nobody lived through mint nothing'
held || fail 'the clock is held and nobody is told'
set_clock 9
account_is 10005 100 0 'nor do more of them'
set_clock 3
"$bin" server confirm-clock | grep -q "went from" || fail 'nothing was confirmed'
account_is 10106 0 3 'once an operator has confirmed it, the first touch of the day mints'
! held || fail 'the clock is still held'
account_is 10107 0 3 'and the second does not'

set_clock -30
account_is 10108 0 3 'back by a month: nothing is minted, the day stays'
set_clock 4
account_is 10109 0 3 'and the way up again is a jump that is held'
held || fail 'the jump is not held'

# Ten minutes are no jump.
"$bin" server confirm-clock >/dev/null
account_is 10210 0 4 'confirmed, the next day mints'
set_clock 4 9
account_is 10211 0 4 'nine minutes ahead are followed'
! held || fail 'nine minutes are no jump'

# Held time goes on at its true speed, and what is journaled is never before what came before.
set_clock 40
before=$(date +%s%3N)
touch_account
touch_account
passed_ms=$(($(date +%s%3N) - before))
"$bin" log entries >entries.jsonl
times=$(grep -o '"granted_unix_ms":[0-9]*' entries.jsonl | grep -o '[0-9]*$')
[ "$(wc -l <<<"$times")" = "$grants" ] || fail "not $grants grants in the log"
sort -nc <<<"$times" || fail 'time ran backwards in the log'
between=$(tail -2 <<<"$times" | awk 'NR == 1 { first = $1 } END { print $1 - first }')
((between > 0 && between <= passed_ms)) || fail "$between ms between two grants, in $passed_ms ms"
passed 'time never runs backwards, and at its true speed while the clock is held'

kill "$daemon"
wait "$daemon" || fail "it ended with $?"
./evidenceos-daemon fsck --data-dir data >fsck.txt || fail "$(cat fsck.txt)"
passed 'a check of the whole directory finds nothing'
# The next start is 36 days later by its clock, and a daemon may have been stopped for that long.
start
account_is 10314 0 40 'days that it was stopped for are days'
for _ in $(seq 300); do
    [ "$(stored)" = "$bare" ] && break
    read -rt 0.1 <> <(:) || true
done
[ "$(stored)" = "$bare" ] || fail "the module of a claim that was never executed is kept: $(stored) bytes"
"$bin" claim show waits | grep -q uncommitted || fail "$("$bin" claim show waits)"
"$bin" claim commit waits claim.wasm >/dev/null || fail 'the claim takes no module again'
"$bin" claim seal waits >/dev/null
"$bin" claim execute waits | grep -qi certified || fail 'the claim is not judged'
passed 'after 30 days a claim that was not executed has no module; it can be given one again'
kill "$daemon"
wait "$daemon" || fail "it ended with $?"
./evidenceos-daemon fsck --data-dir data >fsck.txt || fail "$(cat fsck.txt)"
daemon=
