#!/bin/bash
# Runs a program on Debian 12's own kernel (6.1), in a virtual machine that has nothing but what the tests need: cargo
# takes it for a runner of tests. Its exit status is the program's.
#
#   scripts/old-kernel.sh get               fetches the kernel once, outside the checkout; installs nothing
#   scripts/old-kernel.sh PROGRAM [ARG...]  runs it there as root, with this environment's BUCKETVOL_* and RUST_*
#
# A machine that runs for longer than OLD_KERNEL_LIMIT seconds (2400) is ended.
set -euo pipefail
repository="$(dirname "$(dirname "$(realpath "$0")")")"
. "$repository/scripts/lib.sh"

# The smallest flavour: it has all but FUSE built in.
package=linux-image-cloud-amd64
place="$tools/debian-12-kernel"

# What the tests of mounts start.
programs=(cat curl dash flock fusermount3 mkdir mount mv rm rmdir setpriv sleep timeout umount wc)

# The package of the newest kernel that apt knows; nothing if it knows none.
newest() {
    apt-cache depends "$package" | sed -n 's/.*Depends: \(linux-image-6\.1\.[^ ]*\)$/\1/p'
}

get() {
    [ "$(uname -m)" = x86_64 ] || die "only on x86_64"
    mkdir -p "$place"
    # Two runs may come here at once; the second one finds the work done.
    exec 9>"$place/lock"
    flock 9
    [ ! -e "$place/release" ] || return 0
    has apt-get && has dpkg-deb || die "Debian's package of the kernel is fetched by apt-get, which is not here"
    local kernel unpacked="$place/unpacked"
    kernel="$(newest)"
    if [ -z "$kernel" ]; then
        as_root apt-get -qq update
        kernel="$(newest)"
    fi
    [ -n "$kernel" ] || die "apt-get knows no $package of Debian 12: its sources are another release's"
    rm -rf "$unpacked"
    mkdir "$unpacked"
    say "fetching $kernel into $place (once)" >&2
    (cd "$unpacked" && apt-get -qq download "$kernel" 2>/dev/null)
    dpkg-deb --extract "$unpacked"/*.deb "$unpacked"
    mv "$unpacked"/boot/vmlinuz-* "$place/vmlinuz"
    mv "$unpacked"/lib/modules/*/kernel/fs/fuse/fuse.ko "$place/fuse.ko"
    rm -rf "$unpacked"
    printf '%s\n' "$kernel" >"$place/release"
}

# Puts a program of this machine into the guest's, with the libraries it is linked to.
install_program() {
    local from="$1" to="$root$2" library
    install -D -m 0755 "$from" "$to"
    # fusermount3 mounts for users.
    if [ -u "$from" ]; then chmod u+s "$to"; fi
    # One that is linked to none is an error to ldd.
    { ldd "$from" 2>/dev/null || true; } | sed -n 's|^[^/]*\(/[^ ]*\) (0x.*|\1|p' | while read -r library; do
        [ -e "$root$library" ] || install -D "$library" "$root$library"
    done
}

# Everything the guest has, as the kernel unpacks it into memory.
make_root() {
    local program name
    mkdir -p "$root"/{bin,dev,etc,proc,run,sys,tmp,var/tmp}
    for name in "${programs[@]}"; do
        program="$(command -v "$name")" || die "$name is not installed"
        install_program "$(realpath "$program")" "/bin/$name"
    done
    ln -s dash "$root/bin/sh"
    install -D "$(command -v busybox)" "$root/bin/busybox"
    install "$place/fuse.ko" "$root/fuse.ko"
    install "$repository/scripts/old-kernel-init.sh" "$root/init"
    printf 'root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\n' >"$root/etc/passwd"
    printf 'root:x:0:\nnogroup:x:65534:\n' >"$root/etc/group"
    ln -s /proc/self/mounts "$root/etc/mtab"

    # Tests start the program by the path at which cargo has built it. Debugging symbols are most of both.
    local test="$1" built
    built="$(dirname "$(dirname "$test")")/bucketvol"
    for program in "$test" "$built"; do
        install_program "$program" "$program"
        strip --strip-debug "$root$program"
    done
    {
        for name in $(compgen -e | grep -E '^(BUCKETVOL|RUST)_'); do
            printf 'export %s=%q\n' "$name" "${!name}"
        done
        printf '%q ' "$@"
    } >"$root/etc/command"
}

[ $# -gt 0 ] || die "get, or a program"
(get)
[ "$1" != get ] || exit 0
has qemu-system-x86_64 || die "qemu-system-x86_64 is not installed"

scratch="$(mktemp -d "${TMPDIR:-/var/tmp}/bucketvol-old-kernel-XXXXXX")"
trap 'rm -rf "$scratch"' EXIT
root="$scratch/root"
program="$(realpath "$1")"
shift
make_root "$program" "$@"
(cd "$root" && find . | busybox cpio -o -H newc -R 0:0 2>/dev/null) >"$scratch/initramfs"
rm -rf "$root"

# The first serial port shows what the program says, the second takes its exit status. A kernel that panics restarts,
# and that ends the machine. Emulated throughout: KVM inside another virtual machine is there and does not get anywhere.
timeout --kill-after=10 "${OLD_KERNEL_LIMIT:-2400}" qemu-system-x86_64 \
    -machine accel=tcg -cpu max -smp 2 -m 2G -nodefaults -no-user-config -no-reboot \
    -display none -serial stdio -serial "file:$scratch/status" \
    -kernel "$place/vmlinuz" -initrd "$scratch/initramfs" \
    -append "console=ttyS0 quiet panic=-1" </dev/null | sed -u 's/\r$//' || true
status="$(tr -cd '0-9' <"$scratch/status")"
[ -n "$status" ] || die "the machine ended before the program did"
exit "$status"
