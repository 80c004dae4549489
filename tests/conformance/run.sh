#!/usr/bin/env bash
# Runs the Gateway API's own conformance suite against a cluster that is started for it, and writes its report.
#   run.sh CAUSEWAY [all|core|TEST]
# `all` runs every profile and every feature we say we have and writes docs/conformance/; `core` runs what the profiles
# demand of everybody; anything else is the name of one test. Needs Go, and the modules of go.mod.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
causeway=$(realpath "$1")
what=${2:-all}
out="$here/../../target/conformance"
name=conformance
features=v1.6.3
step() { printf '\033[1m==> %s\033[0m\n' "$*"; }
export CAUSEWAY_NAME=$name GOFLAGS=-mod=readonly CGO_ENABLED=0
mkdir -p "$out"

if ! command -v go >/dev/null; then
  # Debian's own is too old.
  echo "the conformance suite was NOT run: it needs Go 1.26 or newer on the PATH (https://go.dev/dl)" >&2
  exit 1
fi
step "Building the suite, its echo server and its DNS server"
(cd "$here" && go test -c -o "$out/suite" . && go build -o "$out/echo-basic" sigs.k8s.io/gateway-api/conformance/echo-basic)
(cd "$here/coredns" && go build -o "$out/coredns" .)
(cd "$here/h2spec" && go build -o "$out/h2spec" github.com/summerwind/h2spec/cmd/h2spec)
crds=$(cd "$here" && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api)/config/crd/experimental
manifests=$(cd "$here" && go list -m -f '{{.Dir}}' sigs.k8s.io/gateway-api/conformance)
images=()
# The echo server has one image under the name of every version that the manifests ask for.
for tag in $(grep -rhoE 'gateway-api/echo-basic:[^ "]+' "$manifests/base" "$manifests/tests" | sort -u | cut -d: -f2); do
  "$causeway" image pack "registry.k8s.io/gateway-api/echo-basic:$tag" --file "$out/echo-basic:/echo-basic" \
    --entrypoint /echo-basic --output "$out/echo-basic-$tag.tar"
  images+=("$out/echo-basic-$tag.tar")
done
"$causeway" image pack registry.k8s.io/coredns/coredns:v1.12.2 --file "$out/coredns:/coredns" --entrypoint /coredns \
  --output "$out/coredns.tar"
images+=("$out/coredns.tar")

step "Starting a cluster"
cleanup() { "$causeway" down --name "$name" --delete-data >/dev/null 2>&1 || true; }
trap cleanup EXIT
cleanup
"$causeway" up --name "$name" --api-port 26443 --http-port 28080 --https-port 28443 --detach
"$causeway" image load "${images[@]}"
# Everything from here on speaks from the segment of the cluster's nodes, where Gateways' addresses are.
export KUBECONFIG="$out/kubeconfig"
"$causeway" kubeconfig | sed 's#https://127.0.0.1:26443#https://10.90.0.1:6443#' >"$KUBECONFIG"
inside() { ip netns exec "cw-$name-lan" "$@"; }

if [ "$what" = all ] || [ "$what" = core ]; then
  step "HTTP/2 as RFC 9113 and RFC 7541 have it (h2spec)"
  # Nothing is routed: requests are answered with 404 at their head, and the answer may overtake what is wrong with
  # their body, which some of the cases do not foresee. So there are eight tries, and each case has to pass in one.
  h2spec() {
    local log=$1 try
    shift
    rm -f "$log.failed"
    for try in 1 2 3 4 5 6 7 8; do
      if "$out/h2spec" -h 127.0.0.1 --strict "$@" >"$log"; then return; fi
      # It has come to its end, or nothing can be said of its cases.
      tail -n 1 "$log" | grep -qE ' passed, [0-9]+ skipped, [1-9][0-9]* failed$' || break
      sed -n '/^Failures/,$p' "$log" | grep '×' | sed 's/^ *//' | sort -u >"$log.now"
      if [ -f "$log.failed" ]; then comm -12 "$log.now" "$log.failed" >"$log.both"; else cp "$log.now" "$log.both"; fi
      mv "$log.both" "$log.failed"
      if [ ! -s "$log.failed" ]; then return; fi
    done
    cat "$log"
    return 1
  }
  h2spec "$out/h2spec.log" -p 28443 -t -k
  # In clear text a preface that is none is HTTP/1.1, and answered as such: section 3.5 does not apply.
  h2spec "$out/h2spec-clear.log" -p 28080 generic http2/4 http2/5 http2/6 http2/7 http2/8 hpack
  tail -qn 1 "$out/h2spec.log" "$out/h2spec-clear.log"
fi

step "Installing the kinds of the Gateway API $features"
for file in "$crds"/gateway.networking.k8s.io_*.yaml "$crds"/gateway.networking.x-k8s.io_*.yaml; do
  case $file in *vap_*) continue ;; esac
  inside kubectl apply --server-side --force-conflicts -f "$file" >/dev/null
done
inside kubectl wait --for=condition=Established crd --all --timeout=60s >/dev/null
inside kubectl wait --for=condition=Accepted gatewayclass/causeway --timeout=60s

arguments=(
  -test.v -test.timeout=80m -gateway-class=causeway -usable-address=10.90.0.249 -unusable-address=10.99.99.99
  -organization=causeway -project=causeway -url=https://causeway.dev "-version=$("$causeway" --version | cut -d' ' -f2)"
  -contact=https://causeway.dev
)
case $what in
  all)
    mkdir -p "$here/../../docs/conformance"
    arguments+=(
      -conformance-profiles=GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS,GATEWAY-TCP,GATEWAY-UDP
      "-report-output=$here/../../docs/conformance/gateway-api-$features.yaml"
    )
    ;;
  core)
    arguments+=(
      -supported-features=Gateway,HTTPRoute,GRPCRoute,TLSRoute,TLSRouteModeTerminate,TLSRouteModeMixed,TCPRoute,UDPRoute,ReferenceGrant
      -conformance-profiles=GATEWAY-HTTP,GATEWAY-GRPC,GATEWAY-TLS,GATEWAY-TCP,GATEWAY-UDP
    )
    ;;
  *) arguments+=("-run-test=$what") ;;
esac
step "Running the suite ($what)"
status=0
inside "$out/suite" "${arguments[@]}" >"$out/log" 2>&1 || status=$?
# What passed and failed; what was not asked for is not worth a line.
grep -E '^ *--- (PASS|FAIL): TestGatewayAPI/[^/ ]+ ' "$out/log" | sed 's/^ *//' | sort || true
if ! grep -q -- '--- PASS: TestGatewayAPI/' "$out/log"; then status=1; fi
if [ "$status" != 0 ]; then
  echo "the suite failed; its log is $out/log" >&2
fi
exit "$status"
