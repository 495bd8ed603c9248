use proptest::prelude::*;
use shared_abi::control::AddressRange;

use super::reference::claims_only_its_own;
use super::*;
use crate::offload::{self, Cut};

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];
const OTHER_MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x57];
const V4: [u8; 4] = [10, 0, 0, 5];
const OTHER_V4: [u8; 4] = [10, 0, 0, 6];
const NO_V4: [u8; 4] = [0; 4];
const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5];
const OTHER_V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 6];
const NO_V6: [u8; 16] = [0; 16];
/// Made of [`MAC`].
const LINK_LOCAL: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x56];
const OTHER_LINK_LOCAL: [u8; 16] =
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x50, 0x54, 0, 0xff, 0xfe, 0x12, 0x34, 0x57];

fn rules(any_mac: bool, addresses: bool) -> NicFilter {
    let range = |address: &str, prefix| AddressRange { address: address.parse().unwrap(), prefix };
    let addresses = addresses.then(|| vec![range("10.0.0.5", 32), range("fd00::5", 128)]);
    NicFilter { any_mac, addresses, tags: true, ..NicFilter::default() }
}

fn filter(any_mac: bool, addresses: bool) -> Filter {
    with(&rules(any_mac, addresses))
}

fn with(rules: &NicFilter) -> Filter {
    Filter::new(MacAddress::new(MAC).unwrap(), rules)
}

fn judge(filter: &Filter, frame: &[u8]) -> Verdict {
    judge_with(filter, &[0; LEN], frame)
}

fn judge_with(filter: &Filter, header: &[u8; LEN], frame: &[u8]) -> Verdict {
    filter.check(header, &frame[..frame.len().min(HEAD)], frame.len() as u64)
}

/// The header of a frame whose checksum is left open.
fn open(start: usize, offset: usize) -> [u8; LEN] {
    let [[s0, s1], [o0, o1]] = [start as u16, offset as u16].map(u16::to_le_bytes);
    [1, 0, 0, 0, 0, 0, s0, s1, o0, o1, 0, 0]
}

fn ethernet(source: [u8; 6], ether_type: u16, payload: &[u8]) -> Vec<u8> {
    [&[0xff; 6][..], &source, &ether_type.to_be_bytes(), payload].concat()
}

fn tagged(tags: &[u16], mut frame: Vec<u8>) -> Vec<u8> {
    for tag in tags {
        let [a, b] = tag.to_be_bytes();
        frame.splice(12..12, [a, b, 0, 7]);
    }
    frame
}

fn arp(operation: u16, hardware: [u8; 6], sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation as u8];
    ethernet(MAC, ARP, &[&head[..], &hardware, &sender, &[0; 6], &target, &[0; 18]].concat())
}

/// `fragment`: flags and offset.
fn v4(source: [u8; 4], protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
    let total = (20 + payload.len() as u16).to_be_bytes();
    let fragment = fragment.to_be_bytes();
    let head = [0x45, 0, total[0], total[1], 0, 1, fragment[0], fragment[1], 64, protocol, 0, 0];
    ethernet(MAC, IPV4, &[&head[..], &source, &[10, 0, 0, 1], payload].concat())
}

fn v6(source: [u8; 16], next: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b] = (payload.len() as u16).to_be_bytes();
    ethernet(MAC, IPV6, &[&[0x60, 0, 0, 0, a, b, next, 255][..], &source, &[0xff; 16], payload].concat())
}

fn udp(source: u16, target: u16, payload: &[u8]) -> Vec<u8> {
    let [[a, b], [c, d], [e, f]] = [source, target, 8 + payload.len() as u16].map(u16::to_be_bytes);
    [&[a, b, c, d, e, f, 0, 0], payload].concat()
}

fn dhcp(hardware: [u8; 6]) -> Vec<u8> {
    udp(68, 67, &[&[1, 1, 6, 0][..], &[0; 24], &hardware, &[0; 210]].concat())
}

fn icmpv6(kind: u8, target: Option<[u8; 16]>, option: Option<(u8, [u8; 6])>) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 0, 0, 0];
    message.extend(target.into_iter().flatten());
    if let Some((kind, mac)) = option {
        message.extend([kind, 1]);
        message.extend(mac);
    }
    message
}

/// An extension header of 8 bytes that leads to `next`.
fn extended(next: u8, second: [u8; 7], payload: &[u8]) -> Vec<u8> {
    [&[next][..], &second, payload].concat()
}

use DropReason::{Arp, DhcpServer, Malformed, NeighbourDiscovery, SourceAddress, SourceMac};

/// A frame, and what is said of it where addresses are given.
type Case = (&'static str, Vec<u8>, Verdict);

fn arp_cases() -> Vec<Case> {
    vec![
        ("request", arp(1, MAC, V4, OTHER_V4), Ok(())),
        ("announcement", arp(1, MAC, V4, V4), Ok(())),
        ("reply", arp(2, MAC, V4, OTHER_V4), Ok(())),
        ("announcement by reply", arp(2, MAC, V4, V4), Ok(())),
        ("probe", arp(1, MAC, NO_V4, V4), Ok(())),
        ("tagged request", tagged(&[VLAN, SERVICE_VLAN], arp(1, MAC, V4, OTHER_V4)), Ok(())),
        ("another's hardware address", arp(1, OTHER_MAC, V4, OTHER_V4), Err(Arp)),
        ("another's address asking", arp(1, MAC, OTHER_V4, V4), Err(Arp)),
        ("another's address answering", arp(2, MAC, OTHER_V4, V4), Err(Arp)),
        ("another's address announced", arp(1, MAC, OTHER_V4, OTHER_V4), Err(Arp)),
        ("tagged, another's address", tagged(&[VLAN], arp(2, MAC, OTHER_V4, V4)), Err(Arp)),
        ("a probe for another's address", arp(1, MAC, NO_V4, OTHER_V4), Err(Arp)),
        ("a reply without an address", arp(2, MAC, NO_V4, V4), Err(Arp)),
        ("reverse ARP in ARP", arp(3, MAC, V4, V4), Err(Arp)),
        ("three tags", tagged(&[VLAN; 3], arp(1, MAC, V4, OTHER_V4)), Err(Malformed)),
        ("cut off", arp(1, MAC, V4, OTHER_V4)[..41].to_vec(), Err(Malformed)),
        ("a hardware of its own", [&arp(1, MAC, V4, V4)[..15], &[9], &[0; 40]].concat(), Err(Malformed)),
    ]
}

fn v4_cases() -> Vec<Case> {
    let tcp = [0; 20];
    let packet = |protocol, payload: &[u8]| v4(V4, protocol, 0, payload);
    let long = [0; 400];
    let options = {
        let mut frame = v4(V4, 6, 0, &[&[1; 40][..], &tcp].concat());
        frame[14] = 0x4f;
        frame
    };
    let edit = |at: usize, value: u8| {
        let mut frame = v4(V4, 6, 0, &long);
        frame[at] = value;
        frame
    };
    vec![
        ("TCP", packet(6, &tcp), Ok(())),
        ("TCP longer than the head", packet(6, &long), Ok(())),
        ("TCP behind options", options, Ok(())),
        ("padded", [&packet(1, &[8; 8])[..], &[0; 18]].concat(), Ok(())),
        ("twice tagged", tagged(&[VLAN, SERVICE_VLAN], packet(6, &tcp)), Ok(())),
        ("GRE", packet(47, &[0; 4]), Ok(())),
        ("an IPv6 tunnel", packet(41, &v6(OTHER_V6, 58, &icmpv6(134, None, None))[14..]), Ok(())),
        ("echo request", packet(1, &[8, 0, 0, 0, 0, 0, 0, 0]), Ok(())),
        ("IGMP report", packet(2, &[0x22, 0, 0, 0, 0, 0, 0, 0]), Ok(())),
        ("DNS", packet(17, &udp(5000, 53, &[])), Ok(())),
        ("DHCP discovery", v4(NO_V4, 17, 0, &dhcp(MAC)), Ok(())),
        ("DHCP renewal", packet(17, &dhcp(MAC)), Ok(())),
        ("first fragment", v4(V4, 17, 0x2000, &udp(5000, 53, &long)), Ok(())),
        ("later fragment", v4(V4, 17, 0x2002, &[0; 64]), Ok(())),
        ("last fragment", v4(V4, 17, 100, &[1]), Ok(())),
        ("another's address", v4(OTHER_V4, 6, 0, &tcp), Err(SourceAddress)),
        ("tagged, another's address", tagged(&[VLAN], v4(OTHER_V4, 6, 0, &tcp)), Err(SourceAddress)),
        ("later fragment of another's", v4(OTHER_V4, 17, 0x2002, &[0; 64]), Err(SourceAddress)),
        ("no address", v4(NO_V4, 6, 0, &tcp), Err(SourceAddress)),
        ("no address, other ports", v4(NO_V4, 17, 0, &udp(69, 67, &long)), Err(SourceAddress)),
        ("DHCP for another", v4(NO_V4, 17, 0, &dhcp(OTHER_MAC)), Err(SourceMac)),
        ("DHCP renewal for another", packet(17, &dhcp(OTHER_MAC)), Err(SourceMac)),
        ("DHCP in fragments", v4(NO_V4, 17, 0x2000, &dhcp(MAC)), Err(Malformed)),
        ("a later fragment without an address", v4(NO_V4, 17, 2, &dhcp(MAC)), Err(SourceAddress)),
        ("DHCP offer", packet(17, &udp(67, 68, &long)), Err(DhcpServer)),
        ("DHCP offer in fragments", v4(V4, 17, 0x2000, &udp(67, 68, &long)), Err(DhcpServer)),
        ("redirect", packet(1, &[5, 0, 0, 0, 0, 0, 0, 0]), Err(NeighbourDiscovery)),
        ("router advertisement", packet(1, &[9, 0, 0, 0, 0, 0, 0, 0]), Err(NeighbourDiscovery)),
        ("IGMP query", packet(2, &[0x11, 0, 0, 0, 0, 0, 0, 0]), Err(NeighbourDiscovery)),
        ("a first fragment without ports", v4(V4, 17, 0x2000, &[0, 67, 0, 68]), Err(Malformed)),
        ("a first fragment without TCP flags", v4(V4, 6, 0x2000, &[0; 8]), Err(Malformed)),
        ("a fragment over the flags", v4(V4, 6, 1, &[0; 64]), Err(Malformed)),
        ("version 5", edit(14, 0x55), Err(Malformed)),
        ("a header of 16 bytes", edit(14, 0x44), Err(Malformed)),
        ("longer than the frame", edit(16, 2), Err(Malformed)),
        ("shorter than its header", [&edit(16, 0)[..17], &[19], &[0; 40]].concat(), Err(Malformed)),
        ("cut off", packet(6, &tcp)[..33].to_vec(), Err(Malformed)),
    ]
}

fn v6_cases() -> Vec<Case> {
    let solicitation = icmpv6(135, Some(OTHER_V6), Some((1, MAC)));
    let search = |target| v6(NO_V6, 58, &icmpv6(135, Some(target), None));
    let advertisement = |target, mac| v6(V6, 58, &icmpv6(136, Some(target), Some((2, mac))));
    let tcp = [0; 20];
    let long = [0; 400];
    let report = extended(58, [0, 5, 2, 0, 0, 1, 0], &icmpv6(143, None, None));
    let hop_second = extended(0, [0; 7], &report);
    // Destination options of 248 bytes push what follows out of sight.
    let hidden = [&[17, 30][..], &[0; 246], &udp(547, 546, &[])].concat();
    let endless = [&icmpv6(136, Some(V6), None)[..], &[14, 0, 0, 0, 0, 0, 0, 0]].concat();
    let many_options = [&icmpv6(136, Some(V6), None)[..], &[14, 40], &[0; 318]].concat();
    vec![
        ("TCP", v6(V6, 6, &tcp), Ok(())),
        ("TCP longer than the head", v6(V6, 6, &long), Ok(())),
        ("from the link-local address", v6(LINK_LOCAL, 17, &udp(546, 547, &long)), Ok(())),
        ("behind a routing header", v6(V6, 43, &extended(6, [0; 7], &tcp)), Ok(())),
        (
            "behind an authentication header",
            v6(V6, 51, &extended(6, [1; 7], &[&[0; 4][..], &tcp].concat())),
            Ok(()),
        ),
        ("encrypted", v6(V6, 50, &[0; 8]), Ok(())),
        ("nothing inside", v6(V6, 59, &[]), Ok(())),
        ("solicitation", v6(V6, 58, &solicitation), Ok(())),
        ("solicitation from the link-local address", v6(LINK_LOCAL, 58, &solicitation), Ok(())),
        ("advertisement", advertisement(V6, MAC), Ok(())),
        ("advertisement of the link-local address", advertisement(LINK_LOCAL, MAC), Ok(())),
        ("search for duplicates", search(V6), Ok(())),
        ("search for link-local duplicates", search(LINK_LOCAL), Ok(())),
        ("router solicitation", v6(LINK_LOCAL, 58, &icmpv6(133, None, Some((1, MAC)))), Ok(())),
        ("router solicitation without an address", v6(NO_V6, 58, &icmpv6(133, None, None)), Ok(())),
        ("multicast report without an address", v6(NO_V6, 0, &report), Ok(())),
        ("echo request", v6(V6, 58, &icmpv6(128, None, None)), Ok(())),
        ("first fragment", v6(V6, 44, &extended(17, [0, 0, 1, 0, 0, 0, 1], &udp(5, 6, &long))), Ok(())),
        ("later fragment", v6(V6, 44, &extended(17, [0, 0, 16, 0, 0, 0, 1], &[0; 9])), Ok(())),
        ("another's address", v6(OTHER_V6, 6, &tcp), Err(SourceAddress)),
        ("another's link-local address", v6(OTHER_LINK_LOCAL, 6, &tcp), Err(SourceAddress)),
        ("no address", v6(NO_V6, 6, &tcp), Err(SourceAddress)),
        ("echo request without an address", v6(NO_V6, 58, &icmpv6(128, None, None)), Err(SourceAddress)),
        (
            "a later fragment without an address",
            v6(NO_V6, 44, &extended(17, [0, 0, 16, 0, 0, 0, 1], &[0; 9])),
            Err(SourceAddress),
        ),
        ("another's address advertised", advertisement(OTHER_V6, MAC), Err(NeighbourDiscovery)),
        ("another's link-layer address advertised", advertisement(V6, OTHER_MAC), Err(NeighbourDiscovery)),
        (
            "another's link-layer address asking",
            v6(V6, 58, &icmpv6(135, Some(V6), Some((1, OTHER_MAC)))),
            Err(NeighbourDiscovery),
        ),
        (
            "another's link-layer address soliciting routers",
            v6(V6, 58, &icmpv6(133, None, Some((1, OTHER_MAC)))),
            Err(NeighbourDiscovery),
        ),
        ("search for another's duplicates", search(OTHER_V6), Err(NeighbourDiscovery)),
        (
            "advertisement without an address",
            v6(NO_V6, 58, &icmpv6(136, Some(V6), None)),
            Err(NeighbourDiscovery),
        ),
        ("router advertisement", v6(LINK_LOCAL, 58, &icmpv6(134, None, None)), Err(NeighbourDiscovery)),
        (
            "router advertisement behind options",
            v6(LINK_LOCAL, 60, &extended(58, [0; 7], &icmpv6(134, None, None))),
            Err(NeighbourDiscovery),
        ),
        ("redirect", v6(LINK_LOCAL, 58, &icmpv6(137, Some(V6), None)), Err(NeighbourDiscovery)),
        (
            "multicast query",
            v6(LINK_LOCAL, 0, &extended(58, [0; 7], &icmpv6(130, None, None))),
            Err(NeighbourDiscovery),
        ),
        (
            "fragmented solicitation",
            v6(V6, 44, &extended(58, [0; 7], &solicitation)),
            Err(NeighbourDiscovery),
        ),
        (
            "fragmented router advertisement",
            v6(V6, 44, &extended(58, [0, 0, 1, 0, 0, 0, 1], &icmpv6(134, None, None))),
            Err(NeighbourDiscovery),
        ),
        ("DHCP reply", v6(LINK_LOCAL, 17, &udp(547, 546, &long)), Err(DhcpServer)),
        (
            "DHCP reply behind options",
            v6(V6, 60, &extended(17, [0; 7], &udp(547, 546, &long))),
            Err(DhcpServer),
        ),
        (
            "DHCP reply in fragments",
            v6(V6, 44, &extended(17, [0, 0, 1, 0, 0, 0, 1], &udp(547, 546, &[]))),
            Err(DhcpServer),
        ),
        ("DHCP reply out of sight", v6(V6, 60, &hidden), Err(Malformed)),
        ("a hop-by-hop header that is second", v6(V6, 0, &hop_second), Err(Malformed)),
        (
            "a first fragment without ports",
            v6(V6, 44, &extended(17, [0, 0, 1, 0, 0, 0, 1], &[0; 4])),
            Err(Malformed),
        ),
        (
            "a fragment over the ports",
            v6(V6, 44, &extended(17, [0, 0, 8, 0, 0, 0, 1], &[0; 64])),
            Err(Malformed),
        ),
        ("an option of no length", v6(V6, 58, &endless), Err(Malformed)),
        ("more options than can be seen", v6(V6, 58, &many_options), Err(Malformed)),
        ("a piece of an option", v6(V6, 58, &[&solicitation[..], &[14]].concat()), Err(Malformed)),
        ("longer than the frame", v6(V6, 6, &tcp)[..60].to_vec(), Err(Malformed)),
        ("version 4", [&v6(V6, 6, &tcp)[..14], &[0x40], &[0; 60]].concat(), Err(Malformed)),
    ]
}

fn cases() -> Vec<Case> {
    [arp_cases(), v4_cases(), v6_cases()].concat()
}

#[test]
fn each_lie_is_refused_and_its_honest_twin_passes() {
    let filter = filter(false, true);
    for (name, frame, expected) in cases() {
        assert_eq!(judge(&filter, &frame), expected, "{name}: {frame:02x?}");
    }
    // No frame of bridges' is to a group that hosts have.
    for ether_type in [0x88cc, 0x8035, 0x0026, 0x9100, 0x88e5] {
        let frame = ethernet(MAC, ether_type, &[0x42; 60]);
        assert_eq!(judge(&filter, &frame), Err(SourceAddress), "{ether_type:#x}");
    }
}

#[test]
fn a_frame_from_another_mac_address_never_passes_but_where_any_may() {
    for (name, mut frame, _) in cases() {
        frame[6..12].copy_from_slice(&OTHER_MAC);
        for addresses in [false, true] {
            assert_eq!(judge(&filter(false, addresses), &frame), Err(SourceMac), "{name}");
        }
    }
    let strange = [
        arp(1, OTHER_MAC, V4, OTHER_V4),
        v6(V6, 58, &icmpv6(136, Some(V6), Some((2, OTHER_MAC)))),
        v4(NO_V4, 17, 0, &dhcp(OTHER_MAC)),
    ];
    for mut frame in strange {
        assert!(judge(&filter(false, true), &frame).is_err());
        frame[6..12].copy_from_slice(&OTHER_MAC);
        assert_eq!(judge(&filter(true, true), &frame), Ok(()));
    }
}

#[test]
fn without_addresses_a_guest_has_any_and_is_no_router_all_the_same() {
    let filter = filter(false, false);
    for (name, frame, expected) in v4_cases().into_iter().chain(v6_cases()) {
        let verdict = judge(&filter, &frame);
        match expected {
            Err(SourceAddress) if !name.contains("another's") => {}
            Err(SourceAddress) => assert_eq!(verdict, Ok(()), "{name}"),
            Err(NeighbourDiscovery)
                if name.contains("another's address") || name.contains("another's dupl") =>
            {
                assert_eq!(verdict, Ok(()), "{name}");
            }
            _ => assert_eq!(verdict, expected, "{name}"),
        }
    }
    assert_eq!(judge(&filter, &ethernet(MAC, 0x88cc, &[])), Ok(()));
    assert_eq!(judge(&filter, &arp(2, MAC, OTHER_V4, V4)), Ok(()));
    assert_eq!(judge(&filter, &arp(2, OTHER_MAC, V4, V4)), Err(Arp));
    assert_eq!(judge(&filter, &tagged(&[VLAN], arp(2, OTHER_MAC, V4, V4))), Err(Arp));
}

#[test]
fn a_guest_that_may_be_a_router_says_what_routers_and_dhcp_servers_say() {
    let router = NicFilter { router: true, ..rules(false, false) };
    for (name, frame, _) in v4_cases().into_iter().chain(v6_cases()) {
        assert_eq!(judge(&with(&router), &frame), Ok(()), "{name}");
    }
    assert_eq!(judge(&with(&router), &arp(2, OTHER_MAC, V4, V4)), Err(Arp));
    // With addresses it says that in its own name.
    let router = with(&NicFilter { router: true, ..rules(false, true) });
    let advertisement = icmpv6(134, None, None);
    assert_eq!(judge(&router, &v6(LINK_LOCAL, 58, &advertisement)), Ok(()));
    assert_eq!(judge(&router, &v6(OTHER_LINK_LOCAL, 58, &advertisement)), Err(SourceAddress));
    assert_eq!(judge(&router, &v4(V4, 17, 0, &udp(67, 68, &[0; 300]))), Ok(()));
    assert_eq!(judge(&router, &v4(OTHER_V4, 17, 0, &udp(67, 68, &[0; 300]))), Err(SourceAddress));
}

#[test]
fn an_address_that_is_anothers_is_not_the_guests_though_it_is_in_its_range() {
    let range = |address: &str, prefix| AddressRange { address: address.parse().unwrap(), prefix };
    let rules = NicFilter {
        addresses: Some(vec![range("10.0.0.0", 24), range("fd00::", 64)]),
        except: vec![range("10.0.0.6", 32), range("fd00::6", 128)],
        ..rules(false, false)
    };
    let filter = with(&rules);
    for (own, frame) in [
        (true, v4(V4, 6, 0, &[0; 20])),
        (true, v6(V6, 6, &[0; 20])),
        (true, arp(2, MAC, V4, OTHER_V4)),
        (false, v4(OTHER_V4, 6, 0, &[0; 20])),
        (false, v6(OTHER_V6, 6, &[0; 20])),
        (false, arp(2, MAC, OTHER_V4, V4)),
        (false, arp(1, MAC, NO_V4, OTHER_V4)),
        (false, v6(V6, 58, &icmpv6(136, Some(OTHER_V6), Some((2, MAC))))),
    ] {
        assert_eq!(judge(&filter, &frame).is_ok(), own, "{frame:02x?}");
    }
}

#[test]
fn tags_are_refused_unless_they_are_allowed() {
    for addresses in [false, true] {
        let rules = rules(false, addresses);
        let strict = with(&NicFilter { tags: false, ..rules.clone() });
        let frame = || v4(V4, 6, 0, &[0; 20]);
        assert_eq!(judge(&strict, &frame()), Ok(()));
        for tags in [&[VLAN][..], &[SERVICE_VLAN], &[VLAN, SERVICE_VLAN], &[VLAN, VLAN], &[0x9100, VLAN]] {
            let frame = tagged(tags, frame());
            assert_eq!(judge(&strict, &frame), Err(DropReason::Tagged), "{tags:x?}");
            assert_eq!(
                judge(&with(&rules), &frame),
                if tags[0] == 0x9100 && addresses { Err(SourceAddress) } else { Ok(()) }
            );
        }
    }
}

#[test]
fn what_bridges_say_to_each_other_is_no_guests_to_say() {
    for addresses in [false, true] {
        let filter = filter(false, addresses);
        let mut frame = v4(V4, 6, 0, &[0; 20]);
        for (target, refused) in [
            ([1, 0x80, 0xc2, 0, 0, 0], true),
            ([1, 0x80, 0xc2, 0, 0, 0xe], true),
            ([1, 0x80, 0xc2, 0, 0, 0x21], true),
            ([1, 0, 0xc, 0xcc, 0xcc, 0xcd], true),
            ([1, 0x80, 0xc2, 0, 0, 0x14], false),
            ([1, 0, 0x5e, 0, 0, 1], false),
            ([0x33, 0x33, 0, 0, 0, 1], false),
        ] {
            frame[..6].copy_from_slice(&target);
            let expected = if refused { Err(DropReason::LinkControl) } else { Ok(()) };
            assert_eq!(judge(&filter, &frame), expected, "{target:x?}");
        }
    }
}

#[test]
fn a_free_guest_may_send_anything() {
    let free = with(&NicFilter::open());
    assert!(cases().iter().all(|(_, frame, _)| judge(&free, frame).is_ok()));
    assert_eq!(free.check(&[0; LEN], &[], 0), Ok(()));
}

#[test]
fn a_checksum_is_left_open_only_where_it_is_and_in_whole_packets() {
    let tcp = [0; 20];
    let datagram = udp(5000, 53, &[0; 64]);
    let echo = [&[128_u8, 0, 0, 0, 0, 0, 0, 0][..], &[7; 8]].concat();
    let ethernet_and = |network: usize| 14 + network;
    let mut options = v4(V4, 6, 0, &[&[1; 40][..], &tcp].concat());
    options[14] = 0x4f;
    let fine = [
        (v4(V4, 6, 0, &tcp), ethernet_and(20), 16),
        (v4(V4, 6, 0x4000, &tcp), ethernet_and(20), 16),
        (v4(V4, 17, 0, &datagram), ethernet_and(20), 6),
        (tagged(&[VLAN], v4(V4, 6, 0, &tcp)), ethernet_and(24), 16),
        (tagged(&[VLAN, SERVICE_VLAN], v6(V6, 17, &datagram)), ethernet_and(48), 6),
        (options, ethernet_and(60), 16),
        (v6(V6, 6, &tcp), ethernet_and(40), 16),
        (v6(V6, 58, &echo), ethernet_and(40), 2),
        (v6(V6, 60, &extended(17, [0; 7], &datagram)), ethernet_and(48), 6),
    ];
    let all = || (0..20).flat_map(|offset| (0..80).map(move |start| (start, offset)));
    for (frame, start, offset) in &fine {
        for filter in [filter(false, true), filter(false, false), filter(true, true)] {
            for place in all() {
                let expected = if place == (*start, *offset) { Ok(()) } else { Err(DropReason::Header) };
                assert_eq!(judge_with(&filter, &open(place.0, place.1), frame), expected, "{place:?}");
            }
        }
        // Segments must be of what is in the packet.
        for kind in [1, 4, 5, 0x81, 0x84] {
            let mut header = open(*start, *offset);
            header[1] = kind;
            let is_v6 = frame[..22].windows(2).any(|bytes| bytes == [0x86, 0xdd]);
            let fits = match kind & 0x7f {
                1 => *offset == 16 && !is_v6,
                4 => *offset == 16 && is_v6,
                _ => *offset == 6,
            };
            assert_eq!(
                judge_with(&filter(false, true), &header, frame).is_ok(),
                fits,
                "{kind}: {frame:02x?}"
            );
        }
    }
    let refused = [
        arp(2, MAC, V4, OTHER_V4),
        v4(V4, 17, 0x2000, &datagram),
        v4(V4, 17, 0x2002, &datagram),
        v4(V4, 1, 0, &echo),
        v4(V4, 47, 0, &datagram),
        v6(V6, 44, &extended(17, [0, 0, 1, 0, 0, 0, 1], &datagram)),
        v6(V6, 132, &datagram),
    ];
    for (frame, place) in refused.iter().flat_map(|frame| all().map(move |place| (frame, place))) {
        assert_eq!(judge(&filter(false, true), frame), Ok(()));
        let verdict = judge_with(&filter(false, true), &open(place.0, place.1), frame);
        assert_eq!(verdict, Err(DropReason::Header), "{place:?} {frame:02x?}");
    }
    // Each piece would be a message of its own.
    let mut header = open(34, 6);
    header[1] = 5;
    assert_eq!(
        judge_with(&filter(false, true), &header, &v4(V4, 17, 0, &dhcp(MAC))),
        Err(DropReason::Header)
    );
}

/// Every kind of NIC.
fn any_rules() -> impl Strategy<Value = NicFilter> {
    let range = |address: &str, prefix| AddressRange { address: address.parse().unwrap(), prefix };
    let except = vec![range("10.0.0.5", 32), range("fd00::", 64)];
    (any::<[bool; 5]>()).prop_map(move |[any_mac, addresses, excepts, tags, router]| NicFilter {
        except: if excepts { except.clone() } else { Vec::new() },
        tags,
        router,
        ..rules(any_mac, addresses)
    })
}

/// A frame that is close to an honest one, or to a lie that somebody has thought of.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let mut cases: Vec<_> = cases().into_iter().map(|(_, frame, _)| frame).collect();
    // Behind every kind of tag, too.
    let tags = [&[VLAN][..], &[SERVICE_VLAN, VLAN], &[0x9100]];
    cases.extend(
        tags.iter()
            .flat_map(|tags| cases.iter().map(|frame| tagged(tags, frame.clone())))
            .collect::<Vec<_>>(),
    );
    let patches = prop::collection::vec((12..100_usize, any::<u8>()), 0..6);
    (prop::sample::select(cases), patches, 0..20_usize).prop_map(|(mut frame, patches, cut)| {
        for (at, value) in patches {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(frame.len() - if cut < 5 { cut } else { 0 });
        frame
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]
    #[test]
    fn what_passes_claims_nothing_that_is_not_its_senders(
        frame in prop_oneof![4 => nearly(), 1 => prop::collection::vec(any::<u8>(), 0..400)],
        rules in any_rules(),
    ) {
        if judge(&with(&rules), &frame).is_ok() {
            claims_only_its_own(&frame, MAC, &rules);
        }
    }

    #[test]
    fn what_passes_passes_with_its_checksum_filled_in_and_cut_to_pieces_too(
        frame in nearly(),
        place in (0..120_usize, 0..40_usize),
        sensible in prop::option::of((any::<bool>(), 0..3_usize, 0..3_usize)),
        (gso_type, gso_size) in (prop::sample::select(vec![0, 0, 0, 1, 4, 5]), 1..300_u16),
        rules in any_rules(),
    ) {
        let (start, offset) = sensible.map_or(place, |(is_v6, tags, kind)| {
            (14 + 4 * tags + if is_v6 { 40 } else { 20 }, [16, 6, 2][kind])
        });
        let mut header = open(start, offset);
        header[1] = gso_type;
        header[4..6].copy_from_slice(&gso_size.to_le_bytes());
        let filter = with(&rules);
        let Ok(header) = crate::header::check(header, frame.len() as u64, u64::MAX) else { return Ok(()) };
        if rules != NicFilter::open() && judge_with(&filter, &header, &frame).is_ok() {
            let mut filled = frame.clone();
            offload::fill(&header, &mut filled).unwrap();
            prop_assert_eq!(judge(&filter, &filled), Ok(()));
            claims_only_its_own(&filled, MAC, &rules);
            if let Ok(cut) = Cut::new(&header, &frame) {
                let mut piece = Vec::new();
                for number in 0..cut.segments() {
                    cut.segment(number, &mut piece);
                    prop_assert_eq!(judge(&filter, &piece), Ok(()));
                }
            }
        }
    }
}
