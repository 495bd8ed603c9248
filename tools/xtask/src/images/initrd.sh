#!/bin/busybox sh
# First process of a guest: loads the drivers, mounts root=, hands over to init= (or /sbin/init) there.
# Without root= it stays: says that it is there, and powers off when told to (domus.once).
bb=/bin/busybox
$bb mount -t proc proc /proc
$bb mount -t sysfs sysfs /sys
$bb mount -t devtmpfs devtmpfs /dev
echo "domus-guest: initrd"

while read -r module; do
    $bb insmod "/modules/$module.ko" || echo "domus-guest: cannot load $module"
done </modules/order

root= init=/sbin/init mode=ro once=
for word in $($bb cat /proc/cmdline); do
    case $word in
    root=*) root=${word#root=} ;;
    init=*) init=${word#init=} ;;
    rw) mode=rw ;;
    domus.once) once=1 ;;
    esac
done

if [ -z "$root" ]; then
    [ -n "$once" ] && $bb poweroff -f
    exec /bin/sh
fi
tries=0
while ! [ -b "$root" ]; do
    tries=$((tries + 1))
    if [ $tries -gt 600 ]; then
        echo "domus-guest: $root did not appear"
        $bb poweroff -f
    fi
    $bb usleep 50000
done
if ! $bb mount -t ext4 -o $mode "$root" /root; then
    echo "domus-guest: cannot mount $root"
    $bb poweroff -f
fi
for place in proc sys dev; do
    $bb mount --move /$place /root/$place
done
exec $bb switch_root /root "$init"
