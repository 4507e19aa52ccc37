#!/usr/bin/env bash
# The daemon as clients see it that are not ours: OpenSSL, curl, gRPC for Python, testssl. All
# materials are made by hand with OpenSSL, as an operator would.
#
# EVIDENCEOS_BIN is the `evidenceos` program or `evidenceos-daemon`; loopback only, ports are the
# system's choice.
set -euo pipefail
cd "$(dirname "$0")/../.."
root=$PWD
bin=$(realpath -e "${EVIDENCEOS_BIN:-target/debug/evidenceos-daemon}")

scratch=$(mktemp -d)
daemons=()
finish() {
    local status=$?
    for pid in "${daemons[@]}"; do
        kill "$pid" 2>/dev/null || true
        wait "$pid" 2>/dev/null || true
    done
    if ((status != 0)); then
        tail -n 30 "$scratch"/{strict,relaxed,tokens,signed}.log >&2 2>/dev/null || true
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap finish EXIT
cd "$scratch"
ln -s "$bin" evidenceos-daemon

fail() {
    printf 'FAILED: %s\n' "$*" >&2
    exit 1
}
passed() { printf '  ok  %s\n' "$*"; }

# --- materials ------------------------------------------------------------------------------

authority() { # name
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$1.key" \
        -out "$1.crt" -days 30 -subj "/CN=$1" -addext 'basicConstraints=critical,CA:TRUE' \
        -addext 'keyUsage=critical,keyCertSign,cRLSign' 2>/dev/null
    mkdir "$1.d"
    touch "$1.d/index"
    echo 01 >"$1.d/serial"
}
certificate() { # authority name extensions [end date]
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -keyout "$2.key" \
        -out "$2.csr" -subj "/CN=$2" 2>/dev/null
    printf '[ca]\ndatabase=%s\nserial=%s\nnew_certs_dir=%s\ndefault_md=sha256\npolicy=p\n[p]\ncommonName=supplied\n[x]\n%b' \
        "$1.d/index" "$1.d/serial" "$1.d" "$3" >"$2.cnf"
    openssl ca -batch -notext -name ca -config "$2.cnf" -extensions x -cert "$1.crt" -keyfile "$1.key" \
        -in "$2.csr" -out "$2.crt" -startdate 20200101000000Z -enddate "${4:-20991231000000Z}" \
        2>openssl.out || fail "openssl ca: $(cat openssl.out)"
}
server_names='subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n'
client='extendedKeyUsage=clientAuth\nsubjectAltName=URI:spiffe://foreign'
authority ca
authority other
certificate ca server "$server_names"
certificate ca operator "$client/operator\n"
certificate ca submitter "$client/submitter\n"
certificate ca expired "$client/operator\n" 20210101000000Z
certificate ca serverauth "extendedKeyUsage=serverAuth\nsubjectAltName=URI:spiffe://foreign/operator\n"
certificate ca noeku "subjectAltName=URI:spiffe://foreign/operator\n"
certificate other stranger "$client/operator\n"
chmod 600 server.key

# A signing key: 32 bytes, named by the digest of its public key.
mkdir -m 700 keys
openssl rand 32 >seed
{
    printf '302e020100300506032b657004220420' | sed 's/../\\x&/g' | xargs -0 printf '%b'
    cat seed
} >seed.der
key_id=$(openssl pkey -inform DER -in seed.der -pubout -outform DER | tail -c 32 | sha256sum | cut -d' ' -f1)
install -m 600 seed "keys/$key_id.key"

cat >policy.toml <<'TOML'
[[rule]]
uri = "spiffe://foreign/operator"
roles = ["operator"]
[[rule]]
uri = "spiffe://foreign/submitter"
roles = ["submitter"]
TOML
install -m 600 /dev/stdin token <<<'correct-horse-battery-staple'
install -m 600 /dev/stdin secret <<<'discos-shared-secret'

# --- daemons --------------------------------------------------------------------------------

free_ports() {
    python3 - "$1" <<'PY'
import socket, sys
sockets = [socket.socket() for _ in range(int(sys.argv[1]))]
for s in sockets: s.bind(("127.0.0.1", 0))
print(*[s.getsockname()[1] for s in sockets])
PY
}
start() { # name flags…
    local name=$1
    shift
    # An anchor that knows no head of the key: beside it an empty directory may begin a log.
    mkdir -m 700 "$name.anchor"
    ./evidenceos-daemon --data-dir "$name.data" --key-dir keys --anchor "$name.anchor/" --metrics-listen off "$@" \
        >"$name.log" 2>&1 &
    daemons+=($!)
    for _ in $(seq 100); do
        grep -qs "Log key" "$name.log" && return
        kill -0 "${daemons[-1]}" 2>/dev/null || fail "$name did not start"
        sleep 0.1
    done
    fail "$name does not serve"
}
read -r strict strict_http relaxed tokens tokens_http signed signed_http < <(free_ports 7)
tls=(--tls-cert server.crt --tls-key server.key --mtls-client-ca ca.crt --auth-policy policy.toml)
start strict --listen "127.0.0.1:$strict" --preflight-listen "127.0.0.1:$strict_http" --preflight-tls "${tls[@]}" --require-client-cert
strict_pid=${daemons[-1]}
start relaxed --listen "127.0.0.1:$relaxed" --preflight-listen off "${tls[@]}"
# These two log all that they can, to be searched for secrets at the end.
start tokens --log trace --listen "127.0.0.1:$tokens" --preflight-listen "127.0.0.1:$tokens_http" --preflight-tls \
    --tls-cert server.crt --tls-key server.key --auth-token-file token
start signed --log trace --listen "127.0.0.1:$signed" --preflight-listen "127.0.0.1:$signed_http" --preflight-tls \
    --tls-cert server.crt --tls-key server.key --auth-hmac-key-file secret

# --- OpenSSL --------------------------------------------------------------------------------

echo 'openssl s_client'
server_ca=ca.crt
# Reads until the server closes, or for two seconds: then it was let in.
handshake() { # port flags…
    local port=$1
    shift
    timeout 2 openssl s_client -connect "localhost:$port" -CAfile "$server_ca" -verify_return_error -alpn h2 -ign_eof "$@" \
        </dev/null >handshake.log 2>&1 && return 1
    # 124: the time was over, and nobody had closed.
    [ $? -eq 124 ] && ! grep -q 'alert' handshake.log
}
for version in -tls1_2 -tls1_3; do
    handshake "$strict" $version -cert operator.crt -key operator.key || fail "$version: a good certificate is refused: $(tail -n 3 handshake.log)"
    grep -q 'Verify return code: 0' handshake.log || fail "$version: the server's certificate does not verify"
    grep -q 'ALPN protocol: h2' handshake.log || fail "$version: no h2"
    passed "$version with a good certificate"
    handshake "$strict" $version && fail "$version: served without a certificate"
    passed "$version without a certificate is refused"
    for bad in expired serverauth noeku stranger; do
        handshake "$strict" $version -cert $bad.crt -key $bad.key && fail "$version: served $bad"
        passed "$version with certificate \"$bad\" is refused"
    done
    handshake "$relaxed" $version || fail "$version: an optional certificate is required"
    passed "$version without a certificate where it is optional"
done
for version in -tls1 -tls1_1; do
    handshake "$strict" $version -cipher ALL:@SECLEVEL=0 -cert operator.crt -key operator.key && fail "$version is served"
    passed "$version is not served"
done

# --- curl -----------------------------------------------------------------------------------

echo 'curl'
http() { curl -s -o body -w '%{http_code}' --cacert ca.crt "$@"; }
[ "$(http "https://localhost:$strict_http/health")" = 200 ] || fail 'health without a certificate'
passed 'health needs no certificate'
[ "$(http "https://localhost:$strict_http/v1/anything")" = 401 ] || fail "a route without a certificate: $(cat body)"
passed 'any other route does'
[ "$(http --cert operator.crt --key operator.key "https://localhost:$strict_http/v1/anything")" = 404 ] || fail 'a route with a certificate'
passed 'and is reached with one'
http --cert stranger.crt --key stranger.key "https://localhost:$strict_http/health" >/dev/null && fail "a stranger's certificate is taken"
passed "a stranger's certificate is refused even there"
http "http://localhost:$strict_http/health" >/dev/null && fail 'plain HTTP on a TLS port'
passed 'plain HTTP is not served on a TLS port'
url="https://localhost:$tokens_http/v1/anything"
[ "$(http "$url")" = 401 ] || fail 'no token'
[ "$(http -H 'authorization: Bearer wrong' "$url")" = 401 ] || fail 'a wrong token'
[ "$(http -H "authorization: Bearer $(cat token)" "$url")" = 404 ] || fail "a token: $(cat body)"
passed 'a token is taken over HTTP, a wrong one is not'
# As docs/identity.md shows it.
id=$(openssl rand -hex 16) now=$(date +%s)
for path in /v1/anything /v1/other; do
    mac=$(printf '%s:%s:%s' "$id" "$path" "$now" | openssl dgst -sha256 -hmac "$(cat secret)" | sed 's/.* //')
    got=$(http -H "x-request-id: $id" -H "x-evidenceos-timestamp: $now" -H "x-evidenceos-signature: sha256=$mac" \
        "https://localhost:$signed_http/v1/anything")
    [ "$path $got" = '/v1/anything 404' ] || [ "$path $got" = '/v1/other 401' ] || fail "signed for $path: $got"
done
passed 'a signature is taken over HTTP, and holds for its path alone'

# --- gRPC for Python ------------------------------------------------------------------------

echo 'gRPC for Python'
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check grpcio grpcio-tools
venv/bin/python -m grpc_tools.protoc -I "$root/crates/proto/proto" --python_out=. --grpc_python_out=. \
    evidenceos/v2/evidenceos.proto
GRPC_VERBOSITY=NONE PYTHONPATH=. venv/bin/python "$root/tests/foreign/grpc_client.py" \
    "localhost:$strict" "localhost:$relaxed" "localhost:$tokens" "localhost:$signed"

# --- a session from before a reload ---------------------------------------------------------

echo 'reload'
for version in -tls1_2 -tls1_3; do
    handshake "$strict" $version -cert operator.crt -key operator.key -sess_out "session$version" || fail 'no session'
done
# Another authority for clients; the server's own certificate stays one that its clients know.
cp ca.crt server-ca.crt
server_ca=server-ca.crt
cp other.crt next.crt
mv next.crt ca.crt
kill -HUP "$strict_pid"
for _ in $(seq 50); do
    grep -q 'were read again' strict.log && break
    sleep 0.1
done
for version in -tls1_2 -tls1_3; do
    handshake "$strict" $version -cert operator.crt -key operator.key -sess_in "session$version" && fail "$version: a session of the old authority goes on"
    passed "$version: a session of the old authority is refused"
    handshake "$strict" $version -cert stranger.crt -key stranger.key || fail "$version: a client of the new authority is refused"
    passed "$version: a client of the new authority is served"
done

# --- testssl --------------------------------------------------------------------------------

echo 'testssl'
command -v testssl >/dev/null || fail 'testssl is not installed; Debian has it as testssl.sh'
testssl --quiet --color 0 --warnings off -p -P -s -f -U --add-ca server-ca.crt --jsonfile findings.json \
    "localhost:$relaxed" >testssl.out 2>&1 || true
python3 - findings.json <<'PY'
import json, sys
findings = json.load(open(sys.argv[1]))
bad = [f for f in findings if f["severity"] in ("MEDIUM", "HIGH", "CRITICAL", "FATAL")]
assert len(findings) > 30, f"testssl found only {len(findings)} things to say"
assert not bad, json.dumps(bad, indent=1)
print(f"  ok  nothing above LOW in {len(findings)} findings")
PY

# --- nothing secret was written anywhere ----------------------------------------------------

seed_hex=$(od -An -tx1 seed | tr -d ' \n')
grep -q TRACE tokens.log || fail 'it does not log all that it can'
for secret in "$(cat token)" "$(cat secret)" "$(base64 -w0 token | head -c 32)" "$seed_hex"; do
    if grep -qF -- "$secret" ./*.log; then fail 'a secret is in a log'; fi
done
passed 'no secret is in a log'
echo 'all foreign clients agree'
