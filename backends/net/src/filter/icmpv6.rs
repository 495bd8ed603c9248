//! ICMPv6 (RFC 4443): neighbour discovery (RFC 4861) in one's own name, and nothing that only a router says.

use shared_abi::control::DropReason;

use super::own::Own;
use super::{Verdict, field};

const MULTICAST_QUERY: u8 = 130;
const MULTICAST_REPORT: u8 = 131;
const MULTICAST_DONE: u8 = 132;
const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOUR_SOLICITATION: u8 = 135;
const NEIGHBOUR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
const ROUTER_RENUMBERING: u8 = 138;
/// Inverse neighbour discovery (RFC 3122): no Ethernet has it.
const INVERSE_SOLICITATION: u8 = 141;
const INVERSE_ADVERTISEMENT: u8 = 142;
const MULTICAST_REPORT_2: u8 = 143;
/// A router's certificates (RFC 3971).
const CERTIFICATION_ADVERTISEMENT: u8 = 149;
const MULTICAST_ROUTER_ADVERTISEMENT: u8 = 151;
const MULTICAST_ROUTER_TERMINATION: u8 = 153;

/// Where the options of a router solicitation start, and those of messages with a target.
const AFTER_HEADER: usize = 8;
const AFTER_TARGET: usize = 24;
const SOURCE_LINK_ADDRESS: u8 = 1;
const TARGET_LINK_ADDRESS: u8 = 2;

/// A message, as far as it is shown.
pub struct Message<'a> {
    pub payload: &'a [u8],
    /// All of it is shown.
    pub whole: bool,
    /// It came with a fragment header.
    pub fragmented: bool,
}

/// Judges a message; its sender may have no address yet (`unspecified`).
pub fn check(own: &Own, unspecified: bool, message: Message<'_>) -> Verdict {
    let payload = message.payload;
    let [kind, ..]: [u8; 8] = field(payload, 0)?;
    let (options, about_itself) = match kind {
        ROUTER_SOLICITATION => (AFTER_HEADER, false),
        NEIGHBOUR_SOLICITATION => (AFTER_TARGET, unspecified),
        NEIGHBOUR_ADVERTISEMENT => (AFTER_TARGET, true),
        MULTICAST_REPORT | MULTICAST_DONE | MULTICAST_REPORT_2 => return Ok(()),
        MULTICAST_QUERY
        | ROUTER_ADVERTISEMENT
        | REDIRECT
        | ROUTER_RENUMBERING
        | INVERSE_SOLICITATION
        | INVERSE_ADVERTISEMENT
        | CERTIFICATION_ADVERTISEMENT
        | MULTICAST_ROUTER_ADVERTISEMENT
        | MULTICAST_ROUTER_TERMINATION
            if !own.router =>
        {
            return Err(DropReason::NeighbourDiscovery);
        }
        _ if unspecified => return Err(DropReason::SourceAddress),
        _ => return Ok(()),
    };
    if message.fragmented || (kind == NEIGHBOUR_ADVERTISEMENT && unspecified) {
        return Err(DropReason::NeighbourDiscovery);
    }
    if !message.whole {
        return Err(DropReason::Malformed);
    }
    if about_itself && !own.has_v6(field(payload, AFTER_HEADER)?) {
        return Err(DropReason::NeighbourDiscovery);
    }
    check_options(own, payload.get(options..).ok_or(DropReason::Malformed)?)
}

/// Whether the link-layer addresses are the guest's own.
fn check_options(own: &Own, mut options: &[u8]) -> Verdict {
    // Each option has eight bytes at least.
    while let Some(&[kind, units]) = options.first_chunk() {
        let (option, rest) = options.split_at_checked(usize::from(units) * 8).ok_or(DropReason::Malformed)?;
        match (kind, units) {
            (_, 0) => return Err(DropReason::Malformed),
            (SOURCE_LINK_ADDRESS | TARGET_LINK_ADDRESS, 1) if own.has_mac(field(option, 2)?) => {}
            (SOURCE_LINK_ADDRESS | TARGET_LINK_ADDRESS, _) => return Err(DropReason::NeighbourDiscovery),
            _ => {}
        }
        options = rest;
    }
    if options.is_empty() { Ok(()) } else { Err(DropReason::Malformed) }
}
