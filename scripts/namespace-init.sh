# The first process of private mount and process namespaces, for a Docker engine that must not meet the
# machine's own. It makes /run a copy that nobody else sees and gives Docker's and our fixed directories in
# it an empty disk each, says `ready`, and then waits for its stdin to close, reaping orphans meanwhile;
# when it ends the kernel ends all the rest.
# Run by scripts/demo-docker.sh and by the test suite through unshare(1).
set -eu
cd /run
mount -t tmpfs -o mode=0755 tmpfs /run
mkdir /run/changed /run/work
# `.` is still the machine's /run: what resolves names may be in there.
mount -t overlay -o lowerdir=.,upperdir=/run/changed,workdir=/run/work overlay /run
cd /
for directory in /run/docker /run/containerd /run/bucketvol; do
    mkdir -p "$directory"
    mount -t tmpfs -o mode=0700 tmpfs "$directory"
done
# Where no init system has mounted the control groups, the engine still needs them.
if ! grep -q ' /sys/fs/cgroup' /proc/mounts && [ -d /sys/fs/cgroup ]; then
    mount -t cgroup2 cgroup2 /sys/fs/cgroup || true
fi
echo ready
exec 3<&0
cat <&3 >/dev/null &
wait $!
