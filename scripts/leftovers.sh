#!/bin/bash
# Looks for what a run has left on the machine: processes, mounts, control groups, files, and on the
# machine's own Docker, loop devices and network namespaces whatever was not there before.
#
#   scripts/leftovers.sh before SCRATCH     remembers what there is
#   scripts/leftovers.sh after SCRATCH      says what is there now and was not, and fails if there is any
#
# SCRATCH is the run's TMPDIR: every process, mount and file of the run carries its name.
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

mode="$1"
scratch="$2"
remembered="$scratch.before"
# The word itself must not be found in our own children.
unset TMPDIR

# Things that do not carry the run's name; compared with what there was before. What is absent is no error.
shared_things() {
    set +e
    losetup --noheadings --list --output NAME 2>/dev/null | sed 's/^ */loop device /'
    for directory in /run/netns /run/docker/netns /var/run/docker/netns; do
        ls "$directory" 2>/dev/null | sed "s|^|network namespace $directory/|"
    done
    find /sys/fs/cgroup -maxdepth 2 -name 'bucketvol-*' 2>/dev/null | sed 's/^/control group /'
    find /run/docker/plugins -name 'bucketvol*' 2>/dev/null | sed 's/^/plugin socket /'
    grep -o ' /[^ ]* .* - fuse[^ ]* bucketvol' /proc/self/mountinfo | sed 's/^/mount/'
    if has docker && timeout 5 docker info >/dev/null 2>&1; then
        timeout 20 docker ps --all --quiet | sed 's/^/container /'
        timeout 20 docker volume ls --quiet | sed 's/^/volume /'
    fi
    true
}

own_things() {
    set +e
    grep -F "$scratch" /proc/self/mountinfo | cut -d' ' -f5 | sed 's/^/mount /'
    local pid line
    { grep -lsaF "TMPDIR=$scratch" /proc/[0-9]*/environ
      grep -lsaF "$scratch/" /proc/[0-9]*/cmdline; } | cut -d/ -f3 | sort -u |
        while read -r pid; do
            # Ourselves, and what ended while we looked.
            line="$(tr '\0' ' ' <"/proc/$pid/cmdline" | cut -c1-160)"
            if [ "$pid" = $$ ] || [ -z "$line" ]; then continue; fi
            printf 'process %s: %s\n' "$pid" "$line"
        done
    find "$scratch" -mindepth 1 -maxdepth 1 2>/dev/null | sed 's/^/file /'
    true
}

case "$mode" in
before)
    shared_things | sort >"$remembered"
    ;;
after)
    # What ends asynchronously, such as the kernel's burying of a namespace, gets ten seconds.
    start=$SECONDS
    while [ $((SECONDS - start)) -lt 10 ]; do
        found="$(own_things; shared_things | sort | comm -13 "$remembered" -)"
        [ -n "$found" ] || break
        sleep 0.5
    done
    rm -f "$remembered"
    if [ -n "$found" ]; then
        printf 'left behind:\n%s\n' "$found"
        exit 1
    fi
    say "nothing is left behind: no mount, process, container, volume, loop device, network namespace or file"
    ;;
*)
    die "before or after, not $mode"
    ;;
esac
