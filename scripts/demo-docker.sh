#!/bin/bash
# The demo's part that needs root: an engine, the plugin beside it, a volume and two containers.
#
# Called by scripts/demo.sh with WORK, BUCKETVOL, ENDPOINT, REGION, BUCKET, PREFIX and OBJECT.
# Status 3: no engine can run here.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

# The plugin's name is its socket's. Another one than an installed daemon's, should there be one.
plugin=bucketvol
# A name nobody else has: on a running Docker a volume of this name would be somebody's.
volume="bucketvol-demo-$$"
image="bucketvol-demo-$$"
docker=(docker)
inside=()
init=
daemon_log="$WORK/engine/bucketvol.log"

cleanup() {
    local status=$?
    trap - EXIT INT TERM
    if [ -n "$init" ]; then
        # The namespaces' first process ends when its stdin closes; the kernel ends what is in them.
        exec 7>&-
        wait "$unshare" 2>/dev/null || true
        for group in "/sys/fs/cgroup/$cgroup" /sys/fs/cgroup/*/"$cgroup"; do
            find "$group" -depth -type d -exec rmdir {} \; 2>/dev/null || true
        done
    elif [ -n "${daemon:-}" ]; then
        "${docker[@]}" volume rm --force "$volume" >/dev/null 2>&1 || true
        "${docker[@]}" image rm "$image" >/dev/null 2>&1 || true
        kill "$daemon" 2>/dev/null || true
        wait "$daemon" 2>/dev/null || true
        if mountpoint -q "$WORK/engine/mounts"; then umount --recursive --lazy "$WORK/engine/mounts"; fi
    fi
    exit $status
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# Waits half a minute for a command to succeed.
within_30_s() {
    local _
    for _ in $(seq 300); do
        if "$@" >/dev/null 2>&1; then return 0; fi
        sleep 0.1
    done
    return 1
}

own_engine() {
    step "a Docker engine of the demo's own, in namespaces of its own: this machine's Docker is not touched"
    has dockerd || return 1
    mkfifo "$WORK/engine/stdin"
    unshare --mount --propagation private --pid --mount-proc --fork --kill-child \
        sh scripts/namespace-init.sh <"$WORK/engine/stdin" >"$WORK/engine/init" 2>&1 &
    unshare=$!
    exec 7>"$WORK/engine/stdin"
    within_30_s grep -qx ready "$WORK/engine/init" || return 1
    init="$(tr -d ' ' <"/proc/$unshare/task/$unshare/children")"
    inside=(nsenter --target "$init" --mount --pid --)
    docker=("${inside[@]}" docker --host unix:///run/docker/engine.sock)
    cgroup="bucketvol-demo-$$"
    "${inside[@]}" dockerd --data-root "$WORK/engine/docker" --exec-root /run/docker/exec \
        --pidfile /run/docker/engine.pid --host unix:///run/docker/engine.sock \
        --cgroup-parent "/$cgroup" --bridge none --iptables=false --ip6tables=false \
        --ip-forward=false --ip-masq=false </dev/null >"$WORK/engine/dockerd.log" 2>&1 7>&- &
    within_30_s "${docker[@]}" info
}

running_engine() {
    step "the Docker that runs on this machine"
    within_30_s docker info || return 1
    plugin=bucketvol-demo
    say "note: an engine keeps the name of every plugin it has met until it is restarted, so that after this"
    say "demo each docker volume ls takes 15 s. The default, an engine of the demo's own, avoids that."
}

if [ "$DEMO_DOCKER" = running ]; then
    running_engine || { say "no Docker answers here"; exit 3; }
elif ! own_engine; then
    say "no engine could be started here:"
    tail -n 5 "$WORK/engine/init" "$WORK/engine/dockerd.log" 2>/dev/null || true
    exit 3
fi
"${docker[@]}" version --format '  Docker {{.Server.Version}} on {{.Server.KernelVersion}}'

step "the plugin: bucketvol serve"
# Ours to read and nobody else's: the daemon takes no keys from a file that another user could change.
install -d -m 0700 "$WORK/engine/credentials"
install -m 0600 "$WORK/credentials/demo.toml" "$WORK/engine/credentials/demo.toml"
socket="/run/docker/plugins/$plugin.sock"
"${inside[@]}" "$BUCKETVOL" serve --socket "$socket" --state-dir "$WORK/engine/state" \
    --cache-dir "$WORK/engine/cache" \
    --base-dir "$WORK/engine/mounts" --credentials-dir "$WORK/engine/credentials" \
    --trust-endpoint "$ENDPOINT" </dev/null >"$daemon_log" 2>&1 7>&- &
daemon=$!
# Yes also when it has ended: asking again would not help.
answers_or_ended() {
    "${inside[@]}" curl --silent --fail --unix-socket "$socket" -X POST http://plugin/Plugin.Activate ||
        ! kill -0 "$daemon"
}
within_30_s answers_or_ended || true
if ! kill -0 "$daemon" 2>/dev/null || [ "$("${inside[@]}" sh -c "test -S $socket && echo yes")" != yes ]; then
    tail -n 20 "$daemon_log"
    die "the plugin did not start"
fi

step "an image of static busybox; no registry is asked"
mkdir -p "$WORK/engine/image/bin" "$WORK/engine/image/tmp"
cp /bin/busybox "$WORK/engine/image/bin/busybox"
for tool in sh cat ls head tee sha256sum cut rm; do ln -s busybox "$WORK/engine/image/bin/$tool"; done
tar -C "$WORK/engine/image" -c . | "${docker[@]}" import - "$image" >/dev/null

# What is shown is what is run.
show() {
    local word line='  $ docker'
    for word in "$@"; do
        case "$word" in *[!A-Za-z0-9_=:/.,@%+-]*) word="'$word'" ;; esac
        line="$line $word"
    done
    say "$line"
    if ! "${docker[@]}" "$@"; then
        tail -n 20 "$daemon_log"
        die "that failed"
    fi
}

step "a volume that is a bucket"
show volume create -d "$plugin" -o "url=s3://$BUCKET/$PREFIX" -o "endpoint=$ENDPOINT" -o "region=$REGION" \
    -o credentials=file:demo "$volume"

step "one container writes 32 MiB"
show run --rm --network none -v "$volume:/data" "$image" sh -ec \
    'head -c 33554432 /dev/urandom | tee /data/hello.bin | sha256sum | cut -d" " -f1' | tee "$WORK/engine/out"
tail -n 1 "$WORK/engine/out" >"$WORK/written"

step "a second container reads it back"
show run --rm --network none -v "$volume:/data" "$image" sh -ec \
    'ls -l /data; sha256sum </data/hello.bin | cut -d" " -f1' | tee "$WORK/engine/out"
tail -n 1 "$WORK/engine/out" >"$WORK/read"

scripts/demo-compare.sh "$WORK" "$OBJECT"

step "tidying up"
show run --rm --network none -v "$volume:/data" "$image" rm /data/hello.bin
show volume rm "$volume"
