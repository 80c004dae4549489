#!/usr/bin/env bash
# Starts a cluster, brings the shop into it, waits until it answers by its domain, and says what to try next.
# Running it again on a running cluster changes nothing.   run.sh CAUSEWAY
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
causeway=$(realpath "$1")
out="$here/../../target/demo"
step() { printf '\033[1m==> %s\033[0m\n' "$*"; }

step "Building the images of the shop (nginx, redis, shop-api)"
"$here/images.sh" "$causeway" "$out"

step "Starting the cluster"
"$causeway" up --detach
KUBECONFIG=$(mktemp)
trap 'rm -f "$KUBECONFIG"' EXIT
export KUBECONFIG
"$causeway" kubeconfig >"$KUBECONFIG"

step "Loading the images"
"$causeway" image load "$out/nginx.tar" "$out/redis.tar" "$out/shop-api.tar"

step "Applying configs/demo"
kubectl apply -f "$here/00-namespace.yaml"
if ! kubectl -n shop get secret shop-tls >/dev/null 2>&1; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=shop.localhost \
    -addext subjectAltName=DNS:shop.localhost -keyout "$out/shop.key" -out "$out/shop.crt" 2>/dev/null
  kubectl -n shop create secret tls shop-tls --cert "$out/shop.crt" --key "$out/shop.key"
fi
kubectl apply -f "$here"

step "Waiting until the shop is ready"
kubectl -n shop rollout status statefulset/redis deployment/api deployment/web --timeout=180s 2>/dev/null || {
  for what in statefulset/redis deployment/api deployment/web; do
    kubectl -n shop rollout status "$what" --timeout=180s
  done
}
answer=
for _ in $(seq 1 120); do
  answer=$(curl -sf --max-time 5 --resolve shop.localhost:8080:127.0.0.1 http://shop.localhost:8080/api/orders) && break
  sleep 0.5
done
[ -n "$answer" ] || { echo "the shop does not answer at http://shop.localhost:8080/ ; look at: $causeway status" >&2; exit 1; }
echo "http://shop.localhost:8080/api/orders says $answer"
curl -sfk --max-time 5 --resolve shop.localhost:8443:127.0.0.1 https://shop.localhost:8443/ | grep -q '<title>Causeway shop' &&
  echo "https://shop.localhost:8443/ shows the page"

cat <<EOF

The shop is open. Try:
  curl http://shop.localhost:8080/                       the page, by its domain (a browser works, too)
  curl -k https://shop.localhost:8443/                   the same with TLS
  curl -X POST http://shop.localhost:8080/api/orders     order something; Redis counts
  export KUBECONFIG=\$HOME/.causeway-demo; $causeway kubeconfig >\$KUBECONFIG
  kubectl get pods,services,ingress -n shop -o wide
  kubectl delete pod redis-0 -n shop                     its volume keeps the orders
  kubectl scale deployment/web -n shop --replicas=4
  ip netns exec cw-default-lan curl http://10.90.0.11:30080/    the node port, from the nodes' segment
  $causeway status
  $causeway down                                         stops everything; --delete-data forgets it
EOF
