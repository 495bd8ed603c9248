//! The anti-spoofing filter: which frames a guest may send, by the addresses in them. Pure.
//!
//! ```text
//!   Ethernet source ─▶ VLAN tags, 2 at most ─▶ ARP
//!                                            ├▶ IPv4 ───────────────▶ UDP, TCP, ICMP, IGMP
//!                                            └▶ IPv6, its extensions ─▶ UDP, TCP, ICMPv6
//! ```
//!
//! | must be the guest's own | if | where |
//! |---|---|---|
//! | MAC address | not `any_mac` | source of the frame, ARP's sender |
//! | | | link-layer options of neighbour discovery, a DHCP client's hardware address |
//! | IP address | `addresses` is given | source of the packet, ARP's sender |
//! | | | target of a neighbour advertisement and of duplicate address detection |
//!
//! Without `addresses` the filter checks only the MAC addresses of frame and ARP, and every other protocol passes. With
//! `addresses` only ARP, IPv4 and IPv6 pass: LLDP, spanning tree and RARP carry no address that could be compared.
//!
//! Besides the listed addresses a guest has the link-local address made of its MAC address (RFC 4291 appendix A). It
//! may send from no address at all while it has none yet: IPv4 as a DHCP client and in ARP probes, IPv6 in duplicate
//! address detection, router solicitations and multicast listener reports. A guest that makes its link-local address
//! otherwise (RFC 7217) needs `fe80::/10` in its list.
//!
//! With `addresses` the filter refuses the messages that only a router or a DHCP server sends: advertisements,
//! redirects and multicast queries of ICMP, ICMPv6 and IGMP, and DHCP replies. It does not look into tunnels.
//!
//! A checksum may be left open, and segments uncut, only where that changes nothing that was judged: in unfragmented
//! TCP, UDP and ICMPv6.
//!
//! Frames that cannot be judged are refused as malformed: headers that end too early or beyond [`HEAD`], first
//! fragments without the ports, and fragments that could overwrite them (RFC 1858, RFC 3128, RFC 7112), neighbour
//! discovery (RFC 6980) and DHCP in fragments.
//!
//! Promises: no panic, no loop longer than [`HEAD`] and no allocation, for any bytes.

mod arp;
mod icmpv6;
mod ipv4;
mod ipv6;
mod open_checksum;
mod own;
#[cfg(test)]
mod reference;
#[cfg(test)]
mod tests;
mod udp;

use shared_abi::control::{DropReason, NicFilter};
use shared_abi::ids::MacAddress;

use crate::header::LEN;
use own::Own;

/// How many bytes of a frame are looked at: Ethernet, two tags, IPv6 and 194 bytes of what follows.
pub const HEAD: usize = 256;

/// Frames with more VLAN tags are refused.
const MAX_TAGS: usize = 2;

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// A frame passes, or why it does not.
type Verdict = Result<(), DropReason>;

/// The rules for one NIC.
#[derive(Debug, Clone)]
pub struct Filter {
    own: Own,
    any_mac: bool,
    by_address: bool,
}

impl Filter {
    /// The rules for a NIC with this MAC address.
    pub fn new(mac: MacAddress, rules: &NicFilter) -> Self {
        let addresses = rules.addresses.as_deref();
        Self {
            own: Own::new(mac, rules.any_mac, addresses.unwrap_or_default()),
            any_mac: rules.any_mac,
            by_address: addresses.is_some(),
        }
    }

    /// Judges a frame of `len` bytes by its first ones: `head` is [`HEAD`] of them, or all that there are. The virtio
    /// `header` before it has passed [`header::check`](crate::header::check).
    ///
    /// # Errors
    /// Why the frame must not leave.
    #[inline]
    pub fn check(&self, header: &[u8; LEN], head: &[u8], len: u64) -> Verdict {
        if self.any_mac && !self.by_address {
            return Ok(());
        }
        let source = field::<6>(head, 6)?;
        if !self.own.has_mac(source) {
            return Err(DropReason::SourceMac);
        }
        let mut at = 12;
        for _ in 0..=MAX_TAGS {
            let ether_type = u16::from_be_bytes(field(head, at)?);
            at += 2;
            if !matches!(ether_type, VLAN | SERVICE_VLAN) {
                // `field` has found that so many bytes are there.
                let packet = &head[at..];
                self.payload(ether_type, packet, len.saturating_sub(at as u64))?;
                return open_checksum::check(header, ether_type, packet, at);
            }
            at += 2;
        }
        Err(DropReason::Malformed)
    }

    fn payload(&self, ether_type: u16, head: &[u8], len: u64) -> Verdict {
        match (ether_type, self.by_address) {
            (ARP, by_address) => arp::check(&self.own, by_address, head),
            (_, false) => Ok(()),
            (IPV4, true) => ipv4::check(&self.own, head, len),
            (IPV6, true) => ipv6::check(&self.own, head, len),
            (_, true) => Err(DropReason::SourceAddress),
        }
    }
}

/// The `N` bytes at `offset`.
#[inline]
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], DropReason> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(DropReason::Malformed)
}
