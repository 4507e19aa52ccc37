#!/usr/bin/env bash
# The gate for agents as programs see it that are not ours: curl, the Python of docs/preflight.md,
# schemathesis over /openapi.json, promtool over /metrics; and a receipt, verified offline.
#
# EVIDENCEOS_BIN is the `evidenceos` program; loopback only, ports are the system's choice.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
bin=$(realpath -e "${EVIDENCEOS_BIN:-target/debug/evidenceos}")

source tests/foreign/scratch.sh
ln -s "$bin" evidenceos

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

web=$(free_port)
metrics=$(free_port)
# Every call of a fuzzer is another one: nobody is too fast, and nobody probes.
most=65536
export EVIDENCEOS_PROBE_THROTTLE_TOTAL=$most EVIDENCEOS_PROBE_THROTTLE_UNIQUE_SEMANTIC=$most EVIDENCEOS_PROBE_THROTTLE_DISTINCT_TOPICS=$most
export EVIDENCEOS_PROBE_ESCALATE_TOTAL=$most EVIDENCEOS_PROBE_ESCALATE_UNIQUE_SEMANTIC=$most EVIDENCEOS_PROBE_ESCALATE_DISTINCT_TOPICS=$most
export EVIDENCEOS_PROBE_FREEZE_TOTAL=$most EVIDENCEOS_PROBE_FREEZE_UNIQUE_SEMANTIC=$most EVIDENCEOS_PROBE_FREEZE_DISTINCT_TOPICS=$most
./evidenceos-daemon --data-dir data --listen 127.0.0.1:0 --preflight-listen "127.0.0.1:$web" \
    --metrics-listen "127.0.0.1:$metrics" --preflight-rate-limit-rps off --preflight-timeout-ms 30000 >daemon.out 2>daemon.log &
daemon=$!
for _ in $(seq 200); do
    [ "$(curl -s -o /dev/null -w '%{http_code}' "localhost:$web/readyz" || true)" = 200 ] && break
    kill -0 "$daemon" || fail 'the daemon ended'
    read -rt 0.1 <> <(:) || true
done
grpc=$(grep -o '127\.0\.0\.1:[0-9]*' daemon.out | head -n 1)

# --- curl, and the receipt --------------------------------------------------------------------

curl -sS "localhost:$web/v1/preflight_tool_call" -H 'x-request-id: 1' \
    -d '{"toolName":"exec","params":{"command":"ls"},"sessionId":"s-1"}' -o decision.json
id=$(python3 -c 'import json; print(json.load(open("decision.json"))["decisionId"])')
curl -sSf "localhost:$web/v1/decisions/$id" -o receipt.json
./evidenceos --endpoint "http://$grpc" log key >log.vkey
./evidenceos verify receipt.json --key log.vkey >verified.txt
grep -q 'ALLOW (PROBE_CLEAN)' verified.txt || fail "$(cat verified.txt)"
passed 'a decision over curl, its receipt verified offline'
sed 's/\\"ALLOW\\"/\\"DENY\\"/' receipt.json >forged.json
cmp -s receipt.json forged.json && fail 'nothing was forged'
./evidenceos verify forged.json --key log.vkey >forged.txt 2>&1 && fail 'a forged receipt verified'
grep -q 'position check failed' forged.txt || fail "$(cat forged.txt)"
passed 'a forged decision is found'

# --- the documented Python ----------------------------------------------------------------------

awk '/^```python$/ { on = 1; next } /^```$/ { on = 0 } on' "$root/docs/preflight.md" |
    sed "s/127.0.0.1:8081/127.0.0.1:$web/" >documented.py
python3 documented.py || fail 'the documented Python'
passed 'the Python of docs/preflight.md'

# --- schemathesis -------------------------------------------------------------------------------

python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check 'schemathesis>=4,<5'
venv/bin/schemathesis run "http://127.0.0.1:$web/openapi.json" --checks not_a_server_error,content_type_conformance,status_code_conformance \
    --max-examples "${EXAMPLES:-60}" --seed 1 --generation-deterministic --no-color >schemathesis.log 2>&1 ||
    fail 'schemathesis'
passed "schemathesis: $(grep -oE '[0-9]+ (generated|passed).*' schemathesis.log | tail -n 1)"

# --- promtool -----------------------------------------------------------------------------------

if command -v promtool >/dev/null; then
    curl -sSf "localhost:$metrics/metrics" -o metrics.txt
    promtool check metrics <metrics.txt >promtool.log 2>&1 || fail "$(cat promtool.log)"
    passed 'promtool check metrics'
fi
