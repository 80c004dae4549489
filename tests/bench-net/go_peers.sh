#!/usr/bin/env bash
# Builds the peers that are Go programs out of their published modules, at pinned versions: the kube-proxy of Kubernetes
# and CoreDNS with the plugins of a cluster's Corefile. Into OUT/peers.go; a program that is there already is kept.
# Without Go, or when a build fails, it says which peer is left out and ends well.   go_peers.sh OUT
set -uo pipefail
kubernetes=1.35.4 coredns=1.15.0
mkdir -p "$1/peers.go"
at=$(realpath "$1/peers.go")
if ! command -v go >/dev/null; then
  PATH=$PATH:/usr/local/go/bin
  command -v go >/dev/null || { echo "    go is not on this machine: kube-proxy and CoreDNS are left out"; exit 0; }
fi
# One compiler at a time, and after everything else: this may run beside other work.
# Two of us would only wait for each other.
exec 9>"$at/.lock"
flock 9
export GOFLAGS="-mod=mod -p=1 -trimpath" CGO_ENABLED=0 GOWORK=off

build() { # build NAME VERSION PACKAGE [LINKER-FLAGS]
  local name=$1 version=$2 package=$3 flags=${4:-}
  [ -x "$at/$name-$version" ] && return 0
  echo "    building $name $version from its Go modules; the first time takes many minutes"
  if ! (cd "$at/$name" && nice -n 15 go build -ldflags "-s -w $flags" -o "$at/$name-$version.new" "$package") >"$at/$name.log" 2>&1; then
    tail -n 5 "$at/$name.log"
    echo "    $name is left out: it could not be built, see $at/$name.log"
    return 0
  fi
  mv "$at/$name-$version.new" "$at/$name-$version"
}

# kube-proxy. Kubernetes' module takes its libraries from its own tree, which a consumer does not have: they are published
# as modules of their own, so each is named with the version that belongs to this release.
mkdir -p "$at/kube-proxy"
if [ ! -x "$at/kube-proxy-$kubernetes" ]; then
  cat >"$at/kube-proxy/go.mod" <<MOD
module bench/kube-proxy

go 1.25.0

require k8s.io/kubernetes v$kubernetes
MOD
  if own=$(cd "$at/kube-proxy" && go mod download -json k8s.io/kubernetes@v$kubernetes | sed -n 's/.*"GoMod": "\(.*\)".*/\1/p'); then
    sed -n 's#^\t*\(replace \)\?\(k8s.io/[a-z0-9-]*\) => ./staging/.*#replace \2 => \2 v0.'"${kubernetes#1.}"'#p' "$own" >>"$at/kube-proxy/go.mod"
  fi
fi
build kube-proxy $kubernetes k8s.io/kubernetes/cmd/kube-proxy "-X k8s.io/component-base/version.gitVersion=v$kubernetes"

# CoreDNS, in its documented way of compiling it with a choice of plugins: what is asked for is then the same as in the
# released program, without the libraries of clouds that nobody asks here.
mkdir -p "$at/coredns"
if [ ! -x "$at/coredns-$coredns" ]; then
  printf 'module bench/coredns\n\ngo 1.26.0\n\nrequire github.com/coredns/coredns v%s\n' $coredns >"$at/coredns/go.mod"
  plugins="bind errors health ready metrics cache loop reload loadbalance file forward kubernetes"
  {
    printf 'package main\n\nimport (\n\t"github.com/coredns/coredns/core/dnsserver"\n\t"github.com/coredns/coredns/coremain"\n'
    for plugin in $plugins; do printf '\t_ "github.com/coredns/coredns/plugin/%s"\n' $plugin; done
    printf ')\n\nfunc main() {\n\t// Their order in the chain is that of the released program.\n\tdnsserver.Directives = []string{'
    for name in reload bind ready health prometheus errors loadbalance cache kubernetes file loop forward; do printf '"%s", ' $name; done
    printf '}\n\tcoremain.Run()\n}\n'
  } >"$at/coredns/main.go"
fi
build coredns $coredns . ""
