# Words the scripts share: saying, asking, being root, installing packages. Sourced, never run.
# shellcheck shell=bash

# Everything built once and kept between checkouts.
tools="${XDG_CACHE_HOME:-$HOME/.cache}/bucketvol-tools"

say() { printf '%s\n' "$*"; }
step() { printf '\n==> %s\n' "$*"; }
die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

has() { command -v "$1" >/dev/null 2>&1; }

# /usr/sbin is not in every user's PATH, and dockerd and losetup are there.
case ":$PATH:" in
*:/usr/sbin:*) ;;
*) PATH="$PATH:/usr/sbin:/sbin" ;;
esac

on_ci() { [ -n "${CI:-}" ] && [ "${CI:-}" != false ]; }

# Whether things may be installed without a question.
yes_to_all() { [ "${YES:-}" = 1 ] || on_ci; }

ask() {
    if yes_to_all; then return 0; fi
    [ -t 0 ] || die "$1 needs an answer, and there is no terminal: say YES=1 to agree"
    local answer
    printf '%s [y/N] ' "$1"
    read -r answer
    [ "$answer" = y ] || [ "$answer" = Y ] || [ "$answer" = yes ]
}

can_be_root() { [ "$(id -u)" = 0 ] || has sudo; }

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

# The Debian packages among "$@" that are not installed, one per line.
missing_packages() {
    local package
    for package in "$@"; do
        dpkg-query --show --showformat='${db:Status-Status}' "$package" 2>/dev/null |
            grep -qx installed || printf '%s\n' "$package"
    done
}

install_packages() {
    has apt-get || die "only apt is known here; install by hand: $*"
    can_be_root || die "no sudo: as root, run apt-get install $*"
    # Services of fresh packages stay as the distribution wants them; nothing asks questions meanwhile.
    as_root apt-get -qq update
    as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq -y --no-install-recommends install "$@" \
        </dev/null >/dev/null
}

# install_crate NAME VERSION: builds a program once, outside the checkout, and prints where.
install_crate() {
    local place="$tools/$1-$2"
    mkdir -p "$place"
    # Two checkouts may come here at once; the second one finds the work done.
    exec 9>"$place/lock"
    flock 9
    if [ ! -x "$place/bin/$1" ]; then
        say "building $1 $2 in $place (once)" >&2
        cargo install "$1" --version "$2" --locked --quiet --root "$place" --target-dir "$place/build" >&2
        rm -rf "$place/build"
    fi
    printf '%s\n' "$place"
}

# Where cargo puts what it builds.
target_directory() { printf '%s\n' "${CARGO_TARGET_DIR:-$PWD/target}"; }
