#!/usr/bin/env bash
# The systemd unit: nothing in it that systemd does not know, an exposure of at most 2.0, and with a
# binary that it works as the unit has it run.
#
#   tests/systemd/analyze.sh                              the files alone
#   tests/systemd/analyze.sh target/debug/evidenceos      also keys handed over as systemd does it, and the
#                                                         system calls; as root, with strace and setfacl
set -euo pipefail
cd "$(dirname "$0")/../.."

UNIT=deploy/systemd/evidenceos-daemon.service
THRESHOLD=20 # 2.0, in tenths
binary=${1:-}

if ! command -v systemd-analyze >/dev/null; then
  echo "systemd-analyze is missing: apt-get install systemd" >&2
  exit 1
fi
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

# A file system of our own: the commands of the unit are there, and the targets that it names.
root=$SCRATCH/root
mkdir -p "$root"/{usr/bin,usr/lib/systemd/system}
cp /bin/true "$root/usr/bin/evidenceos"
cp /bin/true "$root/usr/bin/evidenceos-daemon"
for unit in sysinit basic network-online time-sync shutdown multi-user; do
  printf '[Unit]\nDescription=%s\nDefaultDependencies=no\n' "$unit" >"$root/usr/lib/systemd/system/$unit.target"
done
cp "$UNIT" "$root/usr/lib/systemd/system/"
systemd-analyze verify --root="$root" evidenceos-daemon.service 2>"$SCRATCH/verify" || {
  cat "$SCRATCH/verify" >&2
  exit 1
}
# What systemd does not understand is a warning to it, and a setting that does nothing.
if [ -s "$SCRATCH/verify" ]; then
  cat "$SCRATCH/verify" >&2
  exit 1
fi
if grep -q '^MemoryDenyWriteExecute' "$UNIT"; then
  echo "$UNIT: MemoryDenyWriteExecute stops the compiler of guests" >&2
  exit 1
fi

systemd-analyze security --offline=true --no-pager --threshold=$THRESHOLD "$UNIT" >"$SCRATCH/security" || {
  cat "$SCRATCH/security" >&2
  echo "the exposure is above 2.0" >&2
  exit 1
}
exposure=$(sed -n 's/.*exposure level for .*: \([0-9.]*\).*/\1/p' "$SCRATCH/security")
[ -n "$exposure" ] || { echo "no exposure in what systemd-analyze says" >&2; exit 1; }

# The other files, as systemd-sysusers and systemd-tmpfiles read them.
mkdir -p "$root/etc"
systemd-sysusers --root="$root" --inline "$(cat deploy/systemd/evidenceos.sysusers)"
grep -q '^evidenceos:' "$root/etc/passwd" || { echo "no user from evidenceos.sysusers" >&2; exit 1; }
mkdir -p "$root/usr/lib/tmpfiles.d"
cp deploy/systemd/evidenceos.tmpfiles "$root/usr/lib/tmpfiles.d/evidenceos.conf"
systemd-tmpfiles --root="$root" --create evidenceos.conf
modes=$(stat -c '%a %n' "$root"/etc/evidenceos "$root"/etc/evidenceos/* | sed "s#$root##")
wanted=$'755 /etc/evidenceos\n700 /etc/evidenceos/keys\n750 /etc/evidenceos/tls'
[ "$modes" = "$wanted" ] || { printf 'evidenceos.tmpfiles makes\n%s\n' "$modes" >&2; exit 1; }

# Names in the settings' file are settings of the daemon.
settings=crates/daemon/src/config/settings.rs
while read -r name; do
  grep -q "env = \"$name\"" "$settings" || { echo "daemon.env: $name is no setting of the daemon" >&2; exit 1; }
done < <(sed -n 's/^#\?\(EVIDENCEOS_[A-Z0-9_]*\)=.*/\1/p' deploy/systemd/daemon.env)

echo "unit: exposure $exposure, $(systemd-analyze --version | head -n 1)"
[ -n "$binary" ] || exit 0

# --- keys, handed over as systemd does it: root's, mode 0400, and an access list for the unit's user
uid=65532
mkdir -m 700 "$SCRATCH/made"
cp "$binary" "$SCRATCH/evidenceos"
chmod 755 "$SCRATCH" "$SCRATCH/evidenceos"
key=$("$SCRATCH/evidenceos" keys generate --key-dir "$SCRATCH/made/keys" --json | sed -n 's/.*"key_id": *"\([0-9a-f]*\)".*/\1/p')
credentials=/dev/shm/evidenceos-credentials.$$ # a file system in memory, as systemd's
trap 'rm -rf "$SCRATCH" "$credentials"' EXIT
mkdir -m 500 "$credentials"
# A directory that is loaded as "keys" gives its files the names keys_….
install -m 400 "$SCRATCH/made/keys/$key.key" "$credentials/keys_$key.key"
setfacl -m "u:$uid:r" "$credentials/keys_$key.key"
setfacl -m "u:$uid:rx" "$credentials"
install -d -o $uid -g $uid -m 700 "$SCRATCH/run"
as_user() { setpriv --reuid=$uid --regid=$uid --clear-groups --no-new-privs --bounding-set=-all "$@"; }
as_user "$SCRATCH/evidenceos" keys import --from "$credentials" --key-dir "$SCRATCH/run/keys"
mode=$(stat -c '%a %u' "$SCRATCH/run/keys/$key.key")
[ "$mode" = "600 $uid" ] || { echo "the imported key has mode and owner $mode" >&2; exit 1; }
as_user "$SCRATCH/evidenceos" keys import --from "$credentials" --key-dir "$SCRATCH/run/keys" >/dev/null # again
chmod o+r "$credentials/keys_$key.key"
if as_user "$SCRATCH/evidenceos" keys import --from "$credentials" --key-dir "$SCRATCH/run/other" 2>/dev/null; then
  echo "a key that everybody can read was imported" >&2
  exit 1
fi
echo "keys: imported from credentials"

# --- system calls: what a daemon needs for the whole of its main job is in the unit's list
expand() { # a group's members, one a line
  systemd-analyze syscall-filter "$1" | sed -n 's/^    \([-@a-z0-9_]*\)$/\1/p' | while read -r name; do
    case $name in
    @*) expand "$name" ;;
    *) echo "$name" ;;
    esac
  done
}
expand @system-service | sort -u >"$SCRATCH/allowed"
# The unit takes these groups out again, and puts some calls back.
grep -qx 'SystemCallFilter=@system-service' "$UNIT"
grep -qx 'SystemCallFilter=~@privileged @resources' "$UNIT"
back=$(sed -n 's/^SystemCallFilter=\([a-z_ ]*\)$/\1/p' "$UNIT")
[ -n "$back" ] || { echo "the unit puts no call back" >&2; exit 1; }
for group in @privileged @resources; do expand $group; done | sort -u >"$SCRATCH/forbidden"
{
  comm -23 "$SCRATCH/allowed" "$SCRATCH/forbidden"
  tr ' ' '\n' <<<"$back"
} | sort -u >"$SCRATCH/list"
[ "$(wc -l <"$SCRATCH/list")" -gt 100 ] || { echo "the list of system calls is not readable" >&2; exit 1; }
(cd "$SCRATCH" && strace -f -qq -c -U name -o "$SCRATCH/calls" ./evidenceos demo >"$SCRATCH/demo" 2>&1) || {
  tail -n 20 "$SCRATCH/demo" >&2
  exit 1
}
sed -n 's/^\([a-z0-9_]*\)$/\1/p' "$SCRATCH/calls" | grep -vx -e syscall -e total | sort -u >"$SCRATCH/used"
[ "$(wc -l <"$SCRATCH/used")" -gt 30 ] || { echo "strace has counted nothing" >&2; exit 1; }
# SQLite gives its files to the directory's owner where it runs as root, as here; the unit does not.
sed -i '/^fchown$/d' "$SCRATCH/used"
missing=$(comm -23 "$SCRATCH/used" "$SCRATCH/list" | tr '\n' ' ')
[ -z "$missing" ] || { echo "not in the unit's SystemCallFilter, and used: $missing" >&2; exit 1; }
echo "system calls: $(wc -l <"$SCRATCH/used") used, all in the unit's list"
