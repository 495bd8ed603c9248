//! The header before a frame that a driver sends (virtio 1.3 §5.1.6), checked against the frame and the features.
//!
//! Refused: a frame that no Ethernet has, a checksum or segments that were not negotiated, a checksum outside the
//! frame, segments of no size or without a checksum. Promised: what passes is exactly what the tap is given, since it
//! is a copy; the guest cannot change it afterwards. The kernel checks the rest against the packet's own headers.

use shared_abi::control::DropReason;

use crate::features;

/// Bytes of the longest header.
pub const LEN: usize = 12;

/// Bytes of an Ethernet header: the shortest frame.
pub const MIN_FRAME: u64 = 14;

/// Bytes of the longest frame: 64 KiB of IP packet, an Ethernet header and a VLAN tag.
pub const MAX_FRAME: u64 = 65_536 + 14 + 4;

pub(crate) const NEEDS_CSUM: u8 = 1;
pub(crate) const GSO_NONE: u8 = 0;
pub(crate) const GSO_TCPV4: u8 = 1;
pub(crate) const GSO_TCPV6: u8 = 4;
pub(crate) const GSO_UDP_L4: u8 = 5;
pub(crate) const GSO_ECN: u8 = 0x80;

/// Why a frame is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Shorter than [`MIN_FRAME`] or longer than [`MAX_FRAME`].
    Length,
    /// A checksum that was not negotiated or is outside the frame.
    Checksum,
    /// Segments that were not negotiated, of no size or without a checksum.
    Segments,
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Length => Self::Length,
            Refusal::Checksum | Refusal::Segments => Self::Header,
        }
    }
}

/// The header to give the tap for one of the driver's, before a frame of `frame` bytes.
///
/// # Errors
/// [`Refusal`].
pub fn check(header: [u8; LEN], frame: u64, negotiated: u64) -> Result<[u8; LEN], Refusal> {
    let [flags, gso_type, h0, h1, g0, g1, s0, s1, o0, o1, _, _] = header;
    let [hdr_len, gso_size, csum_start, csum_offset] =
        [[h0, h1], [g0, g1], [s0, s1], [o0, o1]].map(u16::from_le_bytes);
    if !(MIN_FRAME..=MAX_FRAME).contains(&frame) {
        return Err(Refusal::Length);
    }
    let mut out = [0; LEN];
    let needs_csum = flags & NEEDS_CSUM != 0;
    if needs_csum {
        let end = u64::from(csum_start) + u64::from(csum_offset) + 2;
        if negotiated & features::CSUM == 0 || end > frame {
            return Err(Refusal::Checksum);
        }
        out[0] = NEEDS_CSUM;
        out[6..8].copy_from_slice(&[s0, s1]);
        out[8..10].copy_from_slice(&[o0, o1]);
    }
    if gso_type != GSO_NONE {
        let needed = match gso_type {
            GSO_TCPV4 => features::HOST_TSO4,
            GSO_TCPV6 => features::HOST_TSO6,
            GSO_UDP_L4 => features::HOST_USO,
            _ => match gso_type & !GSO_ECN {
                GSO_TCPV4 => features::HOST_TSO4 | features::HOST_ECN,
                GSO_TCPV6 => features::HOST_TSO6 | features::HOST_ECN,
                _ => return Err(Refusal::Segments),
            },
        };
        if negotiated & needed != needed || gso_size == 0 || !needs_csum {
            return Err(Refusal::Segments);
        }
        // A hint that need not be right (virtio 1.3 §5.1.6.2.2); the kernel refuses one beyond the frame.
        let hdr_len = u64::from(hdr_len).min(frame) as u16;
        out[1] = gso_type;
        out[2..4].copy_from_slice(&hdr_len.to_le_bytes());
        out[4..6].copy_from_slice(&[g0, g1]);
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ALL: u64 = features::OFFERED | features::DATAGRAMS;
    const TCP: [u8; LEN] = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 9, 9];

    #[test]
    fn a_proper_segment_passes_without_what_is_not_the_drivers_to_say() {
        assert_eq!(check(TCP, 60_000, ALL).unwrap(), [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        // DATA_VALID and RSC_INFO are the device's flags: ignored.
        assert_eq!(check([0xfe, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1], 60, ALL).unwrap(), [0; LEN]);
    }

    #[test]
    fn each_rule_broken_once_is_refused() {
        let with = |at: usize, value: u8| {
            let mut header = TCP;
            header[at] = value;
            header
        };
        for (header, frame, features, why) in [
            (TCP, 13, ALL, Refusal::Length),
            (TCP, MAX_FRAME + 1, ALL, Refusal::Length),
            (TCP, 51, ALL, Refusal::Checksum),
            (with(7, 0xff), 60_000, ALL, Refusal::Checksum),
            (with(9, 0xff), 60_000, ALL, Refusal::Checksum),
            (TCP, 60_000, ALL & !features::CSUM, Refusal::Checksum),
            (TCP, 60_000, ALL & !features::HOST_TSO4, Refusal::Segments),
            (with(1, 4), 60_000, ALL & !features::HOST_TSO6, Refusal::Segments),
            (with(1, 0x81), 60_000, ALL & !features::HOST_ECN, Refusal::Segments),
            (with(1, 0x80), 60_000, ALL, Refusal::Segments),
            (with(1, 3), 60_000, ALL, Refusal::Segments),
            (with(1, 5), 60_000, ALL & !features::HOST_USO, Refusal::Segments),
            (with(1, 0x85), 60_000, ALL, Refusal::Segments),
            (with(1, 0xff), 60_000, ALL, Refusal::Segments),
            (with(0, 0), 60_000, ALL, Refusal::Segments),
            ([1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0], 60_000, ALL, Refusal::Segments),
        ] {
            assert_eq!(check(header, frame, features), Err(why), "{header:?} {frame}");
        }
    }

    proptest! {
        #[test]
        fn what_passes_points_nowhere_outside_the_frame(
            header in any::<[u8; LEN]>(),
            frame in 0_u64..70_000,
            features in any::<u64>(),
        ) {
            if let Ok(out) = check(header, frame, features) {
                let word = |at: usize| u64::from(u16::from_le_bytes([out[at], out[at + 1]]));
                prop_assert!(out[0] & !NEEDS_CSUM == 0 && word(2) <= frame);
                prop_assert!(out[0] == 0 || word(6) + word(8) + 2 <= frame);
                prop_assert!(out[1] == 0 || (out[0] == 1 && word(4) > 0));
                prop_assert_eq!(check(out, frame, features), Ok(out));
            }
        }
    }
}
