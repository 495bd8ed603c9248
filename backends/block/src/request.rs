//! What a guest asks of a disk, checked: bytes and lengths in, a request or a refusal out. Nothing else happens here.
//!
//! The rules are those of virtio 1.3 §5.2.6; the lengths are the guest's and may be anything.

/// Bytes of a request's header: type, reserved, sector, each little-endian.
pub const HEADER: u64 = 16;
/// Bytes in a sector, whatever the disk's block size (virtio 1.3 §5.2.6).
pub const SECTOR: u64 = 512;
/// Bytes that `VIRTIO_BLK_T_GET_ID` returns.
pub const ID_LEN: usize = 20;
/// Most bytes of one request: a chain may hold no more (virtio 1.3 §2.7.5).
pub const MAX_LEN: u64 = 1 << 32;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;

/// A request that can be carried out: offset and length are within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Fill the guest's buffers.
    Read {
        /// First byte in the image.
        offset: u64,
        /// Bytes, a multiple of [`SECTOR`].
        len: u64,
    },
    /// Store the guest's buffers.
    Write {
        /// First byte in the image.
        offset: u64,
        /// Bytes, a multiple of [`SECTOR`].
        len: u64,
    },
    /// Make everything written so far survive a power cut.
    Flush,
    /// Say the disk's serial, [`ID_LEN`] bytes.
    Id,
}

/// Why a request is not carried out: the status that the guest sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// `VIRTIO_BLK_S_IOERR`: it is against the rules, or beyond the disk.
    Bad,
    /// `VIRTIO_BLK_S_UNSUPP`: no such type of request is offered.
    Unsupported,
}

/// What a request is checked against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Number of sectors.
    pub sectors: u64,
    /// Refuse to write.
    pub read_only: bool,
}

/// Checks a request: its header, the bytes of data the guest gives (behind the header) and those it takes (before the
/// status).
///
/// # Errors
/// [`Refusal`].
pub fn parse(
    bounds: Bounds,
    header: &[u8; HEADER as usize],
    given: u64,
    taken: u64,
) -> Result<Request, Refusal> {
    let kind = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
    let mut sector = [0; 8];
    sector.copy_from_slice(&header[8..]);
    let sector = u64::from_le_bytes(sector);
    match kind {
        T_IN if given == 0 => {
            extent(bounds, sector, taken).map(|offset| Request::Read { offset, len: taken })
        }
        T_OUT if taken == 0 && !bounds.read_only => {
            extent(bounds, sector, given).map(|offset| Request::Write { offset, len: given })
        }
        // A driver should give no data and sector 0 with a flush; neither matters to it.
        T_FLUSH => Ok(Request::Flush),
        T_GET_ID if given == 0 && taken == ID_LEN as u64 => Ok(Request::Id),
        T_IN | T_OUT | T_GET_ID => Err(Refusal::Bad),
        _ => Err(Refusal::Unsupported),
    }
}

/// The offset in bytes of `len` bytes from `sector`, if they are whole sectors of the disk.
fn extent(bounds: Bounds, sector: u64, len: u64) -> Result<u64, Refusal> {
    let count = len / SECTOR;
    let fits = sector.checked_add(count).is_some_and(|end| end <= bounds.sectors);
    if !fits || !len.is_multiple_of(SECTOR) || len > MAX_LEN {
        return Err(Refusal::Bad);
    }
    sector.checked_mul(SECTOR).ok_or(Refusal::Bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Bounds = Bounds { sectors: 100, read_only: false };

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut bytes = [0xee; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    #[test]
    fn each_rule_broken_once_has_its_refusal() {
        let read_only = Bounds { read_only: true, ..DISK };
        for (bounds, kind, sector, given, taken, refusal) in [
            (DISK, T_IN, 100, 0, 512, Refusal::Bad),
            (DISK, T_IN, 99, 0, 1024, Refusal::Bad),
            (DISK, T_IN, 101, 0, 0, Refusal::Bad),
            (DISK, T_IN, u64::MAX, 0, 512, Refusal::Bad),
            (DISK, T_IN, 0, 0, 511, Refusal::Bad),
            (DISK, T_IN, 0, 512, 512, Refusal::Bad),
            (DISK, T_IN, 0, 0, u64::MAX, Refusal::Bad),
            (Bounds { sectors: u64::MAX, read_only: false }, T_IN, 0, 0, MAX_LEN + 512, Refusal::Bad),
            (Bounds { sectors: u64::MAX, read_only: false }, T_IN, 1 << 60, 0, 512, Refusal::Bad),
            (DISK, T_OUT, 100, 512, 0, Refusal::Bad),
            (DISK, T_OUT, 0, 513, 0, Refusal::Bad),
            (DISK, T_OUT, 0, 512, 1, Refusal::Bad),
            (read_only, T_OUT, 0, 512, 0, Refusal::Bad),
            (DISK, T_GET_ID, 0, 0, 19, Refusal::Bad),
            (DISK, T_GET_ID, 0, 0, 21, Refusal::Bad),
            (DISK, T_GET_ID, 0, 1, 20, Refusal::Bad),
            (DISK, 2, 0, 0, 0, Refusal::Unsupported),
            (DISK, 11, 0, 16, 0, Refusal::Unsupported),
            (DISK, 13, 0, 16, 0, Refusal::Unsupported),
            (DISK, u32::MAX, 0, 0, 0, Refusal::Unsupported),
        ] {
            assert_eq!(
                parse(bounds, &header(kind, sector), given, taken),
                Err(refusal),
                "{kind} {sector} {given} {taken}"
            );
        }
    }

    #[test]
    fn the_last_sector_can_be_read_and_written() {
        assert_eq!(parse(DISK, &header(T_IN, 99), 0, 512), Ok(Request::Read { offset: 99 * 512, len: 512 }));
        assert_eq!(
            parse(DISK, &header(T_OUT, 98), 1024, 0),
            Ok(Request::Write { offset: 98 * 512, len: 1024 })
        );
        assert_eq!(parse(DISK, &header(T_FLUSH, 7), 3, 9), Ok(Request::Flush));
        assert_eq!(parse(DISK, &header(T_GET_ID, 7), 0, 20), Ok(Request::Id));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_a_request_stays_within_its_disk(
            mut bytes: [u8; 16],
            kind in prop_oneof![Just(None), (0_u32..16).prop_map(Some)],
            given: u64,
            taken: u64,
            sectors in 0..u64::MAX / SECTOR,
            read_only: bool,
        ) {
            if let Some(kind) = kind {
                bytes[..4].copy_from_slice(&kind.to_le_bytes());
            }
            match parse(Bounds { sectors, read_only }, &bytes, given, taken) {
                Ok(Request::Read { offset, len }) => {
                    prop_assert!(offset + len <= sectors * SECTOR);
                    prop_assert_eq!((len, len % SECTOR), (taken, 0));
                }
                Ok(Request::Write { offset, len }) => {
                    prop_assert!(!read_only && offset + len <= sectors * SECTOR);
                    prop_assert_eq!((len, len % SECTOR), (given, 0));
                }
                Ok(Request::Id) => prop_assert_eq!(taken, 20),
                Ok(Request::Flush) | Err(_) => {}
            }
        }
    }
}
