# The place of a foreign test, to be sourced: a directory of its own, in which the program `bin` is `evidenceos-daemon`.
# When the test ends, the process `daemon` is ended, the logs of a test that failed are shown, and the directory is removed.

scratch=$(mktemp -d)
daemon=
finish() {
    local status=$?
    if [ -n "$daemon" ]; then
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
    fi
    if ((status != 0)); then
        tail -n 30 "$scratch"/*.log >&2 2>/dev/null || true
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
