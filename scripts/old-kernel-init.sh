#!/bin/busybox sh
# The first process of the virtual machine of scripts/old-kernel.sh: runs /etc/command, says how that ended, and turns off.
export PATH=/bin HOME=/ TMPDIR=/var/tmp
/bin/busybox mkdir -p /bin/applets
/bin/busybox --install -s /bin/applets
export PATH=/bin:/bin/applets
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir /dev/shm
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
chmod 1777 /tmp /var/tmp
ip link set lo up
insmod /fuse.ko
# As udev leaves it.
chmod 0666 /dev/fuse
echo "Linux $(uname -r)"
sh /etc/command
echo $? >/dev/ttyS1
sync
poweroff -f
