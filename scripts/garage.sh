#!/bin/bash
# Builds garage 2.5.0, the S3 server the tests run against, once, outside the checkout.
#
# Its path is the only line on stdout.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

install_crate garage 2.5.0 >/dev/null
place="$tools/garage-2.5.0"
mkdir -p "$place/lib"

# garage leaves Nagle's algorithm on, which makes a client wait 40 ms for every small answer.
if [ ! -e "$place/lib/nodelay.so" ]; then
    cc -shared -fPIC -O2 -o "$place/lib/nodelay.so.new" scripts/nodelay.c -ldl
    mv "$place/lib/nodelay.so.new" "$place/lib/nodelay.so"
fi
printf '%s\n' "$place/bin/garage"
