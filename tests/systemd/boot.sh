#!/usr/bin/env bash
# The Debian package under a real systemd: Debian 12 boots in a container of systemd's own, the package is
# installed, set up as deploy/systemd/README.md says, certifies a claim, is reloaded, killed, upgraded,
# misconfigured, stopped and purged.
#
#   tests/systemd/boot.sh PACKAGE.deb [TREE]
#
# TREE is a Debian 12 as debootstrap makes it (minbase, with systemd-sysv and dbus), which is copied; without one it is
# fetched. As root, with systemd-container and debootstrap. The container has no network.
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
source "$root/tests/claim.sh"

package=$(realpath "$1")
tree=${2:-}
scratch=$(mktemp -d /var/tmp/evidenceos-boot.XXXXXX)
machine=$scratch/machine
trap 'rm -rf "$scratch"' EXIT

if [ -n "$tree" ]; then
    cp -a "$tree" "$machine"
else
    debootstrap --variant=minbase --include=systemd-sysv,dbus bookworm "$machine" >"$scratch/debootstrap.log" || {
        tail -n 20 "$scratch/debootstrap.log" >&2
        exit 1
    }
fi

echo '127.0.0.1 localhost' >"$machine/etc/hosts"
mkdir "$machine/test"
cp "$package" "$machine/test/evidenceos.deb"
write_claim "$machine/test"

# What happens inside. It writes what passed, and turns the machine off.
cat >"$machine/test/inside.sh" <<'INSIDE'
set -euo pipefail
cd /test
exec >passed 2>said
trap 'status=$?; journalctl --no-pager -u evidenceos-daemon >journal; echo $status >status; systemctl poweroff' EXIT

fail() {
    echo "FAILED: $*" >&2
    exit 1
}
property() { systemctl show -P "$1" evidenceos-daemon; }
as() { evidenceos --profile "/test/lab/clients/$1/profile.toml" "${@:2}"; }
until_true() { # what command…
    local deadline=$((SECONDS + 60)) what=$1
    shift
    until "$@" >/dev/null 2>&1; do
        ((SECONDS < deadline)) || fail "not within a minute: $what"
        read -rt 0.2 <> <(:) || true
    done
}
is_another_process() { # than this one, and it serves
    local state
    state=$(systemctl show -p ActiveState -p MainPID evidenceos-daemon | sort)
    [[ $state == ActiveState=active$'\n'MainPID=* && $state != *MainPID=0 && $state != *"MainPID=$1" ]]
}
still_there() { as submitter claim show "$claim" | grep certified >/dev/null || fail "the claim is lost after $1"; }

dpkg -i evidenceos.deb >/dev/null
[ "$(systemctl is-enabled evidenceos-daemon || true)" = disabled ] || fail 'enabled before it is set up'
[ "$(property ActiveState)" = inactive ] || fail 'started before it is set up'
[ "$(readlink /usr/bin/evidenceos-daemon)" = evidenceos ] || fail 'no evidenceos-daemon'
[ "$(stat -c '%U:%G %a' /etc/evidenceos/tls)" = 'root:evidenceos 750' ] || fail "$(stat /etc/evidenceos/tls)"
echo 'installed: a user, directories, a unit that does not run yet'

# As in README.md, with certificates of a lab.
evidenceos keys generate --key-dir /etc/evidenceos/keys >/dev/null
evidenceos lab init lab >/dev/null
(cd lab/certs && install -g evidenceos -m 640 server.crt server.key ca.crt policy.toml /etc/evidenceos/tls/)
sed -i 's/^#\(EVIDENCEOS_AUTH_POLICY=\)/\1/' /etc/evidenceos/daemon.env
systemctl enable --now evidenceos-daemon >/dev/null
# It has told systemd that it serves: no waiting here.
runuser -u evidenceos -- evidenceos-daemon healthcheck --data-dir /var/lib/evidenceos >/dev/null
[ "$(stat -c %U "/proc/$(property MainPID)")" = evidenceos ] || fail 'it runs as another user'
[ -z "$(ls -A /var/lib/evidenceos/keys 2>/dev/null)" ] || fail 'a key is on disk'
echo 'started: ready when systemctl comes back, keys by credentials alone'

as operator holdout add labels.csv --ref mine --p0 0.7 >/dev/null
evidenceos claim pack predictions.csv -o claim.wasm >/dev/null
as submitter claim run claim.wasm --holdout mine --require-certified --receipt receipt.json --json >result.json
claim=$(grep -o '"claim_id": *"[0-9a-f]*"' result.json | cut -d'"' -f4)
as submitter log key >log.vkey
evidenceos verify receipt.json --key log.vkey >/dev/null
echo 'a claim certified over mTLS, its receipt verified'

pid=$(property MainPID)
systemctl reload evidenceos-daemon
[ "$(property MainPID)" = "$pid" ] || fail 'a reload began another process'
[ "$(property ActiveState)/$(property SubState)" = active/running ] || fail "after a reload: $(property SubState)"
# And one that cannot be: it says so, and serves on.
echo nonsense >>/etc/evidenceos/tls/policy.toml
if systemctl reload evidenceos-daemon; then fail 'took nonsense'; fi
[ "$(property MainPID)" = "$pid" ] || fail 'nonsense ended it'
sed -i '$d' /etc/evidenceos/tls/policy.toml
systemctl reload evidenceos-daemon
still_there 'a reload'
echo 'reloaded in place; nonsense is refused and what was there goes on'

kill -KILL "$pid"
until_true 'begun again by systemd' is_another_process "$pid"
still_there SIGKILL
pid=$(property MainPID)
dpkg -i evidenceos.deb >/dev/null
until_true 'restarted by an upgrade' is_another_process "$pid"
still_there 'an upgrade'
echo 'SIGKILL and an upgrade: begun again by systemd, nothing lost'

echo EVIDENCEOS_TLS_KEY= >>/etc/evidenceos/daemon.env
if systemctl restart evidenceos-daemon; then fail 'started without a key for its certificate'; fi
[ "$(property ActiveState)/$(property ExecMainStatus)" = failed/78 ] || fail "$(property ActiveState), $(property ExecMainStatus)"
sed -i '$d' /etc/evidenceos/daemon.env
systemctl restart evidenceos-daemon
still_there 'wrong settings'
echo 'settings that cannot be used: status 78, not tried for ever'

systemctl stop evidenceos-daemon
[ "$(property Result)/$(property ExecMainStatus)" = success/0 ] || fail "stopped as $(property Result), $(property ExecMainStatus)"
dpkg --purge evidenceos >/dev/null
[ -s /var/lib/evidenceos/evidenceos.db ] && compgen -G '/etc/evidenceos/keys/*.key' >/dev/null || fail 'purged with the log'
[ ! -e /usr/bin/evidenceos-daemon ] && [ ! -e /usr/lib/systemd/system/evidenceos-daemon.service ] || fail 'still installed'
dpkg -i evidenceos.deb >/dev/null
echo 'stopped with 0; purged, and the log and its keys are still there'
INSIDE
cat >"$machine/etc/systemd/system/evidenceos-test.service" <<'UNIT'
[Unit]
After=multi-user.target
[Service]
ExecStart=/bin/bash /test/inside.sh
UNIT
mkdir -p "$machine/etc/systemd/system/default.target.wants"
ln -s ../evidenceos-test.service "$machine/etc/systemd/system/default.target.wants/"

options=(--private-network --directory="$machine" --boot)
# Where the host is run by something else, nobody can be told about a machine.
[ -d /run/systemd/system ] || options+=(--register=no --keep-unit)
timeout --kill-after=10 300 systemd-nspawn "${options[@]}" >"$scratch/console" 2>&1 </dev/null || true

if [ "$(cat "$machine/test/status" 2>/dev/null)" != 0 ]; then
    tail -n 20 "$scratch/console" >&2
    for file in passed said journal; do tail -n 40 "$machine/test/$file" >&2 || true; done
    echo 'FAILED: the package under systemd' >&2
    exit 1
fi
sed 's/^/  ok  /' "$machine/test/passed"
