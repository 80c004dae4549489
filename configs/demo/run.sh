#!/usr/bin/env bash
# Starts a cluster, brings the shop into it, waits until it answers by its domain, and says what to try next.
# Running it again on a running cluster sets back what was tried out, and changes nothing else.
#   run.sh CAUSEWAY [OUT]      OUT: folder for images and the certificate
# A cluster of another name or other ports: CAUSEWAY_NAME, CAUSEWAY_DATA_DIR, HTTP_PORT and HTTPS_PORT in the environment.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
causeway=$(realpath "$1")
out=${2:-"$here/../../target/shop"}
http=${HTTP_PORT:-8080}
https=${HTTPS_PORT:-8443}
steps=5
number=0
step() {
  number=$((number + 1))
  printf '\033[1m==> [%s/%s] %s\033[0m\n' "$number" "$steps" "$*"
}

step "Packing the images of the shop (nginx and redis from Debian's packages, shop-api)"
"$here/images.sh" "$causeway" "$out" "$(dirname "$causeway")/shop-api"

step "Starting the cluster"
"$causeway" up --detach --http-port "$http" --https-port "$https"

step "Loading the images"
"$causeway" image load "$out/nginx.tar" "$out/redis.tar" "$out/shop-api.tar"

step "Applying configs/demo, and waiting until the shop is ready"
if [ ! -f "$out/shop.crt" ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 365 -subj /CN=shop.localhost \
    -addext subjectAltName=DNS:shop.localhost -keyout "$out/shop.key" -out "$out/shop.crt.new" 2>/dev/null
  mv "$out/shop.crt.new" "$out/shop.crt"
fi
(
  umask 077
  cat >"$out/secret.yaml" <<YAML
apiVersion: v1
kind: Secret
metadata: {name: shop-tls, namespace: shop}
type: kubernetes.io/tls
data:
  tls.crt: $(base64 -w0 <"$out/shop.crt")
  tls.key: $(base64 -w0 <"$out/shop.key")
YAML
)
# What somebody has tried out (another number of replicas) is set back to what the files say.
"$causeway" apply -f "$here" -f "$out/secret.yaml" --force-conflicts --wait --timeout 180

step "Calling the shop by its domain"
answer=
for _ in $(seq 1 120); do
  answer=$(curl -sf --max-time 5 --resolve "shop.localhost:$http:127.0.0.1" "http://shop.localhost:$http/api/orders") && break
  sleep 0.5
done
[ -n "$answer" ] || { echo "the shop does not answer at http://shop.localhost:$http/ ; look at: $causeway status" >&2; exit 1; }
echo "http://shop.localhost:$http/api/orders says $answer"
page=$(curl -sfk --max-time 5 --resolve "shop.localhost:$https:127.0.0.1" "https://shop.localhost:$https/") || page=
[[ $page == *'<title>Causeway shop'* ]] || { echo "the shop does not show its page at https://shop.localhost:$https/ ; look at: $causeway status" >&2; exit 1; }
echo "https://shop.localhost:$https/ shows the page"

cat <<EOF

The shop is open. Try:
  curl http://shop.localhost:$http/                       the page, by its domain (a browser works, too)
  curl -k https://shop.localhost:$https/                   the same with TLS
  curl -X POST http://shop.localhost:$http/api/orders     order something; Redis counts
  export KUBECONFIG=\$HOME/.causeway-demo; $causeway kubeconfig >\$KUBECONFIG
  kubectl get pods,services,ingress -n shop -o wide
  kubectl delete pod redis-0 -n shop                     its volume keeps the orders
  kubectl scale deployment/web -n shop --replicas=4
  ip netns exec cw-default-lan curl http://10.90.0.11:30080/    the node port, from the nodes' segment
  $causeway status
  $causeway down                                         stops everything; --delete-data forgets it
EOF
if ! command -v kubectl >/dev/null; then
  cat <<EOF

kubectl is not on this machine. It is one file, and any version from 1.31 on will do:
  curl -Lo /usr/local/bin/kubectl https://dl.k8s.io/release/v1.35.0/bin/linux/amd64/kubectl && chmod +x /usr/local/bin/kubectl
or, where Go is: tests/kubectl/build.sh /usr/local/bin/kubectl
EOF
fi
