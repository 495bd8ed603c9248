//! The offloads that a receiver leaves to its device, in software: it fills in checksums that the sender left open, and
//! cuts large segments into frames. Pure.
//!
//! | sender's header | becomes |
//! |---|---|
//! | `NEEDS_CSUM` | the frame with its checksum ([`fill`]) |
//! | `GSO_TCPV4`, `GSO_TCPV6`, `GSO_UDP_L4` | frames with at most `gso_size` bytes of payload each ([`Cut`]) |
//!
//! The header has passed [`header::check`](crate::header::check); this module checks that it fits the packet. Refused
//! are segments other than plain TCP or UDP in IPv4 or IPv6 (fragments, extension headers, tunnels), and segments that
//! would become more than [`MAX_SEGMENTS`] frames: one frame of a guest costs its receiver a bounded amount of work.

mod cut;
mod sum;
#[cfg(test)]
mod tests;

use crate::header::{LEN, MAX_FRAME};

pub use cut::Cut;
use sum::Sum;

/// Most pieces of one frame: TCP has at least 48 bytes of payload in a segment, as far as Linux sends it.
pub const MAX_SEGMENTS: usize = MAX_FRAME as usize / 48;

/// A header that does not fit its packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the header before the frame does not fit the packet in it")]
pub struct Unfit;

/// The header before a frame (virtio 1.3 §5.1.6), taken apart.
#[derive(Debug, Clone, Copy)]
struct Fields {
    gso_type: u8,
    gso_size: usize,
    checksum_start: usize,
    checksum_offset: usize,
}

impl From<&[u8; LEN]> for Fields {
    fn from(&[_, gso_type, _, _, g0, g1, s0, s1, o0, o1, _, _]: &[u8; LEN]) -> Self {
        let word = |bytes| usize::from(u16::from_le_bytes(bytes));
        Self {
            gso_type,
            gso_size: word([g0, g1]),
            checksum_start: word([s0, s1]),
            checksum_offset: word([o0, o1]),
        }
    }
}

/// Fills in the checksum that the header says is left open: that of all bytes from `csum_start` on, in which the
/// sender has put the sum of the pseudo header.
///
/// # Errors
/// [`Unfit`]: the place is outside the frame, which is as it was.
pub fn fill(header: &[u8; LEN], frame: &mut [u8]) -> Result<(), Unfit> {
    let Fields { checksum_start, checksum_offset, .. } = header.into();
    let covered = frame.get_mut(checksum_start..).ok_or(Unfit)?;
    let checksum = Sum::default().add(covered).checksum();
    let place = covered.get_mut(checksum_offset..).and_then(|rest| rest.first_chunk_mut()).ok_or(Unfit)?;
    *place = checksum;
    Ok(())
}
