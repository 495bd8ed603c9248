#!/bin/sh
# The test guest's init: says that it is ready, then runs each line of the console as a command and reports its status.
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/ TERM=dumb
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -o remount,rw /
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo -icrnl
echo 1 >/proc/sys/kernel/printk
ip link set lo up
# Whoever presses a button means the power button: a guest has no other that anybody presses.
for event in /dev/input/event*; do
    (head -c 24 "$event" >/dev/null && echo "domus-guest: power button" && sync && poweroff -f) &
done
echo "domus-guest: ready kernel=$(uname -r) cpus=$(nproc) memory=$(awk '/MemTotal/ {print $2}' /proc/meminfo)"
while read -r id line; do
    # A stray byte on the line must not be taken for a command.
    case $id in
    [0-9]*)
        (eval "$line") </dev/null 2>&1
        echo "domus-guest: done $id $?"
        ;;
    esac
done
poweroff -f
