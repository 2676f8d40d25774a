#!/bin/bash
# The whole of it in a minute: a bucket becomes a Docker volume, one container writes, a second one reads,
# and curl fetches the object past us. Nothing of it stays but what was built and installed.
#
#   YES=1                 installs without asking (so does CI)
#   DEMO_URL=s3://b/p     your own bucket, reached as AWS_ENDPOINT_URL, AWS_REGION and AWS_ACCESS_KEY_ID say
#   DEMO_DOCKER=running   the Docker that runs on this machine, rather than an engine of the demo's own
#   DEMO_DOCKER=none      without Docker: the same by `bucketvol mount`
#   DEMO_STRICT=1         a demo without Docker is a failure (so it is on CI)
#   DEMO_BUILD=debug      what cargo has built for testing, rather than a release
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

step "what this machine needs"
scripts/preflight.sh demo

build="${DEMO_BUILD:-release}"
case "$build" in
release) flags=(--release) ;;
debug) flags=(--all-features) ;;
*) die "DEMO_BUILD is release or debug, not $build" ;;
esac
step "a $build build"
target="$(target_directory)"
cargo build "${flags[@]}" --bin bucketvol --example s3_server
bucketvol="$target/$build/bucketvol"

work="$(mktemp -d "${TMPDIR:-/var/tmp}/bucketvol-demo-XXXXXX")"
# fusermount3 and the engine walk through it; what is secret in it is closed by itself.
chmod 0755 "$work"
server=
mount=
cleanup() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "$mount" ]; then
        kill "$mount" 2>/dev/null || true
        wait "$mount" 2>/dev/null || true
        if mountpoint -q "$work/mnt"; then fusermount3 -uz "$work/mnt"; fi
    fi
    if [ -n "$server" ]; then
        kill "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    # Root's share of it: the engine's layers.
    if [ -e "$work/engine" ]; then
        as_root rm -rf --one-file-system "$work"
    else
        rm -rf --one-file-system "$work"
    fi
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [ -n "${DEMO_URL:-}" ]; then
    case "$DEMO_URL" in s3://?*) ;; *) die "DEMO_URL is $DEMO_URL: s3://bucket or s3://bucket/prefix is meant" ;; esac
    [ -n "${AWS_ACCESS_KEY_ID:-}" ] && [ -n "${AWS_SECRET_ACCESS_KEY:-}" ] ||
        die "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for $DEMO_URL"
    region="${AWS_REGION:-${AWS_DEFAULT_REGION:-us-east-1}}"
    endpoint="${AWS_ENDPOINT_URL_S3:-${AWS_ENDPOINT_URL:-https://s3.$region.amazonaws.com}}"
    access_key_id="$AWS_ACCESS_KEY_ID" secret_access_key="$AWS_SECRET_ACCESS_KEY"
    session_token="${AWS_SESSION_TOKEN:-}"
    place="${DEMO_URL#s3://}"
    place="${place%/}"
else
    step "an S3 server on loopback (examples/s3_server.rs), with its objects in $work/s3"
    "$target/$build/examples/s3_server" --root "$work/s3" --bucket demo >"$work/server" &
    server=$!
    for _ in $(seq 100); do
        if grep -qsx ready "$work/server"; then break; fi
        kill -0 "$server" 2>/dev/null || die "the S3 server ended"
        sleep 0.1
    done
    value() { sed -n "s/^$1=//p" "$work/server"; }
    endpoint="$(value endpoint)" region="$(value region)" session_token=
    access_key_id="$(value access_key_id)" secret_access_key="$(value secret_access_key)"
    place=demo
fi
bucket="${place%%/*}"
# A prefix of its own, so that a bucket with something in it stays as it is.
prefix="${place#"$bucket"}"
prefix="${prefix#/}"
prefix="${prefix:+$prefix/}bucketvol-demo-$$"

# Secrets go into files only we can read, never onto a command line.
(
    umask 077
    mkdir "$work/credentials"
    {
        printf 'access_key_id = "%s"\nsecret_access_key = "%s"\n' "$access_key_id" "$secret_access_key"
        [ -z "$session_token" ] || printf 'session_token = "%s"\n' "$session_token"
    } >"$work/credentials/demo.toml"
    {
        printf 'silent\nshow-error\nfail\nuser = "%s:%s"\n' "$access_key_id" "$secret_access_key"
        printf 'aws-sigv4 = "aws:amz:%s:s3"\nheader = "x-amz-content-sha256: UNSIGNED-PAYLOAD"\n' "$region"
        [ -z "$session_token" ] || printf 'header = "x-amz-security-token: %s"\n' "$session_token"
    } >"$work/curl"
)
say "bucket $bucket at $endpoint, keys below $prefix/"

object="$endpoint/$bucket/$prefix/hello.bin"

by_mount() {
    step "the same by bucketvol mount"
    mkdir "$work/mnt" "$work/state"
    say "  $ bucketvol mount s3://$bucket/$prefix $work/mnt -o endpoint=$endpoint,region=$region"
    (
        export AWS_ACCESS_KEY_ID="$access_key_id" AWS_SECRET_ACCESS_KEY="$secret_access_key"
        [ -z "$session_token" ] || export AWS_SESSION_TOKEN="$session_token"
        exec "$bucketvol" mount "s3://$bucket/$prefix" "$work/mnt" \
            -o "endpoint=$endpoint,region=$region,state_dir=$work/state,cache_dir=$work/cache" >"$work/mount"
    ) &
    mount=$!
    for _ in $(seq 300); do
        if grep -qsx ready "$work/mount"; then break; fi
        kill -0 "$mount" 2>/dev/null || die "the mount ended"
        sleep 0.1
    done
    grep -qsx ready "$work/mount" || die "no mount within 30 s"
    head -c 33554432 /dev/urandom | tee "$work/mnt/hello.bin" | sha256sum | cut -d' ' -f1 >"$work/written"
    sha256sum <"$work/mnt/hello.bin" | cut -d' ' -f1 >"$work/read"
    scripts/demo-compare.sh "$work" "$object"
    step "tidying up"
    rm "$work/mnt/hello.bin"
    "$bucketvol" unmount "$work/mnt"
    wait "$mount"
    mount=
}

# Status 3 means that this machine cannot run an engine; anything else is the demo's own success or failure.
by_docker() {
    local status=0
    can_be_root || return 3
    has docker || return 3
    # The words first, so that a password prompt comes as no surprise.
    [ "$(id -u)" = 0 ] || say "sudo is used for Docker and for the mount"
    mkdir "$work/engine"
    as_root env WORK="$work" BUCKETVOL="$bucketvol" DEMO_DOCKER="${DEMO_DOCKER:-own}" \
        ENDPOINT="$endpoint" REGION="$region" BUCKET="$bucket" PREFIX="$prefix" \
        OBJECT="$object" bash scripts/demo-docker.sh || status=$?
    return $status
}

status=0
if [ "${DEMO_DOCKER:-}" = none ]; then status=3; else by_docker || status=$?; fi
case $status in
0) ;;
3)
    if [ "${DEMO_DOCKER:-}" = none ]; then
        say "without Docker, as asked"
    else
        say "Docker cannot be used here, so no container is shown"
    fi
    if [ "${DEMO_STRICT:-}" = 1 ] || { on_ci && [ "${DEMO_DOCKER:-}" != none ]; }; then
        die "the demo has to show Docker here"
    fi
    by_mount
    ;;
*) die "the demo failed" ;;
esac

# The directory's own marker, where a store has been given one.
curl --config "$work/curl" --request DELETE "$endpoint/$bucket/$prefix/" >/dev/null 2>&1 || true

step "done"
say "Everything the demo made is gone: volume, containers, image, engine, server, and the object."
say "What stays: $bucketvol (rm -rf $target),"
say "the packages installed above if any (apt-get remove), and cargo's downloads in ~/.cargo."
