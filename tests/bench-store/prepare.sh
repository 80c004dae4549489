#!/usr/bin/env bash
# Lays out the store as it was before its engine was written anew, from the repository's history, in target/bench-store/old,
# so that both can be measured in one run. Its name is another, or cargo would take both for one.
set -euo pipefail
cd "$(dirname "$0")/../.."
commit=87f20420263828bc2c254c8d5e5f7677abff0273
old=target/bench-store/old
[ "$(cat $old/.commit 2>/dev/null)" = $commit ] && exit 0
if ! git cat-file -e $commit 2>/dev/null; then
  echo "the commit $commit is not in this clone; fetch the whole history: git fetch --unshallow" >&2
  exit 1
fi
rm -rf $old && mkdir -p $old
git archive $commit Cargo.toml controller/store | tar -x -C $old
sed -i 's/^name = "causeway-store"$/name = "causeway-store-old"/' $old/controller/store/Cargo.toml
echo $commit >$old/.commit
