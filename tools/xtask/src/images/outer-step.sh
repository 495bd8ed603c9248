#!/bin/sh
# What outer-init does, where systemd is the first process: the heartbeat's echo, what the host shares, the host's step script.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux
stty -F /dev/ttyS1 raw -echo
cat /dev/ttyS1 >/dev/ttyS1 &
modprobe kvm-amd
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
