//! Which addresses of a network are whose: the host's own, those that its definition gives to guests, and those that
//! dom0 gives to NICs before their guests ask. Pure.
//!
//! dnsmasq is told of each NIC by MAC address, so that it lends what the NIC's filter lets pass. A NIC gets
//!
//! 1. what the definition says;
//! 2. the one address that its config lists, or that its backend was told of;
//! 3. what it has;
//! 4. what was lent to it before;
//! 5. an address of the range that nobody has, the same one each time as far as that is free.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shared_abi::MacAddress;
use shared_abi::control::AddressRange;
use uuid::Uuid;

use crate::network::managed::definition::{Network, is_label};
use crate::network::managed::dnsmasq::Lease;

/// What a guest on a network may call itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Addresses {
    /// These.
    pub own: Vec<AddressRange>,
    /// But none of these.
    pub except: Vec<AddressRange>,
}

impl Addresses {
    /// The IPv4 address, if it is one.
    pub fn one(&self) -> Option<Ipv4Addr> {
        match self.own.first() {
            Some(AddressRange { address: IpAddr::V4(address), prefix: 32 }) => Some(*address),
            _ => None,
        }
    }
}

/// A NIC that asks.
#[derive(Debug, Clone, Copy)]
pub struct Asks<'a> {
    /// Its address.
    pub mac: MacAddress,
    /// The domain that it is of.
    pub name: &'a str,
    /// The one address that its config lists, or that its backend was told of.
    pub wish: Option<Ipv4Addr>,
}

/// What a NIC has.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pin {
    ip: Ipv4Addr,
    /// Its name in the network.
    name: Option<String>,
    /// A domain that this dom0 knows has it.
    claimed: bool,
}

/// What NICs have been given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Pins(BTreeMap<[u8; 6], Pin>);

const fn whole(address: IpAddr) -> AddressRange {
    AddressRange { address, prefix: if address.is_ipv4() { 32 } else { 128 } }
}

/// Every link-local address of IPv6.
const LINK_LOCAL: AddressRange =
    AddressRange { address: IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0)), prefix: 10 };

impl Pins {
    /// As they were written down, for dnsmasq; nobody has claimed them yet.
    pub fn read(text: &str) -> Self {
        let pin = |line: &str| {
            let mut words = line.split(',');
            let mac: MacAddress = words.next()?.parse().ok()?;
            let ip = words.next()?.parse().ok()?;
            Some((mac.bytes(), Pin { ip, name: words.next().map(str::to_owned), claimed: false }))
        };
        Self(text.lines().filter_map(pin).collect())
    }

    /// As dnsmasq reads them (`--dhcp-hostsfile`).
    pub fn text(&self) -> String {
        let mut text = String::new();
        for ([a, b, c, d, e, f], Pin { ip, name, .. }) in &self.0 {
            let name = name.as_ref().map_or(String::new(), |name| format!(",{name}"));
            // To a String it cannot fail.
            let _ = writeln!(text, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x},{ip}{name}");
        }
        text
    }

    /// A domain has this NIC.
    pub fn claim(&mut self, mac: MacAddress) {
        if let Some(pin) = self.0.get_mut(&mac.bytes()) {
            pin.claimed = true;
        }
    }

    /// Forgets what nobody has claimed.
    pub fn settle(&mut self) {
        self.0.retain(|_, pin| pin.claimed);
    }

    /// Forgets a NIC.
    pub fn release(&mut self, mac: MacAddress) {
        self.0.remove(&mac.bytes());
    }

    /// The address of a NIC, which has it from now on. None if every address is taken.
    pub fn give(&mut self, network: &Network, asks: Asks<'_>, leases: &[Lease]) -> Option<Ipv4Addr> {
        let own = asks.mac.bytes();
        // The definition's are dnsmasq's to know, with their names.
        if let Some(host) = network.hosts.iter().find(|host| host.mac == asks.mac) {
            return Some(host.ip);
        }
        let ip = self.choose(network, asks, leases)?;
        let taken = |name: &str| {
            let fixed = network.hosts.iter().any(|host| host.name.as_deref() == Some(name));
            fixed || self.0.iter().any(|(mac, pin)| *mac != own && pin.name.as_deref() == Some(name))
        };
        let name = Some(asks.name).filter(|name| is_label(name) && !taken(name)).map(str::to_owned);
        self.0.insert(own, Pin { ip, name, claimed: true });
        Some(ip)
    }

    fn choose(&self, network: &Network, asks: Asks<'_>, leases: &[Lease]) -> Option<Ipv4Addr> {
        let own = asks.mac.bytes();
        let usable = |ip: Ipv4Addr| {
            let fixed = network.hosts.iter().any(|host| host.ip == ip);
            let hosts_own = network.addresses.iter().any(|range| range.address == ip);
            let anothers = self.0.iter().any(|(mac, pin)| *mac != own && pin.ip == ip);
            network.holds(ip) && !fixed && !hosts_own && !anothers
        };
        if let Some(wish) = asks.wish.filter(|wish| usable(*wish)) {
            return Some(wish);
        }
        let range = network.dhcp?;
        let in_range = |ip: Ipv4Addr| range.from <= ip && ip <= range.to && usable(ip);
        let has = self.0.get(&own).map(|pin| pin.ip);
        let text = asks.mac.to_string();
        let v4 = |lease: &Lease| match lease.ip {
            IpAddr::V4(ip) => Some(ip),
            IpAddr::V6(_) => None,
        };
        let was_lent = leases.iter().filter(|lease| lease.mac == text).find_map(v4);
        if let Some(ip) = [has, was_lent].into_iter().flatten().find(|ip| in_range(*ip)) {
            return Some(ip);
        }
        let (first, last) = (range.from.to_bits(), range.to.to_bits());
        let size = u64::from(last - first) + 1;
        const NICS: Uuid = uuid::uuid!("0e3b9a52-6a0c-4a5e-8d3c-0c6b7f2d9b44");
        let start = Uuid::new_v5(&NICS, &own).as_u64_pair().0 % size;
        // So many are taken at most.
        let taken = self.0.len() + network.hosts.len() + network.addresses.len() + leases.len();
        (0..size.min(taken as u64 + 1))
            .map(|n| Ipv4Addr::from_bits(first + ((start + n) % size) as u32))
            .find(|ip| in_range(*ip) && !leases.iter().any(|lease| v4(lease) == Some(*ip)))
    }
}

/// What a guest with this address, or with any that is free, may call itself. `bridge` is the bridge's MAC address.
pub fn addresses(network: &Network, ip: Option<Ipv4Addr>, bridge: MacAddress) -> Addresses {
    let mut own: Vec<_> = ip.map(|ip| whole(ip.into())).into_iter().collect();
    // Guests make their own IPv6 addresses, of the network's prefix.
    own.extend(network.addresses.iter().filter(|range| ip.is_none() || range.address.is_ipv6()));
    own.push(LINK_LOCAL);
    let [a, b, c, d, e, f] = bridge.bytes();
    let bridge = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let mut except: Vec<_> = network.addresses.iter().map(|range| whole(range.address)).collect();
    except.push(whole(bridge.into()));
    if ip.is_none() {
        except.extend(network.hosts.iter().map(|host| whole(host.ip.into())));
    }
    Addresses { own, except }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn lan(more: &str) -> Network {
        let text = format!(r#"{{ "name": "lan", "addresses": [ "10.5.0.1/24", "fd00:5::1/64" ]{more} }}"#);
        crate::network::managed::definition::parse(Path::new("x"), &text).unwrap()
    }

    fn mac(n: u8) -> MacAddress {
        MacAddress::new([2, 0, 0, 0, 0, n]).unwrap()
    }

    fn asks(n: u8, name: &str) -> Asks<'_> {
        Asks { mac: mac(n), name, wish: None }
    }

    fn lease(n: u8, ip: &str) -> Lease {
        Lease { expires: 0, mac: mac(n).to_string(), ip: ip.parse().unwrap(), name: None }
    }

    #[test]
    fn a_nic_has_one_address_and_name_that_nobody_else_has_and_keeps_them() {
        let network =
            lan(r#", "hosts": [ { "mac": "02:00:00:00:00:01", "ip": "10.5.0.9", "name": "web1" } ],
                             "dhcp": { "from": "10.5.0.9", "to": "10.5.0.13" }"#);
        let mut pins = Pins::default();
        assert_eq!(pins.give(&network, asks(1, "a"), &[]), Some("10.5.0.9".parse().unwrap()));
        let leases = [lease(7, "10.5.0.10"), lease(2, "10.5.0.13")];
        assert_eq!(pins.give(&network, asks(2, "web1"), &leases), Some("10.5.0.13".parse().unwrap()));
        let third = pins.give(&network, asks(3, "c.d"), &leases).unwrap();
        let fourth = pins.give(&network, asks(4, "four"), &leases).unwrap();
        assert!(third != fourth && [third, fourth].iter().all(|ip| [11, 12].contains(&ip.octets()[3])));
        assert_eq!(pins.give(&network, asks(5, "five"), &leases), None, "all are taken");
        assert_eq!(pins.give(&network, asks(4, "four"), &leases), Some(fourth));
        // The name of another, and what is no name, is none.
        let text = format!(
            "02:00:00:00:00:02,10.5.0.13\n02:00:00:00:00:03,{third}\n02:00:00:00:00:04,{fourth},four\n"
        );
        assert_eq!(pins.text(), text);
        let mut next = Pins::read(&text);
        assert_eq!(next.text(), text);
        next.claim(mac(3));
        next.settle();
        assert_eq!(next.text(), format!("02:00:00:00:00:03,{third}\n"));
        pins.release(mac(4));
        assert_eq!(pins.give(&network, asks(5, "four"), &leases), Some(fourth));
        let wish = Some("10.5.0.77".parse().unwrap());
        assert_eq!(pins.give(&network, Asks { wish, ..asks(6, "six") }, &leases), wish);
        let host = Some("10.5.0.1".parse().unwrap());
        assert_eq!(pins.give(&network, Asks { wish: host, ..asks(8, "eight") }, &leases), None);
    }

    #[test]
    fn a_guest_is_never_the_host() {
        let bridge = mac(0xee);
        let can = |addresses: &Addresses, ip: &str| {
            let ip = ip.parse().unwrap();
            let has = |ranges: &[AddressRange]| ranges.iter().any(|range| range.contains(ip));
            has(&addresses.own) && !has(&addresses.except)
        };
        let pinned = addresses(&lan(""), Some("10.5.0.9".parse().unwrap()), bridge);
        for (ip, allowed) in [
            ("10.5.0.9", true),
            ("10.5.0.8", false),
            ("10.5.0.1", false),
            ("fd00:5::9", true),
            ("fd00:5::1", false),
            ("fe80::1", true),
            ("fe80::ff:fe00:ee", false),
            ("fd00:6::9", false),
        ] {
            assert_eq!(can(&pinned, ip), allowed, "{ip}");
        }
        let network =
            lan(r#", "dhcp": false, "hosts": [ { "mac": "02:00:00:00:00:01", "ip": "10.5.0.9" } ]"#);
        assert_eq!(Pins::default().give(&network, asks(2, "a"), &[]), None);
        let free = addresses(&network, None, bridge);
        let allowed = ["10.5.0.8", "10.5.0.9", "10.5.0.1", "10.6.0.8"].map(|ip| can(&free, ip));
        assert_eq!(allowed, [true, false, false, false]);
    }
}
