#!/bin/bash
# Everything there is to check, from a clean clone: says what it will install, installs it, runs it all, and
# ends with a table of what ran.
#
#   YES=1   does not ask (nor does CI=true, where a part that cannot run is a failure)
#   ONLY="lint plain fuse"   runs these parts only
#   LONG=1  4000 random cases for each property, 500 kills, a crash at every point of 25 simulated runs, the
#           tests that take minutes each, and Debian 12's own kernel in an emulated machine
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

scripts/preflight.sh test

scratch="$(mktemp -d "${TMPDIR:-/var/tmp}/bucketvol-run-XXXXXX")"
# Tests of other users' rights walk through it.
chmod 0755 "$scratch"
logs="$(mktemp -d /tmp/bucketvol-logs-XXXXXX)"
# Never across a mount: what is behind it is not ours to remove.
closed_fuse=
tidy() {
    rm -rf --one-file-system "$scratch" "$scratch.before"
    [ -z "$closed_fuse" ] || as_root chmod "$closed_fuse" /dev/fuse
}
trap tidy EXIT
scripts/leftovers.sh before "$scratch"
export CARGO_TERM_COLOR="${CARGO_TERM_COLOR:-auto}" RUST_BACKTRACE=1

table=()
failures=0

# part | outcome | passed | failed | skipped | seconds
row() { table+=("$(printf '%-8s %-8s %7s %7s %8s %8s  %s' "$@")"); }

wanted() { [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $1 "* ]]; }

# Sums what nextest or libtest said of themselves: passed, failed, skipped.
counts() {
    sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
        function take(word,    m) { return match($0, "[0-9]+ " word) ? substr($0, RSTART, RLENGTH) + 0 : 0 }
        / Summary \[/ || /^test result:/ {
            passed += take("passed"); failed += take("failed") + take("timed out")
            skipped += take("ignored")
        }
        END { print passed + 0, failed + 0, skipped + 0 }'
}

# run PART COMMAND...: the command decides; its output is shown and counted.
run() {
    local part="$1" start=$SECONDS outcome=passed log="$logs/$1.log" passed failed skipped
    shift
    step "$part: $*"
    if ! "$@" 2>&1 </dev/null | tee "$log"; then
        outcome=FAILED
        failures=$((failures + 1))
    fi
    read -r passed failed skipped < <(counts "$log")
    if [ "$passed$failed$skipped" = 000 ]; then passed=- failed=- skipped=-; fi
    row "$part" "$outcome" "$passed" "$failed" "$skipped" "$((SECONDS - start))" ""
}

# A part this machine has not what it takes for.
cannot() {
    say "cannot run $1: $2"
    if on_ci; then
        failures=$((failures + 1))
        row "$1" FAILED - - - - "cannot run: $2"
    else
        row "$1" skipped - - - - "$2"
    fi
}

# The variable that names a program which runs the tests for cargo.
runner_variable() {
    printf 'CARGO_TARGET_%s_RUNNER' "$(rustc -vV | sed -n 's/^host: //p' | tr 'a-z-' 'A-Z_')"
}

# tests PART FILTER SKIPS: the tests whose path begins so. One build with every feature serves all parts.
# What needs root is run by sudo where we are not.
tests() {
    local part="$1" runner=()
    shift
    if [ "$part" != plain ] && [ "$(id -u)" != 0 ]; then
        runner=(env "$(runner_variable)=sudo -E")
    fi
    if cargo nextest --version >/dev/null 2>&1; then
        run "$part" env TMPDIR="$scratch" "${runner[@]}" \
            cargo nextest run --all-features --no-fail-fast "${nextest_profile[@]}" -E "$1"
    else
        shift
        # libtest cannot end a test that hangs; this ends the lot.
        run "$part" env TMPDIR="$scratch" RUST_TEST_THREADS=2 "${runner[@]}" \
            timeout --kill-after=20 2400 cargo test --all-features --no-fail-fast "$@"
    fi
}
nextest_profile=()
if [ "${LONG:-}" = 1 ]; then
    nextest_profile=(--profile long --run-ignored all)
    export PROPTEST_CASES="${PROPTEST_CASES:-4000}" BUCKETVOL_KILLS="${BUCKETVOL_KILLS:-500}"
    export BUCKETVOL_WORKER_KILLS="${BUCKETVOL_WORKER_KILLS:-100}"
    export BUCKETVOL_SEEDS="${BUCKETVOL_SEEDS:-25}" BUCKETVOL_FSX="${BUCKETVOL_FSX:-100000}"
elif tree="$(git rev-parse --verify --quiet 'HEAD^{tree}')"; then
    # Random cases are others for each commit, and the same whenever one commit is tested.
    export PROPTEST_RNG_SEED="${PROPTEST_RNG_SEED:-$((16#${tree:0:12}))}"
fi

can_fuse() {
    can_be_root && has fusermount3 || return 1
    [ -c /dev/fuse ] || as_root modprobe fuse 2>/dev/null || true
    [ -c /dev/fuse ]
}
can_docker() {
    has dockerd && has docker && can_be_root && [ -x /bin/busybox ] && has socat &&
        as_root unshare --mount --pid --fork --mount-proc true 2>/dev/null
}

if wanted fmt; then run fmt cargo fmt --check; fi
if wanted lint; then
    # Both: what a feature turns on must not be what makes the rest clean. And a release, without what debugging adds.
    run lint sh -ec 'cargo clippy --all-targets -- -D warnings
        cargo clippy --all-targets --all-features -- -D warnings
        cargo clippy --release -- -D warnings'
fi
if wanted doc; then
    run doc env RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --document-private-items --all-features
fi
if wanted deny; then
    if cargo deny --version >/dev/null 2>&1; then
        run deny cargo deny check
    else
        say "cargo-deny is not installed: licences and advisories are not checked (cargo install cargo-deny)"
        row deny skipped - - - - "cargo-deny is not installed"
    fi
fi
# The modules of tests/suite that mount.
mounting=(crash disk_full fuse_real hand_over mounter posix programs restart session survival)
any_mounting="$(IFS='|' && printf '%s' "${mounting[*]}")"
if wanted plain; then
    # shellcheck disable=SC2046 # a word for each
    tests plain "not test(/^($any_mounting|docker)::/) & not test(garage)" --lib --bins --examples --test suite -- \
        $(printf -- '--skip %s:: ' "${mounting[@]}" docker) --skip garage
fi
if wanted doctest; then run doctest cargo test --doc --all-features; fi
if wanted fuse || wanted s3 || wanted docker; then
    step "garage, the S3 server to test against"
    scripts/garage.sh || say "garage could not be built; the tests that need it will fail"
fi
if wanted fuse; then
    if can_fuse; then
        # As udev leaves it. Where there is no udev, users could not mount, and tests that do would fail.
        if [ "$(stat -c %a /dev/fuse)" != 666 ]; then
            closed_fuse="$(stat -c %a /dev/fuse)"
            say "/dev/fuse is closed to users (mode $closed_fuse); it is opened for the run"
            as_root chmod 0666 /dev/fuse
        fi
        scripts/posix-tools.sh >/dev/null || say "pjdfstest and fsx could not be built; the tests that need them will fail"
        tests fuse "test(/^($any_mounting)::/)" --test suite -- "${mounting[@]/%/::}"
    else
        cannot fuse "needs /dev/fuse, fusermount3 and root"
    fi
fi
if [ "${LONG:-}" = 1 ] && wanted kernel; then
    if has qemu-system-x86_64 && has strip && scripts/old-kernel.sh get; then
        # The one that is left out is a script: whether what was interrupted was done, it could not tell. Without
        # nextest, which would boot a machine for each test.
        run kernel env TMPDIR="$scratch" "$(runner_variable)=$PWD/scripts/old-kernel.sh" BUCKETVOL_WORKER_KILLS=5 \
            cargo test --all-features --test suite -- --nocapture --test-threads=1 survival::nobody_notices \
            --skip a_users_own_mount_is_killed
    else
        cannot kernel "needs x86_64, qemu-system-x86_64, strip, and Debian 12 as apt-get's source"
    fi
fi
if wanted s3; then
    tests s3 'test(garage) & not test(/^(docker|fuse_real|programs)::/)' --test suite -- \
        garage --skip docker:: --skip fuse_real:: --skip programs::
fi
if wanted docker; then
    if can_docker && can_fuse; then
        tests docker 'test(/^docker::/)' --test suite -- docker::
    else
        cannot docker "needs dockerd, docker, static busybox, socat, /dev/fuse, root and namespaces"
    fi
fi
if wanted demo; then
    # Twice: what the first leaves behind, the second would trip over. A release takes longer to build than all of it.
    run demo env TMPDIR="$scratch" YES=1 DEMO_STRICT=1 DEMO_BUILD=debug sh -ec 'scripts/demo.sh && scripts/demo.sh'
fi

run leftovers scripts/leftovers.sh after "$scratch"

printf '\n%-8s %-8s %7s %7s %8s %8s\n' part outcome passed failed skipped seconds
printf '%s\n' "${table[@]}"
say ""
if [ "$failures" -gt 0 ]; then
    say "$failures of ${#table[@]} parts failed; what each said is in $logs"
    exit 1
fi
rm -rf "$logs"
say "all of it passed in $((SECONDS / 60)) min $((SECONDS % 60)) s"
