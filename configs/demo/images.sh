#!/usr/bin/env bash
# Packs the demo's images as OCI archives from Debian's packages and our own service; no registry, no Dockerfile.
# Nothing is installed: packages are downloaded and unpacked into a folder.
#   images.sh fetch OUT                  only downloads and unpacks the packages, which may be done beside the build
#   images.sh CAUSEWAY OUT SHOP_API      CAUSEWAY, SHOP_API: the built programs; OUT: folder for the archives
set -euo pipefail
mkdir -p "$2"
out=$(realpath "$2")

# unpack NAME PACKAGE…: downloads packages with the libraries they need and unpacks them into $out/NAME.root
unpack() {
  local name=$1; shift
  local tree="$out/$name.root" debs="$out/$name.debs"
  # One at a time: packages may be fetched beside the build.
  exec 9>"$out/.lock" && flock 9
  [ -f "$tree/.complete" ] && return
  rm -rf "$tree" "$debs" && mkdir -p "$tree" "$debs"
  local wanted
  wanted=$(apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces \
    --no-enhances --no-pre-depends "$@" | grep -E '^(lib[a-z0-9]|zlib)' | grep -vE '^lib(perl|debconf|pam)' | sort -u)
  # A name may be virtual or of another architecture: only what can be had is downloaded, the packages themselves must be.
  local real
  mapfile -t real < <(apt-cache show --no-all-versions $wanted 2>/dev/null | sed -n 's/^Package: //p' | sort -u)
  (cd "$debs" && apt-get -qq -o APT::Sandbox::User=root download "$@" "${real[@]}")
  for deb in "$debs"/*.deb; do dpkg-deb -x "$deb" "$tree"; done
  rm -rf "$debs"
  touch "$tree/.complete"
}

# stage NAME BINARY: copies a binary of $out/NAME.root with exactly the libraries it loads into $out/NAME.image
stage() {
  local tree="$out/$1.root" image="$out/$1.image" binary=$2
  rm -rf "$image" && mkdir -p "$image/etc" "$image/tmp"
  chmod 1777 "$image/tmp"
  install -D "$tree$binary" "$image$binary"
  LD_LIBRARY_PATH="$tree/lib/x86_64-linux-gnu:$tree/usr/lib/x86_64-linux-gnu" ldd "$tree$binary" | grep -oE '/[^ ]+\.so[^ ]*' |
    while read -r library; do
      install -D "$library" "$image/lib/x86_64-linux-gnu/$(basename "$library")"
    done
  mkdir -p "$image/lib64"
  cp -L /lib64/ld-linux-x86-64.so.2 "$image/lib64/"
  printf 'root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n' >"$image/etc/passwd"
  printf 'root:x:0:\nnogroup:x:65534:\n' >"$image/etc/group"
}

if [ "$1" = fetch ]; then
  unpack nginx nginx nginx-common
  unpack redis redis-server redis-tools
  exit
fi
causeway=$(realpath "$1")
api=$(realpath "$3")

if [ ! -f "$out/nginx.tar" ]; then
  unpack nginx nginx nginx-common
  stage nginx /usr/sbin/nginx
  mkdir -p "$out/nginx.image/etc/nginx" "$out/nginx.image/srv" "$out/nginx.image/var/lib/nginx" "$out/nginx.image/var/log/nginx"
  "$causeway" image pack causeway.local/demo/nginx:1 --tree "$out/nginx.image:/" --expose 80 \
    --entrypoint /usr/sbin/nginx --cmd -g --cmd 'daemon off;' --stop-signal SIGQUIT --output "$out/nginx.tar"
fi
if [ ! -f "$out/redis.tar" ]; then
  unpack redis redis-server redis-tools
  stage redis /usr/bin/redis-check-rdb
  install -D "$out/redis.image/usr/bin/redis-check-rdb" "$out/redis.image/usr/bin/redis-server"
  rm "$out/redis.image/usr/bin/redis-check-rdb"
  mkdir -p "$out/redis.image/data"
  "$causeway" image pack causeway.local/demo/redis:1 --tree "$out/redis.image:/" --expose 6379 --workdir /data \
    --entrypoint /usr/bin/redis-server --output "$out/redis.tar"
fi

# Our own service, with the libraries it loads.
if [ ! -f "$out/shop-api.tar" ] || [ "$api" -nt "$out/shop-api.tar" ]; then
  rm -rf "$out/shop-api.image" && mkdir -p "$out/shop-api.image"
  cp "$api" "$out/shop-api.image/shop-api"
  ldd "$api" | grep -oE '/[^ ]+\.so[^ ]*' | while read -r library; do
    install -D "$library" "$out/shop-api.image$library"
  done
  "$causeway" image pack causeway.local/demo/shop-api:1 --tree "$out/shop-api.image:/" --entrypoint /shop-api --expose 8080 \
    --output "$out/shop-api.tar"
fi
