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
//! | is refused | unless |
//! |---|---|
//! | VLAN tags | `tags` |
//! | frames to the addresses that bridges keep to themselves (spanning tree, LLDP, GVRP, and Cisco's) | `any_mac` |
//! | what only a router or a DHCP server says | `router` |
//!
//! The latter are advertisements, redirects and multicast queries of ICMP, ICMPv6 and IGMP, and DHCP replies. With
//! `addresses` only ARP, IPv4 and IPv6 pass: RARP and the like carry no address that could be compared. A guest that
//! may be a router and have any address is not looked at beyond Ethernet and ARP. The filter does not look into
//! tunnels.
//!
//! Besides the listed addresses a guest has the link-local address made of its MAC address (RFC 4291 appendix A). It
//! may send from no address at all while it has none yet: IPv4 as a DHCP client and in ARP probes, IPv6 in duplicate
//! address detection, router solicitations and multicast listener reports. A guest that makes its link-local address
//! otherwise (RFC 7217) needs `fe80::/10` in its list.
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
/// Types of tags from before there was a standard for two of them: never looked behind.
const OLD_VLANS: [u16; 3] = [0x9100, 0x9200, 0x9300];
const ARP: u16 = 0x0806;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

/// Where bridges speak to each other: 01-80-C2-00-00-00 to -0F and -20 to -2F (IEEE 802.1Q §8.6.3 and §10.5), and
/// 01-00-0C-CC-CC-CC and -CD, Cisco's.
fn is_link_control(target: [u8; 6]) -> bool {
    match target {
        [1, 0x80, 0xc2, 0, 0, last] => matches!(last >> 4, 0 | 2),
        [1, 0, 0xc, 0xcc, 0xcc, last] => matches!(last, 0xcc | 0xcd),
        _ => false,
    }
}

/// A frame passes, or why it does not.
type Verdict = Result<(), DropReason>;

/// The rules for one NIC.
#[derive(Debug, Clone)]
pub struct Filter {
    own: Own,
    any_mac: bool,
    by_address: bool,
    tags: bool,
}

impl Filter {
    /// The rules for a NIC with this MAC address.
    pub fn new(mac: MacAddress, rules: &NicFilter) -> Self {
        Self {
            own: Own::new(mac, rules),
            any_mac: rules.any_mac,
            by_address: rules.addresses.is_some() || !rules.except.is_empty(),
            tags: rules.tags,
        }
    }

    /// Judges a frame of `len` bytes by its first ones: `head` is [`HEAD`] of them, or all that there are. The virtio
    /// `header` before it has passed [`header::check`](crate::header::check).
    ///
    /// # Errors
    /// Why the frame must not leave.
    #[inline]
    pub fn check(&self, header: &[u8; LEN], head: &[u8], len: u64) -> Verdict {
        let is_free = self.own.router && !self.by_address;
        if is_free && self.any_mac && self.tags {
            return Ok(());
        }
        let source = field::<6>(head, 6)?;
        if !self.own.has_mac(source) {
            return Err(DropReason::SourceMac);
        }
        if !self.any_mac && is_link_control(field(head, 0)?) {
            return Err(DropReason::LinkControl);
        }
        let mut at = 12;
        for _ in 0..=MAX_TAGS {
            let ether_type = u16::from_be_bytes(field(head, at)?);
            at += 2;
            let is_tag = matches!(ether_type, VLAN | SERVICE_VLAN);
            if !self.tags && (is_tag || OLD_VLANS.contains(&ether_type)) {
                return Err(DropReason::Tagged);
            }
            if !is_tag {
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
        let is_free = self.own.router && !self.by_address;
        match ether_type {
            ARP => arp::check(&self.own, self.by_address, head),
            _ if is_free => Ok(()),
            IPV4 => ipv4::check(&self.own, head, len),
            IPV6 => ipv6::check(&self.own, head, len),
            _ if self.by_address => Err(DropReason::SourceAddress),
            _ => Ok(()),
        }
    }
}

/// The `N` bytes at `offset`.
#[inline]
fn field<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], DropReason> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(DropReason::Malformed)
}
