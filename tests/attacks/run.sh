#!/usr/bin/env bash
# tests/attacks/attacks.py with what it needs of Python.
#
#   tests/attacks/run.sh PROGRAM [ARGUMENT…]      PROGRAM is evidenceos-daemon; --help says what else
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] && [ -x "$1" ] || {
    echo 'usage: tests/attacks/run.sh PROGRAM [ARGUMENT…]' >&2
    exit 64
}
program=$(realpath -s "$1")
shift
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch/venv"
"$scratch/venv/bin/pip" install --quiet --disable-pip-version-check grpcio grpcio-tools
"$scratch/venv/bin/python" -m grpc_tools.protoc -I "$here/../../crates/proto/proto" --python_out="$scratch" \
    --grpc_python_out="$scratch" evidenceos/v2/evidenceos.proto
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=$scratch "$scratch/venv/bin/python" "$here/attacks.py" "$program" "$scratch/daemon" "$@"
