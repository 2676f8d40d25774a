#!/bin/bash
# Builds pjdfstest and fsx, which test what POSIX says of files, once, outside the checkout.
#
# Their paths are the only lines on stdout.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

printf '%s/bin/pjdfstest\n' "$(install_crate pjdfstest 0.2.2)"
printf '%s/bin/fsx\n' "$(install_crate fsx 0.3.2)"
