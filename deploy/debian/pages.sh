#!/usr/bin/env bash
# Has the program write its manual pages and completion scripts to where the package takes them from.
set -euo pipefail
program=$(realpath "$1")
cd "$(dirname "$0")/../.."
rm -rf target/pages
mkdir -p target/pages/completions
"$program" man target/pages/man1 >/dev/null
"$program" completions bash >target/pages/completions/evidenceos
"$program" completions bash --daemon >target/pages/completions/evidenceos-daemon
