//! The messages of `domus-net` and `domus-switch`.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::{FdIndex, Identity, Rate};
use crate::ids::{DeviceId, DomainName, MacAddress, SwitchName};

/// What dom0 asks of `domus-net`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetRequest {
    /// Serve these NICs; answered with [`BackendReply::Ready`](super::BackendReply::Ready).
    Start(NetStart),
    /// Something about one of them.
    Nic {
        /// Which.
        nic: DeviceId,
        /// What.
        request: NicRequest,
    },
    /// A new connection of a [`NetWire::Stream`]; answered with [`BackendReply::Done`](super::BackendReply::Done).
    Reconnect {
        /// Which NIC.
        nic: DeviceId,
        /// A connected stream socket.
        socket: FdIndex,
    },
}

/// What can be asked about a NIC that is served, by `domus-net` or by a switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NicRequest {
    /// Plug the cable in or pull it: answered with [`BackendReply::Done`](super::BackendReply::Done) when no frame
    /// passes any more or again. The guest learns of it when the runner reads the configuration again.
    Link {
        /// Plugged in.
        up: bool,
    },
    /// Have the guest announce itself (`VIRTIO_NET_S_ANNOUNCE`), when the runner reads the configuration again;
    /// answered with [`BackendReply::Done`](super::BackendReply::Done).
    Announce,
    /// These limits from now on; answered with [`BackendReply::Done`](super::BackendReply::Done).
    Limit(NicLimits),
    /// Report what it has done; answered with [`BackendReply::Nic`](super::BackendReply::Nic).
    Statistics,
}

/// The NICs of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetStart {
    /// Whose NICs they are.
    pub identity: Identity,
    /// One vhost-user-net device each.
    pub nics: Vec<NetNic>,
}

/// One NIC and what is at the other end of its cable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetNic {
    /// The NIC.
    pub card: NetCard,
    /// Where its frames go.
    pub wire: NetWire,
}

/// A NIC as its guest sees it, and what its guest may do.
///
/// Its queues are numbered as in virtio 1.3 §5.1.2: receive and transmit of each pair, then the control queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetCard {
    /// Its id.
    pub id: DeviceId,
    /// The MAC address the guest is told.
    pub mac: MacAddress,
    /// The MTU the guest is told, in bytes.
    pub mtu: u16,
    /// Number of queue pairs, 1 to [`MAX_QUEUE_PAIRS`](crate::limits::MAX_QUEUE_PAIRS).
    pub pairs: u16,
    /// What the guest may send.
    pub filter: NicFilter,
    /// How much it may send and receive.
    pub limits: NicLimits,
    /// The cable is plugged in.
    pub link_up: bool,
    /// A memory file of [`NIC_STATE_LEN`](crate::limits::NIC_STATE_LEN) bytes, sealed against changes of its size. The
    /// backend keeps there the settings that the driver makes over the control queue, so that its successor knows them.
    /// The file belongs to one machine of the domain and is zero at the machine's start.
    pub state: FdIndex,
    /// The backend's end of the vhost-user socket.
    pub socket: FdIndex,
}

impl NetCard {
    /// A NIC with one queue pair, its cable plugged in, that may send from its own MAC address whatever it likes.
    pub fn plain(id: DeviceId, mac: MacAddress, state: FdIndex, socket: FdIndex) -> Self {
        let filter = NicFilter::default();
        let limits = NicLimits::default();
        Self { id, mac, mtu: 1500, pairs: 1, filter, limits, link_up: true, state, socket }
    }
}

/// What is at the other end of a NIC's cable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum NetWire {
    /// A tap or a macvtap.
    Tap {
        /// One non-blocking descriptor for each queue pair, attached (`TUNSETIFF`) with
        /// `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, and with `IFF_MULTI_QUEUE` if there are several.
        queues: Vec<FdIndex>,
        /// The table by which the tap chooses the queue of a frame ([`crate::steering`]), if it has one: then the NIC
        /// offers `VIRTIO_NET_F_RSS`. Without it the kernel lets a flow come back on the queue it was last sent on.
        steering: Option<FdIndex>,
    },
    /// A stream socket on which each frame follows its length in four bytes, most significant first (QEMU's
    /// `-netdev stream`, passt). One queue pair, no offloads.
    Stream {
        /// Connected; none if nobody is there yet ([`NetRequest::Reconnect`]).
        socket: Option<FdIndex>,
    },
}

/// What a guest may send. What it may not is dropped before it leaves the backend, and counted.
///
/// What is false or empty is left out of the message: a process of a release that did not know it goes on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicFilter {
    /// Frames from any MAC address, and what bridges say to each other; otherwise from [`NetCard::mac`] alone.
    pub any_mac: bool,
    /// If given: IP packets, ARP and neighbour discovery in the name of these addresses alone.
    pub addresses: Option<Vec<AddressRange>>,
    /// None of these, even if they are among `addresses`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub except: Vec<AddressRange>,
    /// Frames with VLAN tags.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tags: bool,
    /// What only a router or a DHCP server says.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub router: bool,
}

impl NicFilter {
    /// Everything may be sent.
    pub fn open() -> Self {
        Self { any_mac: true, tags: true, router: true, ..Self::default() }
    }
}

/// IP addresses with a common prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AddressRange {
    /// One of them.
    pub address: IpAddr,
    /// How many of the first bits they have in common: at most 32 or 128.
    pub prefix: u8,
}

impl AddressRange {
    /// Whether `address` is one of them.
    pub fn contains(&self, address: IpAddr) -> bool {
        fn same(a: u128, b: u128, bits: u32, prefix: u8) -> bool {
            let left = bits.saturating_sub(prefix.into());
            (a ^ b).checked_shr(left).unwrap_or(0) == 0
        }
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(other)) => {
                same(own.to_bits().into(), other.to_bits().into(), 32, self.prefix)
            }
            (IpAddr::V6(own), IpAddr::V6(other)) => same(own.to_bits(), other.to_bits(), 128, self.prefix),
            _ => false,
        }
    }

    /// Whether there is an address that is in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let (wider, narrower) = if self.prefix <= other.prefix { (self, other) } else { (other, self) };
        wider.contains(narrower.address)
    }
}

/// How much a NIC may carry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicLimits {
    /// To the guest. Frames wait at the wire, which loses what is too much.
    pub receive: NicLimit,
    /// From the guest. Its frames wait in the ring.
    pub transmit: NicLimit,
}

/// How much in one direction.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicLimit {
    /// Bits of frames, as they are passed on: without preamble and frame check, a segment that is cut later as one.
    pub bits: Option<Rate>,
    /// Frames, a segment that is cut later as one.
    pub packets: Option<Rate>,
}

/// What a NIC has done since its process started, and how it is set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NicStatistics {
    /// The cable is plugged in, and somebody is at its other end.
    pub link_up: bool,
    /// Queue pairs that the driver uses.
    pub pairs: u16,
    /// The driver takes frames for any MAC address.
    pub promiscuous: bool,
    /// To the guest.
    pub receive: TrafficStatistics,
    /// From the guest.
    pub transmit: TrafficStatistics,
}

/// What went one way.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrafficStatistics {
    /// Frames passed on, a segment that is cut later as one.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these frames, those whose checksum was left open.
    pub open_checksums: u64,
    /// Of these frames, those that are cut later (TSO, USO).
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Times that frames had to wait for a limit.
    pub throttled: u64,
    /// Frames by their length: entry *n* counts frames of 2^(n-1) to 2^n - 1 bytes. Zeros at the end are left out.
    pub sizes: Vec<u64>,
    /// Frames lost, by reason; reasons without any are left out.
    pub drops: Vec<Drops>,
}

/// Frames lost for one reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Drops {
    /// Why.
    pub reason: DropReason,
    /// How many.
    pub packets: u64,
}

/// Why a frame was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DropReason {
    /// The cable is pulled, or nobody is at its other end.
    LinkDown,
    /// No Ethernet frame has that length, or the other side takes none so long.
    Length,
    /// The virtio header breaks a rule of virtio 1.3 §5.1.6.
    Header,
    /// Buffers outside the guest's memory.
    Memory,
    /// Not from the guest's MAC address.
    SourceMac,
    /// Not from one of the guest's IP addresses.
    SourceAddress,
    /// ARP in the name of another.
    Arp,
    /// IPv6 neighbour discovery in the name of another, or what only a router says.
    NeighbourDiscovery,
    /// What only a DHCP server says.
    DhcpServer,
    /// Headers that make no sense, so that nobody can say what the frame is.
    Malformed,
    /// The wire does not take it, or had no room.
    Wire,
    /// The driver has asked not to get such frames (MAC and VLAN filter).
    Unwanted,
    /// The guest's rings had no room for it.
    NoRoom,
    /// With a VLAN tag.
    Tagged,
    /// To an address that bridges keep to themselves: spanning tree, LLDP.
    LinkControl,
}

impl DropReason {
    /// All reasons, in the order of their discriminants.
    pub const ALL: [Self; 15] = [
        Self::LinkDown,
        Self::Length,
        Self::Header,
        Self::Memory,
        Self::SourceMac,
        Self::SourceAddress,
        Self::Arp,
        Self::NeighbourDiscovery,
        Self::DhcpServer,
        Self::Malformed,
        Self::Wire,
        Self::Unwanted,
        Self::NoRoom,
        Self::Tagged,
        Self::LinkControl,
    ];
}

/// What dom0 asks of `domus-switch`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SwitchRequest {
    /// Become a switch without ports; answered with [`BackendReply::Ready`](super::BackendReply::Ready).
    Start(SwitchStart),
    /// One more port; answered with [`BackendReply::Done`](super::BackendReply::Done).
    Plug {
        /// Whose NIC it is. A port that the same NIC of the same domain had before is removed.
        domain: DomainName,
        /// The NIC.
        card: NetCard,
    },
    /// One port less, which may be gone already; answered with [`BackendReply::Done`](super::BackendReply::Done).
    Unplug {
        /// Whose NIC it is.
        domain: DomainName,
        /// The NIC's id.
        nic: DeviceId,
    },
    /// Answer with [`BackendReply::Done`](super::BackendReply::Done).
    Ping,
    /// Something about a port.
    Nic {
        /// Whose NIC it is.
        domain: DomainName,
        /// The NIC's id.
        nic: DeviceId,
        /// What.
        request: NicRequest,
    },
}

/// A switch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SwitchStart {
    /// Its name, for messages.
    pub name: SwitchName,
    /// The user id and group id it becomes. 0 is refused by the sandbox.
    pub uid: u32,
}

/// What a switch reports unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SwitchEvent {
    /// A port is not served any more, other than by its frontend hanging up.
    PortFailed {
        /// Whose NIC it is.
        domain: DomainName,
        /// The NIC's id.
        nic: DeviceId,
        /// One line for the operator.
        why: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_holds_the_addresses_with_its_prefix() {
        let range = |address: &str, prefix| AddressRange { address: address.parse().unwrap(), prefix };
        let holds = |range: AddressRange, address: &str| range.contains(address.parse().unwrap());
        assert!(holds(range("10.1.2.3", 32), "10.1.2.3") && !holds(range("10.1.2.3", 32), "10.1.2.2"));
        assert!(holds(range("10.1.2.0", 24), "10.1.2.255") && !holds(range("10.1.2.0", 24), "10.1.3.0"));
        assert!(holds(range("0.0.0.0", 0), "255.255.255.255") && !holds(range("0.0.0.0", 0), "::"));
        assert!(holds(range("::", 0), "ffff::1") && holds(range("fe80::", 10), "febf::1"));
        assert!(!holds(range("fe80::", 10), "fec0::1") && !holds(range("::1", 128), "::2"));
        let overlap = |a: AddressRange, b: AddressRange| (a.overlaps(&b), b.overlaps(&a));
        assert_eq!(overlap(range("10.9.0.1", 24), range("10.9.0.129", 25)), (true, true));
        assert_eq!(overlap(range("10.9.0.1", 25), range("10.9.0.129", 25)), (false, false));
        assert_eq!(overlap(range("10.9.0.1", 24), range("::", 0)), (false, false));
    }

    #[test]
    fn reasons_are_in_the_order_of_their_numbers() {
        assert!(DropReason::ALL.iter().enumerate().all(|(n, reason)| *reason as usize == n));
    }
}
