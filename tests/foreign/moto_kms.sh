#!/usr/bin/env bash
# AWS KMS as somebody else understands it: moto's server, which checks SigV4 and keeps the
# encryption context. Needs python3; moto goes into a directory of its own.
#
# moto lets the first requests pass unsigned, so that there is somebody to sign the others: here a
# user, the user's policy and an access key. From then on every request is verified.
set -euo pipefail
cd "$(dirname "$0")/../.."

scratch=$(mktemp -d)
server=
finish() {
    local status=$?
    if [[ -n $server ]]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    if ((status != 0)) && [[ -s $scratch/moto.log ]]; then
        echo 'moto said:' >&2
        tail -n 40 "$scratch/moto.log" >&2
    fi
    rm -rf "$scratch"
    exit "$status"
}
trap finish EXIT

python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check 'moto[server]==5.*'

# moto cannot be asked for a free port, so the system is, and moto gets it at once.
port=$("$scratch/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
INITIAL_NO_AUTH_ACTION_COUNT=3 "$scratch/venv/bin/moto_server" -H 127.0.0.1 -p "$port" >"$scratch/moto.log" 2>&1 &
server=$!

# One user who may use the KMS, and one key. Prints what the tests need.
MOTO_ENDPOINT="http://127.0.0.1:$port" "$scratch/venv/bin/python" - >"$scratch/environment" <<'PYTHON'
import json, os, socket, sys, time, urllib.parse
import boto3
from botocore.config import Config

endpoint = os.environ["MOTO_ENDPOINT"]
where = urllib.parse.urlparse(endpoint)
until = time.monotonic() + 60
while True:
    try:
        socket.create_connection((where.hostname, where.port), 1).close()
        break
    except OSError as error:
        if time.monotonic() > until:
            sys.exit(f"moto did not start: {error}")
        time.sleep(0.1)

def client(service, access_key="unsigned", secret="unsigned"):
    return boto3.client(service, endpoint_url=endpoint, region_name="eu-west-1", aws_access_key_id=access_key,
                        aws_secret_access_key=secret, config=Config(retries={"total_max_attempts": 1}))

iam = client("iam")
policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "kms:*", "Resource": "*"}]}
iam.create_user(UserName="lab")
iam.put_user_policy(UserName="lab", PolicyName="kms", PolicyDocument=json.dumps(policy))
key = iam.create_access_key(UserName="lab")["AccessKey"]

kms = client("kms", key["AccessKeyId"], key["SecretAccessKey"])
print(f"export MOTO_ENDPOINT={endpoint}")
print(f"export MOTO_KEY_ID={kms.create_key()['KeyMetadata']['Arn']}")
print(f"export AWS_ACCESS_KEY_ID={key['AccessKeyId']}")
print(f"export AWS_SECRET_ACCESS_KEY='{key['SecretAccessKey']}'")
print("export AWS_REGION=eu-west-1")
PYTHON
# shellcheck source=/dev/null
source "$scratch/environment"

cargo test --locked -p evidenceos-keys "${@:---all-features}" --test kms -- --ignored moto:: 2>&1 | tee "$scratch/tests.log"
# A filter that finds nothing passes, too.
grep -q '^test result: ok. [1-9]' "$scratch/tests.log"
