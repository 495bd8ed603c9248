//! The checksum that a sender leaves open (`NEEDS_CSUM`), and the segments it leaves uncut: both are done after the
//! frame was judged, here or by the kernel, so they may change nothing that was judged.
//!
//! The checksum of TCP, UDP or ICMPv6 in an unfragmented packet is in a place that no rule looks at. Anywhere else a
//! guest could choose the bytes that are summed up so that the sum is an address. Linux leaves no other checksum open.

use shared_abi::control::DropReason;

use super::{IPV4, IPV6, Verdict, field, ipv4, ipv6, udp};
use crate::header::{GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, LEN, NEEDS_CSUM};

/// More fragments, or not the first one, in IPv4's flags and offset.
const FRAGMENT: [u8; 2] = [0x3f, 0xff];

/// Judges the virtio header before a packet of this type, which has passed [`crate::header::check`]. The packet starts
/// at `start` of the frame.
pub fn check(header: &[u8; LEN], ether_type: u16, packet: &[u8], start: usize) -> Verdict {
    let [flags, gso_type, _, _, _, _, s0, s1, o0, o1, _, _] = *header;
    if flags & NEEDS_CSUM == 0 {
        return if gso_type == GSO_NONE { Ok(()) } else { Err(DropReason::Header) };
    }
    let (protocol, at) = match ether_type {
        IPV4 => {
            let ip: [u8; 10] = field(packet, 0)?;
            if ip[0] >> 4 != 4 || [ip[6] & FRAGMENT[0], ip[7] & FRAGMENT[1]] != [0, 0] {
                return Err(DropReason::Header);
            }
            (ip[9], usize::from(ip[0] & 0xf) * 4)
        }
        IPV6 => match ipv6::walk(field::<7>(packet, 0)?[6], packet)? {
            Some(inside) if !inside.fragmented => (inside.protocol, inside.at),
            _ => return Err(DropReason::Header),
        },
        _ => return Err(DropReason::Header),
    };
    let offset = match (protocol, ether_type) {
        (ipv4::TCP, _) => 16,
        (ipv4::UDP, _) => 6,
        (ipv6::ICMPV6, IPV6) => 2,
        _ => return Err(DropReason::Header),
    };
    let place = [[s0, s1], [o0, o1]].map(|word| usize::from(u16::from_le_bytes(word)));
    let fits = match gso_type & !GSO_ECN {
        GSO_NONE => true,
        GSO_TCPV4 => (protocol, ether_type) == (ipv4::TCP, IPV4),
        GSO_TCPV6 => (protocol, ether_type) == (ipv4::TCP, IPV6),
        // Each piece is a datagram of its own, and only the first has been seen.
        GSO_UDP_L4 => protocol == ipv4::UDP && !udp::is_judged(packet.get(at..).unwrap_or_default())?,
        _ => false,
    };
    if place == [start + at, offset] && fits { Ok(()) } else { Err(DropReason::Header) }
}
