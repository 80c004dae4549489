#!/usr/bin/env bash
# Builds kubectl from its Go modules, for machines that have none or one that is too old.   build.sh OUTPUT
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(realpath -m "$1")
if ! command -v go >/dev/null; then
  echo "kubectl (1.31 or newer) is not on this machine, and to build it Go 1.25 or newer is needed on the PATH" >&2
  exit 1
fi
export GOFLAGS=-mod=readonly CGO_ENABLED=0
cd "$here"
version=$(go list -m -f '{{.Version}}' k8s.io/kubectl)
go build -trimpath -ldflags "-s -w -X k8s.io/component-base/version.gitVersion=v1.${version#v0.}" -o "$out" .
