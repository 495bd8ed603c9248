//! The feature bits of a network device (virtio 1.3 §5.1.3), and what they mean for a tap.

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, c_uint};

/// The device takes frames whose checksum is not filled in.
pub const CSUM: u64 = 1 << 0;
/// The driver takes frames whose checksum is not filled in.
pub const GUEST_CSUM: u64 = 1 << 1;
/// The driver may change its mind about what it takes.
pub const CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
/// The device says its MTU.
pub const MTU: u64 = 1 << 3;
/// The device says its MAC address.
pub const MAC: u64 = 1 << 5;
/// The driver takes large IPv4 segments.
pub const GUEST_TSO4: u64 = 1 << 7;
/// The driver takes large IPv6 segments.
pub const GUEST_TSO6: u64 = 1 << 8;
/// The driver takes large segments with ECN.
pub const GUEST_ECN: u64 = 1 << 9;
/// The device takes large IPv4 segments.
pub const HOST_TSO4: u64 = 1 << 11;
/// The device takes large IPv6 segments.
pub const HOST_TSO6: u64 = 1 << 12;
/// The device takes large segments with ECN.
pub const HOST_ECN: u64 = 1 << 13;
/// A received frame may span several buffers.
pub const MRG_RXBUF: u64 = 1 << 15;
/// The device says whether its link is up.
pub const STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const CTRL_VQ: u64 = 1 << 17;
/// The driver says whether it takes all frames, or which.
pub const CTRL_RX: u64 = 1 << 18;
/// The driver says which VLANs it takes.
pub const CTRL_VLAN: u64 = 1 << 19;
/// The driver says more about what it takes.
pub const CTRL_RX_EXTRA: u64 = 1 << 20;
/// The device may ask the driver to announce itself.
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// There are several queue pairs.
pub const MQ: u64 = 1 << 22;
/// The driver may take another MAC address.
pub const CTRL_MAC_ADDR: u64 = 1 << 23;
/// The driver takes large IPv4 datagrams, to be cut.
pub const GUEST_USO4: u64 = 1 << 54;
/// The driver takes large IPv6 datagrams, to be cut.
pub const GUEST_USO6: u64 = 1 << 55;
/// The device takes large datagrams.
pub const HOST_USO: u64 = 1 << 56;
/// The driver says by which hash frames are spread over the queue pairs.
pub const RSS: u64 = 1 << 60;
/// The device says how fast it is.
pub const SPEED_DUPLEX: u64 = 1 << 63;

/// What every NIC offers; [`MAC`] and [`MTU`] come with their values.
pub const ALWAYS: u64 = MRG_RXBUF | STATUS | SPEED_DUPLEX;

/// What a NIC on a tap offers besides.
pub const OFFLOADS: u64 =
    CSUM | GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | HOST_TSO4 | HOST_TSO6 | HOST_ECN;

/// What a NIC offers besides whose tap cuts datagrams.
pub const DATAGRAMS: u64 = GUEST_USO4 | GUEST_USO6 | HOST_USO;

/// What a NIC on a tap offers at least.
pub const OFFERED: u64 = ALWAYS | OFFLOADS;

/// What comes with a control queue.
pub const CONTROL: u64 = CTRL_VQ | CTRL_RX | CTRL_RX_EXTRA | CTRL_VLAN | CTRL_MAC_ADDR | GUEST_ANNOUNCE;

/// What a driver takes, and may change its mind about (`VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET`).
pub const TAKEN: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;

/// The kernel's `TUN_F_USO4` and `TUN_F_USO6` (Linux 6.2), which it takes together only.
const TUN_F_USO: c_uint = 0x60;

/// Bytes of the header before each frame (virtio 1.3 §5.1.6): a driver of before virtio 1.0 that
/// does not merge buffers has no `num_buffers`.
pub fn header_len(features: u64) -> usize {
    if features & (MRG_RXBUF | vu_server::F_VERSION_1) == 0 { 10 } else { 12 }
}

/// What the tap may leave to the guest (`TUNSETOFFLOAD`). The kernel refuses segments without checksums.
pub fn tap_offloads(features: u64) -> c_uint {
    if features & GUEST_CSUM == 0 {
        return 0;
    }
    let mut offloads = TUN_F_CSUM;
    for (feature, offload) in [(GUEST_TSO4, TUN_F_TSO4), (GUEST_TSO6, TUN_F_TSO6)] {
        if features & feature != 0 {
            offloads |= offload;
        }
    }
    if features & GUEST_ECN != 0 && offloads != TUN_F_CSUM {
        offloads |= TUN_F_TSO_ECN;
    }
    if features & GUEST_USO4 != 0 && features & GUEST_USO6 != 0 {
        offloads |= TUN_F_USO;
    }
    offloads
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tap_leaves_nothing_to_a_guest_that_takes_no_checksums() {
        assert_eq!(tap_offloads(TAKEN & !GUEST_CSUM), 0);
        assert_eq!(tap_offloads(GUEST_CSUM | GUEST_ECN), TUN_F_CSUM);
        assert_eq!(tap_offloads(OFFERED), TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN);
    }

    #[test]
    fn the_tap_leaves_datagrams_to_a_guest_that_takes_them_of_both_versions() {
        assert_eq!(tap_offloads(GUEST_CSUM | GUEST_USO4), TUN_F_CSUM);
        assert_eq!(tap_offloads(GUEST_CSUM | GUEST_USO4 | GUEST_USO6), TUN_F_CSUM | 0x60);
    }

    #[test]
    fn only_a_legacy_driver_without_merging_has_the_short_header() {
        assert_eq!(header_len(0), 10);
        assert_eq!(header_len(MRG_RXBUF), 12);
        assert_eq!(header_len(vu_server::F_VERSION_1), 12);
    }
}
