//! A second implementation of the filter, for tests: it reads a frame in another way, with the whole frame at hand.
//!
//! Whatever passes the filter has all its headers, so reading here panics where one is missing.

use std::net::{IpAddr, Ipv6Addr};

use shared_abi::control::NicFilter;

/// What is left to be read.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().expect("as many as were taken")
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes(self.array())
    }
}

/// Who may claim what.
struct Sender<'a> {
    mac: [u8; 6],
    rules: &'a NicFilter,
}

impl Sender<'_> {
    fn has_mac(&self, mac: [u8; 6]) -> bool {
        self.rules.any_mac || mac == self.mac
    }

    fn has(&self, address: impl Into<IpAddr>) -> bool {
        let address = address.into();
        let [a, b, c, d, e, f] = self.mac;
        let own = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
        let listed = self.rules.addresses.iter().flatten().any(|range| range.contains(address));
        let anothers = self.rules.except.iter().any(|range| range.contains(address));
        address == own || (!anothers && (listed || self.rules.addresses.is_none()))
    }

    /// It is no router and no DHCP server.
    fn is_host(&self) -> bool {
        !self.rules.router
    }

    fn read_arp(&self, mut arp: Bytes<'_>) {
        assert_eq!(arp.array(), [0, 1, 8, 0, 6, 4]);
        let (operation, hardware, sender) = (arp.word(), arp.array(), arp.array::<4>());
        let _ = arp.array::<6>();
        let target = arp.array::<4>();
        assert!(self.has_mac(hardware), "ARP with another's MAC address");
        if self.rules.addresses.is_some() || !self.rules.except.is_empty() {
            let claimed = if sender == [0; 4] && operation == 1 { target } else { sender };
            assert!(self.has(claimed) || self.has(sender), "ARP with another's address");
        }
    }

    fn read_v4(&self, mut ip: Bytes<'_>) {
        let all = ip.0;
        let options = usize::from(ip.byte() - 0x45) * 4;
        let _ = ip.byte();
        ip.0 = &all[2..usize::from(ip.word()).min(all.len())];
        let _ = (ip.word(), ip.word());
        let fragment = ip.word();
        let _ = ip.byte();
        let (protocol, _, source, _) = (ip.byte(), ip.word(), ip.array::<4>(), ip.array::<4>());
        let _ = ip.take(options);
        let (more, first) = (fragment & 0x2000 != 0, fragment & 0x1fff == 0);
        let mut asks = false;
        match protocol {
            _ if !first => assert_ne!(fragment & 0x1fff, 1, "over the ports"),
            1 => assert!(!self.is_host() || !matches!(ip.byte(), 5 | 9), "a router"),
            2 => assert!(!self.is_host() || !matches!(ip.byte(), 0x11 | 0x30 | 0x32), "a router"),
            17 => {
                let (from, to) = (ip.word(), ip.word());
                assert!(!self.is_host() || from != 67, "a DHCP server");
                asks = (from, to) == (68, 67);
                if to == 67 && self.is_host() {
                    let _ = ip.take(4 + 28);
                    assert!(!more && self.has_mac(ip.array()), "DHCP for another");
                }
            }
            _ => {}
        }
        assert!(self.has(source) || (source == [0; 4] && asks), "another's address");
    }

    fn read_v6(&self, mut ip: Bytes<'_>) {
        let [version, _, _, _] = ip.array();
        let (length, mut next, _) = (ip.word(), ip.byte(), ip.byte());
        let (source, _) = (ip.array::<16>(), ip.array::<16>());
        let nobody = source == [0; 16];
        assert!(version >> 4 == 6 && (nobody || self.has(source)), "another's address");
        ip.0 = &ip.0[..length.into()];
        let mut fragmented = false;
        while matches!(next, 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140) {
            let (kind, units) = (std::mem::replace(&mut next, ip.byte()), usize::from(ip.byte()));
            let length = match kind {
                44 => {
                    fragmented = true;
                    if ip.0[0] != 0 || ip.0[1] >> 3 != 0 {
                        return assert!(!nobody, "a later fragment of nobody's");
                    }
                    8
                }
                51 => 8 + units * 4,
                _ => 8 + units * 8,
            };
            let _ = ip.take(length - 2);
        }
        match next {
            17 => assert!((!self.is_host() || ip.word() != 547) && !nobody, "a DHCP server, or nobody"),
            58 => self.read_icmpv6(ip, nobody, fragmented),
            _ => assert!(!nobody),
        }
    }

    fn read_icmpv6(&self, mut message: Bytes<'_>, nobody: bool, fragmented: bool) {
        let kind = message.array::<8>()[0];
        let says_a_router = matches!(kind, 130 | 134 | 137 | 138 | 141 | 142 | 149 | 151 | 153);
        assert!(!self.is_host() || !says_a_router, "a router");
        assert!(!nobody || matches!(kind, 131 | 132 | 133 | 135 | 143), "sent by nobody");
        if !matches!(kind, 133 | 135 | 136) {
            return;
        }
        assert!(!fragmented, "neighbour discovery in fragments");
        if kind != 133 {
            let target = message.array::<16>();
            assert!((kind == 135 && !nobody) || self.has(target), "another's address");
        }
        while !message.0.is_empty() {
            let (kind, units) = (message.byte(), usize::from(message.byte()));
            let mut option = Bytes(message.take(units * 8 - 2));
            assert!(!matches!(kind, 1 | 2) || self.has_mac(option.array()), "another's MAC address");
        }
    }
}

/// Panics if a frame that has passed claims something that is not its sender's.
pub fn claims_only_its_own(frame: &[u8], mac: [u8; 6], rules: &NicFilter) {
    let sender = Sender { mac, rules };
    let by_address = rules.addresses.is_some() || !rules.except.is_empty();
    let is_free = rules.router && !by_address;
    if is_free && rules.any_mac && rules.tags {
        return;
    }
    let mut frame = Bytes(frame);
    let target = frame.array::<6>();
    assert!(sender.has_mac(frame.array()), "another's MAC address");
    let bridges = target[..5] == [1, 0x80, 0xc2, 0, 0] && matches!(target[5], 0..=0xf | 0x20..=0x2f);
    let ciscos = target[..5] == [1, 0, 0xc, 0xcc, 0xcc] && matches!(target[5], 0xcc | 0xcd);
    assert!(rules.any_mac || !(bridges || ciscos), "what bridges say");
    let mut ether_type = frame.word();
    while matches!(ether_type, 0x8100 | 0x88a8) {
        assert!(rules.tags, "tagged");
        let _ = frame.word();
        ether_type = frame.word();
    }
    match ether_type {
        0x9100 | 0x9200 | 0x9300 if !rules.tags => panic!("tagged"),
        0x0806 => sender.read_arp(frame),
        _ if is_free => {}
        0x0800 => sender.read_v4(frame),
        0x86dd => sender.read_v6(frame),
        other => assert!(!by_address, "{other:#x} is neither ARP nor IP"),
    }
}
