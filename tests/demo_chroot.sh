#!/usr/bin/env bash
# Runs `make demo` as a newcomer would: in a fresh Debian with this machine's Rust toolchain and nothing else (no kubectl,
# no Go, no crates), from a clone of the commit that is checked out; then once more on what is built, and after a change
# in proxy/. Prints how long each took. Needs root, debootstrap and a way to the Debian archive and crates.io.
# Network, processes and control groups are the machine's: it refuses to run beside a cluster of the demo's name.
#   demo_chroot.sh [FOLDER]      FOLDER: where the Debian is made, and removed afterwards; must not be there yet
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
chroot=${1:-$root/target/demo-chroot}
if [ -z "${IN_NAMESPACE:-}" ]; then
  command -v debootstrap >/dev/null || { apt-get -qq update && apt-get -qq -y --no-install-recommends install debootstrap >/dev/null; }
  [ ! -e "$chroot" ] || { echo "$chroot is there already; remove it, or name another folder" >&2; exit 1; }
  mkdir -p "$chroot"
  # Mounts of its own: whatever happens, none is left on the machine.
  IN_NAMESPACE=1 exec unshare --mount --propagation private "$0" "$chroot"
fi
step() { printf '\033[1m==> %s\033[0m\n' "$*"; }
inside() { chroot "$chroot" /usr/bin/env -i HOME=/root LANG=C.UTF-8 TERM="${TERM:-dumb}" PATH=/opt/rust/bin:/usr/sbin:/usr/bin:/sbin:/bin "$@"; }
finish() {
  [ -x "$chroot/root/causeway/target/debug/causeway" ] && inside /root/causeway/target/debug/causeway down --delete-data || true
  # Nothing is removed while anything of this machine is mounted below: the toolchain is.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    umount -R "$chroot" 2>/dev/null || true
    grep -q " $chroot[/ ]" /proc/self/mountinfo || break
    sleep 1
  done
  if grep -q " $chroot[/ ]" /proc/self/mountinfo; then
    echo "$chroot is in use and stays; look at it with: fuser -vm $chroot" >&2
  else
    rm -rf --one-file-system "$chroot"
  fi
}
trap finish EXIT

step "Debian 12 in $chroot"
# A mount of its own, so that its removal never leaves it.
mount --bind "$chroot" "$chroot"
debootstrap --variant=minbase --include=ca-certificates,git,make bookworm "$chroot" >"$chroot.log" 2>&1 || { tail "$chroot.log"; exit 1; }
echo 'deb http://deb.debian.org/debian bookworm main' >"$chroot/etc/apt/sources.list"
cp /etc/resolv.conf "$chroot/etc/resolv.conf"
cp -r /etc/ssl/certs/. "$chroot/etc/ssl/certs/"
cp -r /usr/local/share/ca-certificates/. "$chroot/usr/local/share/ca-certificates/" 2>/dev/null || true
mkdir -p "$chroot/opt/rust"
mount --bind "$(rustc --print sysroot)" "$chroot/opt/rust"
mount -o remount,bind,ro "$chroot/opt/rust"
for dir in proc sys dev; do mount --rbind "/$dir" "$chroot/$dir"; done
mount -t tmpfs tmpfs "$chroot/run"
mount -t tmpfs tmpfs "$chroot/tmp"
git clone -q --no-hardlinks "$root" "$chroot/root/causeway"
if [ -e /run/causeway/default ]; then echo "a cluster \"default\" runs on this machine; the demo would use its control groups: causeway down" >&2; exit 1; fi
if inside sh -c 'command -v kubectl || command -v go'; then echo "there is more in it than Rust and Debian's packages" >&2; exit 1; fi

demo() {
  local begin=$SECONDS
  inside make -C /root/causeway demo
  took+=("$1: $((SECONDS - begin)) s")
}
took=()
step "make demo, for the first time"
demo "first build to the open shop"
step "make demo, once more"
demo "again"
step "a change in proxy/"
inside /root/causeway/target/debug/causeway down --delete-data
# Code of its own, so that it is really compiled anew.
printf '\n/// Made by the test of the demo.\npub fn changed() -> u32 {\n    %s\n}\n' "$RANDOM" >>"$chroot/root/causeway/proxy/src/lib.rs"
begin=$SECONDS
inside sh -c 'cd /root/causeway && cargo build --locked && target/debug/causeway up --detach'
took+=("a change in proxy/ to the running program: $((SECONDS - begin)) s")
step "$(rustc --version), $(nproc) cores"
printf '  %s\n' "${took[@]}"
