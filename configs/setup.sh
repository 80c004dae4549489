#!/usr/bin/env bash
# Installs the Debian packages that are missing, and only those: setup.sh demo | test | bench
set -euo pipefail
missing=()
need() { # need PACKAGE FILE-OR-COMMAND
  if [[ $2 == /* ]]; then [ -e "$2" ] || missing+=("$1"); else PATH=$PATH:/usr/sbin:/sbin command -v "$2" >/dev/null || missing+=("$1"); fi
}
demo() {
  need containerd containerd
  need runc runc
  need nftables nft
  need iptables iptables
  need protobuf-compiler protoc
  need libprotobuf-dev /usr/include/google/protobuf/descriptor.proto
  need gcc cc
  need libc6-dev /usr/include/stdlib.h
  need cmake cmake
  need pkg-config pkg-config
  need libzstd-dev /usr/include/zstd.h
  need make make
  need curl curl
  need openssl openssl
  need iproute2 ip
}
tests() {
  demo
  need busybox-static /bin/busybox
  need iputils-ping ping
  need bind9-dnsutils dig
  need unbound unbound
  need bsdutils script
  need iputils-arping arping
  need ndisc6 ndisc6
}
bench() {
  tests
  need wrk wrk
  need dnsperf dnsperf
  need strace strace
  need nghttp2-client h2load
  need python3-pip pip3
}
case "${1:-}" in
  demo) demo ;;
  test) tests ;;
  bench) bench ;;
  *) echo "usage: $0 demo|test|bench" >&2; exit 2 ;;
esac
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ]; then echo "setup needs root to install: ${missing[*]}" >&2; exit 1; fi
  echo "installing ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  apt-get -qq update
  apt-get -qq -y --no-install-recommends install "${missing[@]}" >/dev/null
fi
# The demo does without kubectl; tests and benches drive the real one, and build it where it is missing or too old (exec
# and attach are served over WebSocket, which kubectl uses by default from 1.31 on).
if [ "$1" != demo ]; then
  tools="$(cd "$(dirname "$0")/.." && pwd)/target/tools"
  PATH=$tools:$PATH
  minor=$(kubectl version --client -o json 2>/dev/null | grep -oE '"minor": *"[0-9]+' | grep -oE '[0-9]+$' || echo 0)
  if [ "$minor" -lt 31 ]; then
    echo "building kubectl from its Go modules"
    "$(dirname "$0")/../tests/kubectl/build.sh" "$tools/kubectl"
  fi
fi
