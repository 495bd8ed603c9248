//! IPv4 (RFC 791): the source address, then what is inside as far as it can be judged.

use shared_abi::control::DropReason;

use super::own::Own;
use super::{Verdict, field, udp};

/// Shortest header.
const LEN: usize = 20;
const MORE_FRAGMENTS: u16 = 0x2000;
const OFFSET: u16 = 0x1fff;

pub const ICMP: u8 = 1;
const IGMP: u8 = 2;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

/// Bytes of a TCP header up to and with its flags (RFC 1858).
pub const TCP_SHOWN: usize = 16;

/// ICMP redirect, and router advertisement (RFC 1256).
const ROUTERS_ICMP: [u8; 2] = [5, 9];
/// IGMP membership query, and advertisement and termination of a multicast router (RFC 4286).
const ROUTERS_IGMP: [u8; 3] = [0x11, 0x30, 0x32];

/// Judges what follows the Ethernet header: `len` bytes, of which `packet` are the first.
pub fn check(own: &Own, packet: &[u8], len: u64) -> Verdict {
    let header: [u8; LEN] = field(packet, 0)?;
    let header_len = usize::from(header[0] & 0xf) * 4;
    let total = u16::from_be_bytes([header[2], header[3]]);
    if header[0] >> 4 != 4 || header_len < LEN || usize::from(total) < header_len || u64::from(total) > len {
        return Err(DropReason::Malformed);
    }
    let fragment = u16::from_be_bytes([header[6], header[7]]);
    let (more, offset) = (fragment & MORE_FRAGMENTS != 0, fragment & OFFSET);
    let protocol = header[9];
    let source = [header[12], header[13], header[14], header[15]];
    let shown = &packet[..packet.len().min(total.into())];
    let payload = shown.get(header_len..).ok_or(DropReason::Malformed)?;
    if !own.has_v4(source) {
        let looks_for_one =
            source == [0; 4] && offset == 0 && protocol == UDP && udp::is_dhcp_client(payload);
        if !looks_for_one {
            return Err(DropReason::SourceAddress);
        }
    }
    match offset {
        0 => inside(own, protocol, payload, more),
        // Eight bytes further: it would write over what the first fragment has shown (RFC 3128).
        1 => Err(DropReason::Malformed),
        _ => Ok(()),
    }
}

fn inside(own: &Own, protocol: u8, payload: &[u8], fragmented: bool) -> Verdict {
    let said_by_routers = match protocol {
        UDP => return udp::check_v4(own, payload, fragmented),
        TCP if payload.len() < TCP_SHOWN => return Err(DropReason::Malformed),
        ICMP => ROUTERS_ICMP.contains(&field::<8>(payload, 0)?[0]),
        IGMP => ROUTERS_IGMP.contains(&field::<8>(payload, 0)?[0]),
        _ => false,
    };
    if said_by_routers && !own.router { Err(DropReason::NeighbourDiscovery) } else { Ok(()) }
}
