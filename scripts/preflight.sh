#!/bin/bash
# Says what a machine still needs for `make demo` or `make test`, what that takes, asks, and installs it.
#
#   scripts/preflight.sh demo|test
set -euo pipefail
cd "$(dirname "$0")/.."
. scripts/lib.sh

purpose="${1:?demo or test}"

# What cannot be installed for you comes first.
absent=()
has cargo || absent+=("a Rust toolchain: https://rustup.rs (rust-toolchain.toml names the release; 2 minutes, 1 GB)")
has cc || absent+=("a C compiler: apt-get install gcc libc6-dev (1 minute, 150 MB)")
[ "$(uname -s)" = Linux ] || absent+=("Linux: the kernel's side of this is FUSE")
if [ ${#absent[@]} -gt 0 ]; then
    say "missing, and yours to install:"
    printf '  %s\n' "${absent[@]}"
    exit 1
fi

packages=(ca-certificates curl fuse3 busybox-static util-linux tar)
# Docker from the distribution only where none is installed: docker-ce brings its own dockerd.
has dockerd && has docker || packages+=(docker.io)
[ "$purpose" = demo ] || packages+=(attr fio git make procps socat)
# SQLite is driven by it. Any will do.
[ "$purpose" = demo ] || has python3 || packages+=(python3)
# Programs that are tried on a mount.
if [ "$purpose" = test ]; then
    packages+=(diffutils mariadb-client-core mariadb-server-core redis-tools rsync s3fs vim)
    python3 -m pip --version >/dev/null 2>&1 || packages+=(python3-pip)
    has initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null || packages+=(postgresql)
fi

# Debian makes a cluster of a new server and starts it, unless this file says no meanwhile.
install_postgresql() {
    local file=/etc/postgresql-common/createcluster.conf is_there=yes
    install_packages postgresql-common
    as_root cp --preserve "$file" "$file.before"
    printf 'create_main_cluster = false\n' | as_root tee -a "$file" >/dev/null
    install_packages postgresql || is_there=
    as_root mv "$file.before" "$file"
    [ -n "$is_there" ]
}

# Only there is Debian 12's kernel run.
is_long=
if [ "$purpose" = test ] && [ "${LONG:-}" = 1 ] && [ "$(uname -m)" = x86_64 ]; then
    is_long=yes
    packages+=(binutils qemu-system-x86)
fi

missing=()
if has dpkg-query; then
    mapfile -t missing < <(missing_packages "${packages[@]}")
else
    for tool in curl fusermount3 busybox dockerd docker; do
        has "$tool" || missing+=("$tool")
    done
fi

target="$(target_directory)"
mkdir -p "$target"
free=$(($(df --output=avail -k "$target" | tail -1) / 1024 / 1024))
case "$purpose" in
demo)
    need=4
    say "The demo builds a release ($(nproc) cores: about $((10 / $(nproc) + 1)) minutes the first time, 2 GB in $target),"
    say "then runs for half a minute in a directory of its own."
    ;;
test)
    need=12
    say "The tests build the program for testing (about 5 GB in $target;"
    say "$(nproc) cores: about $((16 / $(nproc) + 2)) minutes the first time) and run for some minutes."
    garage="$tools/garage-2.5.0/bin/garage"
    if [ ! -x "$garage" ]; then
        say "They also build garage 2.5.0, an S3 server, once: about $((20 / $(nproc))) minutes, 3 GB meanwhile,"
        say "60 MB kept in $tools."
    fi
    if [ ! -x "$tools/pjdfstest-0.2.2/bin/pjdfstest" ] || [ ! -x "$tools/fsx-0.3.2/bin/fsx" ]; then
        say "They also build pjdfstest and fsx, which test file systems, once: about $((4 / $(nproc) + 1)) minutes,"
        say "6 MB kept in $tools."
    fi
    if [ -n "$is_long" ]; then
        say "They also run on Debian 12's own kernel, emulated by QEMU: 5 to 15 minutes. apt-get fetches it once (27 MB,"
        say "15 MB kept in $tools) and does not install it."
    fi
    ;;
esac
[ "$free" -ge "$need" ] || say "warning: $free GB are free there, $need GB may be needed"

if [ ${#missing[@]} -gt 0 ]; then
    say "Packages it needs and would install: ${missing[*]}"
    say "  (about 1 minute; up to 300 MB where docker.io is among them, 250 MB for PostgreSQL, 120 MB for MariaDB,"
    say "  150 MB for QEMU)"
    if ask "Install them?"; then
        case " ${missing[*]} " in
        *" postgresql "*) install_postgresql ;;
        esac
        install_packages "${missing[@]}"
    else
        say "Going on without them; what needs them will say so."
    fi
else
    say "Every package it needs is installed."
fi
