#!/usr/bin/env bash
# Brings etcd: Debian's, unpacked into OUT/etcd.root, and a current one built from its Go modules into OUT/peers.go.
# Nothing is installed and no service is started. One that cannot be had is left out, and that is said.   peers.sh OUT
set -uo pipefail
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/peers.go"
out=$(realpath "$1")
version=$(sed -n 's#^require go.etcd.io/etcd/server/v3 v##p' "$here/etcd/go.mod")
"$here/../bench-net/debian_peers.sh" "$out" etcd etcd-server || echo "    etcd 3.4 is left out: Debian's package could not be had"
[ -x "$out/peers.go/etcd" ] && [ "$(cat "$out/peers.go/etcd.version")" = "$version" ] && exit 0
PATH=$PATH:/usr/local/go/bin
command -v go >/dev/null || { echo "    go is not on this machine: etcd $version is left out"; exit 0; }
echo "    building etcd $version from its Go modules: two minutes the first time"
export GOFLAGS=-mod=readonly CGO_ENABLED=0 GOWORK=off
if (cd "$here/etcd" && nice go build -trimpath -ldflags "-s -w" -o "$out/peers.go/etcd" .) >"$out/peers.go/etcd.log" 2>&1; then
  echo "$version" >"$out/peers.go/etcd.version"
else
  tail -n 5 "$out/peers.go/etcd.log"
  echo "    etcd $version is left out: it could not be built, see $out/peers.go/etcd.log"
fi
