#!/bin/bash
# Builds garage 2.5.0, the S3 server the tests run against, once, outside the checkout.
#
# Its path is the only line on stdout.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

version=2.5.0
place="$tools/garage-$version"
mkdir -p "$place/lib"

# Two checkouts may come here at once; the second one finds the work done.
exec 9>"$place/lock"
flock 9

if [ ! -x "$place/bin/garage" ]; then
    say "building garage $version in $place (once)" >&2
    cargo install garage --version "$version" --locked --quiet --root "$place" \
        --target-dir "$place/build" >&2
    rm -rf "$place/build"
fi

# garage leaves Nagle's algorithm on, which makes a client wait 40 ms for every small answer.
if [ ! -e "$place/lib/nodelay.so" ]; then
    cc -shared -fPIC -O2 -o "$place/lib/nodelay.so.new" scripts/nodelay.c -ldl
    mv "$place/lib/nodelay.so.new" "$place/lib/nodelay.so"
fi
printf '%s\n' "$place/bin/garage"
