//! ARP (RFC 826): which host claims which IP address.
//!
//! A probe (RFC 5227) has no sender address and asks for the address that its sender is about to use. By probing for
//! another host's address a guest could keep that host from using it.

use shared_abi::control::DropReason;

use super::own::Own;
use super::{IPV4, Verdict, field};

const ETHERNET: u16 = 1;
const REQUEST: u16 = 1;
const REPLY: u16 = 2;

/// Judges what follows the Ethernet header. The MAC address must be the guest's own; IP addresses only `by_address`.
pub fn check(own: &Own, by_address: bool, packet: &[u8]) -> Verdict {
    let [hardware, protocol] = [0, 2].map(|at| field(packet, at).map(u16::from_be_bytes));
    let lengths: [u8; 2] = field(packet, 4)?;
    if (hardware?, protocol?, lengths) != (ETHERNET, IPV4, [6, 4]) {
        return Err(DropReason::Malformed);
    }
    let operation = u16::from_be_bytes(field(packet, 6)?);
    let sender = field::<4>(packet, 14)?;
    let target = field::<4>(packet, 24)?;
    if !own.has_mac(field(packet, 8)?) {
        return Err(DropReason::Arp);
    }
    let fine = match operation {
        _ if !by_address => true,
        REQUEST => own.has_v4(sender) || (sender == [0; 4] && own.has_v4(target)),
        REPLY => own.has_v4(sender),
        _ => false,
    };
    if fine { Ok(()) } else { Err(DropReason::Arp) }
}
