#!/bin/sh
# First process of the lab's outer machine: loads KVM, mounts what the host shares, and runs the host's step script.
# The second UART is the heartbeat: every byte the host sends is echoed, and each is an interrupt that wakes a sleeping CPU.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t cgroup2 cgroup2 /sys/fs/cgroup
stty -F /dev/ttyS1 raw -echo
cat /dev/ttyS1 >/dev/ttyS1 &
mount -o remount,rw /
ip link set lo up
hostname outer
for controller in cpu memory pids io; do
    echo +$controller >/sys/fs/cgroup/cgroup.subtree_control 2>/dev/null
done
modprobe kvm-amd nested=0
modprobe tun
modprobe bridge
mkdir -p /lab
mount -t virtiofs lab /lab
stty -F /dev/ttyS0 raw -echo
cd /lab || poweroff -f
setsid sh /lab/step.sh </dev/ttyS0 >/dev/ttyS0 2>&1
echo $? >/lab/status
sync
poweroff -f
