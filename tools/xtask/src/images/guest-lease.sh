#!/bin/sh
# What udhcpc does with a lease: the address, the way out, and who knows names.
case $1 in
bound | renew)
    ip addr flush dev "$interface"
    ip addr add "$ip/${mask:-24}" dev "$interface"
    for gateway in $router; do
        ip route add default via "$gateway" dev "$interface" metric "$(cat "/sys/class/net/$interface/ifindex")"
        echo "$gateway" >"/tmp/gateway.$interface"
    done
    : >"/tmp/dns.$interface"
    for server in $dns; do echo "nameserver $server" >>"/tmp/dns.$interface"; done
    cp "/tmp/dns.$interface" /etc/resolv.conf
    ;;
esac
