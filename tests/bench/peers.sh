#!/usr/bin/env bash
# Downloads Debian's nginx and HAProxy with the libraries they need and unpacks them into OUT/peers.root.
# Nothing is installed and no service is started.   peers.sh OUT
set -euo pipefail
mkdir -p "$1"
out=$(realpath "$1")
tree="$out/peers.root" debs="$out/peers.debs"
[ -f "$tree/.complete" ] && exit 0
rm -rf "$tree" "$debs" && mkdir -p "$tree" "$debs"
wanted=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
  --no-pre-depends nginx haproxy | grep -E '^(lib[a-z0-9]|zlib)' | grep -vE '^lib(perl|debconf|pam|c6|gcc)' | sort -u)
# A name may be virtual or of another architecture: only what can be had is downloaded, the packages themselves must be.
real=()
for package in $wanted; do
  if apt-cache show --no-all-versions "$package" >/dev/null 2>&1; then real+=("$package"); fi
done
(cd "$debs" && apt-get -qq -o APT::Sandbox::User=root download nginx haproxy "${real[@]}")
for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$tree"; done
rm -rf "$debs"
touch "$tree/.complete"
