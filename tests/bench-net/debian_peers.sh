#!/usr/bin/env bash
# Downloads Debian packages of peers with the libraries they need and unpacks them into OUT/NAME.root.
# Nothing is installed and no service is started.   debian_peers.sh OUT NAME PACKAGE…
set -euo pipefail
mkdir -p "$1"
out=$(realpath "$1") name=$2
shift 2
tree="$out/$name.root" debs="$out/$name.debs"
[ -f "$tree/.complete" ] && exit 0
rm -rf "$tree" "$debs" && mkdir -p "$tree" "$debs"
wanted=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances \
  --no-pre-depends "$@" | grep -E '^(lib[a-z0-9]|zlib)' | grep -vE '^lib(perl|debconf|pam|c6|gcc)' | sort -u)
# A name may be virtual or of another architecture: only what can be had is downloaded, the packages themselves must be.
real=()
for package in $wanted; do
  if apt-cache show --no-all-versions "$package" >/dev/null 2>&1; then real+=("$package"); fi
done
(cd "$debs" && apt-get -qq -o APT::Sandbox::User=root download "$@" "${real[@]}")
for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$tree"; done
rm -rf "$debs"
touch "$tree/.complete"
