//! IPv6 (RFC 8200): the source address, then the extension headers up to what is inside.

use shared_abi::control::DropReason;

use super::own::Own;
use super::{Verdict, field, icmpv6, ipv4, udp};

/// Bytes of the header.
const LEN: usize = 40;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
pub const ICMPV6: u8 = 58;
const DESTINATION: u8 = 60;
const MOBILITY: u8 = 135;
const HOST_IDENTITY: u8 = 139;
const SHIM6: u8 = 140;

const OFFSET: u16 = 0xfff8;

/// Judges what follows the Ethernet header: `len` bytes, of which `packet` are the first.
pub fn check(own: &Own, packet: &[u8], len: u64) -> Verdict {
    let header: &[u8; LEN] = packet.first_chunk().ok_or(DropReason::Malformed)?;
    let end = LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    if header[0] >> 4 != 6 || end as u64 > len {
        return Err(DropReason::Malformed);
    }
    let source: [u8; 16] = field(header, 8)?;
    let unspecified = source == [0; 16];
    if !unspecified && !own.has_v6(source) {
        return Err(DropReason::SourceAddress);
    }
    let shown = &packet[..packet.len().min(end)];
    let Inside { protocol, at, fragmented } = match walk(header[6], shown)? {
        Some(inside) => inside,
        // The first fragment has been judged.
        None if unspecified => return Err(DropReason::SourceAddress),
        None => return Ok(()),
    };
    // `walk` has found the headers before it.
    let payload = shown.get(at..).ok_or(DropReason::Malformed)?;
    match protocol {
        ICMPV6 => {
            let message = icmpv6::Message { payload, whole: at + payload.len() == end, fragmented };
            icmpv6::check(own, unspecified, message)
        }
        _ if unspecified => Err(DropReason::SourceAddress),
        ipv4::UDP => udp::check_v6(own, payload),
        ipv4::TCP if payload.len() < ipv4::TCP_SHOWN => Err(DropReason::Malformed),
        _ => Ok(()),
    }
}

/// What the last extension header leads to.
pub struct Inside {
    pub protocol: u8,
    /// Where it is in the packet.
    pub at: usize,
    /// There was a fragment header.
    pub fragmented: bool,
}

/// Walks the extension headers; `None` in a fragment that is not the first.
pub fn walk(mut protocol: u8, packet: &[u8]) -> Result<Option<Inside>, DropReason> {
    let (mut at, mut fragmented) = (LEN, false);
    // Each header has eight bytes at least, so this ends at the end of what is shown.
    loop {
        let length = match protocol {
            // It is the first or none.
            HOP_BY_HOP if at != LEN => return Err(DropReason::Malformed),
            HOP_BY_HOP | ROUTING | DESTINATION | MOBILITY | HOST_IDENTITY | SHIM6 => {
                8 + 8 * usize::from(field::<2>(packet, at)?[1])
            }
            AUTHENTICATION => 8 + 4 * usize::from(field::<2>(packet, at)?[1]),
            FRAGMENT => {
                let [_, _, a, b, ..]: [u8; 8] = field(packet, at)?;
                let place = u16::from_be_bytes([a, b]);
                fragmented = true;
                match place & OFFSET {
                    0 => {}
                    // Eight bytes further: it would write over what the first fragment has shown.
                    8 => return Err(DropReason::Malformed),
                    _ => return Ok(None),
                }
                8
            }
            _ => return Ok(Some(Inside { protocol, at, fragmented })),
        };
        protocol = field::<1>(packet, at)?[0];
        at += length;
    }
}
