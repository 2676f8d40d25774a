#!/bin/bash
# Fetches the demo's object past us and compares it with what was written and with what was read back.
#
#   scripts/demo-compare.sh WORK URL      WORK holds the SHA-256 of both, and curl's configuration
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh
work="$1" url="$2"

step "the object, fetched past us"
say "  $ curl --aws-sigv4 … $url | sha256sum"
object="$(curl --config "$work/curl" "$url" | sha256sum | cut -d' ' -f1)"
say "  written   $(cat "$work/written")"
say "  read back $(cat "$work/read")"
say "  object    $object"
[ "$(cat "$work/written")" = "$object" ] && [ "$(cat "$work/read")" = "$object" ] || die "they differ"
say "The three are the same."
