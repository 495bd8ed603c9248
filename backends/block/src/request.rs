//! Parses and checks a guest's request to a disk: bytes and lengths in, a request or a refusal out. Pure.
//!
//! The rules are those of virtio 1.3 §5.2.6; the lengths are the guest's and may be anything. A discard or
//! write-zeroes comes in two steps: [`parse`] says how many segments there are, [`segment`] checks each.

/// Bytes of a request's header: type, reserved, sector, each little-endian.
pub const HEADER: u64 = 16;
/// Bytes in a sector, whatever the disk's block size (virtio 1.3 §5.2.6).
pub const SECTOR: u64 = 512;
/// Bytes that `VIRTIO_BLK_T_GET_ID` returns.
pub const ID_LEN: usize = 20;
/// Most bytes of one request: a chain may hold no more (virtio 1.3 §2.7.5).
pub const MAX_LEN: u64 = 1 << 32;

/// Bytes of one segment of a discard or write-zeroes: sector, number of sectors, flags.
pub const SEGMENT: usize = 16;
/// Most segments of one such request (`max_discard_seg`, `max_write_zeroes_seg`).
pub const MAX_SEGMENTS: usize = 16;
/// Most sectors of one segment: 1 GiB, so that no request keeps the host's file system busy for long.
pub const MAX_SEGMENT_SECTORS: u32 = 1 << 21;

const T_IN: u32 = 0;
const T_OUT: u32 = 1;
const T_FLUSH: u32 = 4;
const T_GET_ID: u32 = 8;
const T_DISCARD: u32 = 11;
const T_WRITE_ZEROES: u32 = 13;
/// The flag of a segment that lets a write-zeroes give space back; all others are reserved.
const UNMAP: u32 = 1;

/// A request that can be carried out: offset and length are within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Fill the guest's buffers.
    Read {
        /// First byte in the disk.
        offset: u64,
        /// Bytes, a multiple of the block size.
        len: u64,
    },
    /// Store the guest's buffers.
    Write {
        /// First byte in the disk.
        offset: u64,
        /// Bytes, a multiple of the block size.
        len: u64,
    },
    /// Make everything written so far survive a power cut.
    Flush,
    /// Say the disk's serial, [`ID_LEN`] bytes.
    Id,
    /// Give the space of some segments back; what is read from them afterwards may be anything.
    Discard {
        /// How many segments follow the header, 1 to [`MAX_SEGMENTS`].
        segments: usize,
    },
    /// Make some segments read as zeros.
    WriteZeroes {
        /// How many segments follow the header, 1 to [`MAX_SEGMENTS`].
        segments: usize,
    },
}

/// One segment of a discard or write-zeroes, within the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First byte in the disk.
    pub offset: u64,
    /// Bytes, a multiple of the block size.
    pub len: u64,
    /// The space may be given back.
    pub unmap: bool,
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
    /// Bytes of a logical block, a power of two from 512 on: requests are made of whole ones.
    pub block_size: u32,
    /// Refuse to write.
    pub read_only: bool,
    /// Discards are offered.
    pub discard: bool,
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
        T_DISCARD if bounds.discard && !bounds.read_only => {
            count(given, taken).map(|segments| Request::Discard { segments })
        }
        T_WRITE_ZEROES if !bounds.read_only => {
            count(given, taken).map(|segments| Request::WriteZeroes { segments })
        }
        T_IN | T_OUT | T_GET_ID => Err(Refusal::Bad),
        _ => Err(Refusal::Unsupported),
    }
}

/// How many segments so many bytes are.
fn count(given: u64, taken: u64) -> Result<usize, Refusal> {
    let segments = usize::try_from(given / SEGMENT as u64).map_err(|_| Refusal::Bad)?;
    let whole = taken == 0 && given.is_multiple_of(SEGMENT as u64);
    if whole && (1..=MAX_SEGMENTS).contains(&segments) { Ok(segments) } else { Err(Refusal::Bad) }
}

/// Checks one segment of a discard, or of a write-zeroes if `zeroes`.
///
/// # Errors
/// [`Refusal`].
pub fn segment(bounds: Bounds, zeroes: bool, bytes: &[u8; SEGMENT]) -> Result<Range, Refusal> {
    let (words, _) = bytes.as_chunks::<4>();
    let word = |at: usize| u32::from_le_bytes(words[at]);
    let sector = u64::from(word(0)) | u64::from(word(1)) << 32;
    let (sectors, flags) = (word(2), word(3));
    // A discard has no flag at all (virtio 1.3 §5.2.6.2).
    if flags & !(if zeroes { UNMAP } else { 0 }) != 0 {
        return Err(Refusal::Unsupported);
    }
    if sectors > MAX_SEGMENT_SECTORS {
        return Err(Refusal::Bad);
    }
    let len = u64::from(sectors) * SECTOR;
    Ok(Range { offset: extent(bounds, sector, len)?, len, unmap: !zeroes || flags & UNMAP != 0 })
}

/// The offset in bytes of `len` bytes from `sector`, if they are whole blocks of the disk.
fn extent(bounds: Bounds, sector: u64, len: u64) -> Result<u64, Refusal> {
    let block = u64::from(bounds.block_size);
    let fits = sector.checked_add(len / SECTOR).is_some_and(|end| end <= bounds.sectors);
    if !fits || !len.is_multiple_of(block) || len > MAX_LEN {
        return Err(Refusal::Bad);
    }
    sector.checked_mul(SECTOR).filter(|offset| offset.is_multiple_of(block)).ok_or(Refusal::Bad)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DISK: Bounds = Bounds { sectors: 100, block_size: 512, read_only: false, discard: true };

    fn header(kind: u32, sector: u64) -> [u8; 16] {
        let mut bytes = [0xee; 16];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&sector.to_le_bytes());
        bytes
    }

    #[test]
    fn each_rule_broken_once_has_its_refusal() {
        let read_only = Bounds { read_only: true, ..DISK };
        let huge = Bounds { sectors: u64::MAX, ..DISK };
        let blocks = Bounds { block_size: 4096, ..DISK };
        let kept = Bounds { discard: false, ..DISK };
        for (bounds, kind, sector, given, taken, refusal) in [
            (DISK, T_IN, 100, 0, 512, Refusal::Bad),
            (DISK, T_IN, 99, 0, 1024, Refusal::Bad),
            (DISK, T_IN, 101, 0, 0, Refusal::Bad),
            (DISK, T_IN, u64::MAX, 0, 512, Refusal::Bad),
            (DISK, T_IN, 0, 0, 511, Refusal::Bad),
            (DISK, T_IN, 0, 512, 512, Refusal::Bad),
            (DISK, T_IN, 0, 0, u64::MAX, Refusal::Bad),
            (huge, T_IN, 0, 0, MAX_LEN + 512, Refusal::Bad),
            (huge, T_IN, 1 << 60, 0, 512, Refusal::Bad),
            (DISK, T_OUT, 100, 512, 0, Refusal::Bad),
            (DISK, T_OUT, 0, 513, 0, Refusal::Bad),
            (DISK, T_OUT, 0, 512, 1, Refusal::Bad),
            (read_only, T_OUT, 0, 512, 0, Refusal::Bad),
            (DISK, T_GET_ID, 0, 0, 19, Refusal::Bad),
            (DISK, T_GET_ID, 0, 0, 21, Refusal::Bad),
            (DISK, T_GET_ID, 0, 1, 20, Refusal::Bad),
            (DISK, 2, 0, 0, 0, Refusal::Unsupported),
            (blocks, T_IN, 0, 0, 512, Refusal::Bad),
            (blocks, T_IN, 1, 0, 4096, Refusal::Bad),
            (blocks, T_OUT, 8, 4608, 0, Refusal::Bad),
            (DISK, T_DISCARD, 0, 0, 0, Refusal::Bad),
            (DISK, T_DISCARD, 0, 15, 0, Refusal::Bad),
            (DISK, T_DISCARD, 0, 24, 0, Refusal::Bad),
            (DISK, T_DISCARD, 0, 16, 1, Refusal::Bad),
            (DISK, T_DISCARD, 0, 16 * 17, 0, Refusal::Bad),
            (DISK, T_DISCARD, 0, u64::MAX, 0, Refusal::Bad),
            (DISK, T_WRITE_ZEROES, 0, 16 * 17, 0, Refusal::Bad),
            (read_only, T_DISCARD, 0, 16, 0, Refusal::Unsupported),
            (read_only, T_WRITE_ZEROES, 0, 16, 0, Refusal::Unsupported),
            (kept, T_DISCARD, 0, 16, 0, Refusal::Unsupported),
            (DISK, 14, 0, 16, 0, Refusal::Unsupported),
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
        let kept = Bounds { discard: false, ..DISK };
        assert_eq!(
            parse(kept, &header(T_WRITE_ZEROES, 7), 256, 0),
            Ok(Request::WriteZeroes { segments: 16 })
        );
        assert_eq!(parse(DISK, &header(T_DISCARD, 7), 16, 0), Ok(Request::Discard { segments: 1 }));
    }

    fn bytes(sector: u64, sectors: u32, flags: u32) -> [u8; SEGMENT] {
        let mut bytes = [0; SEGMENT];
        bytes[..8].copy_from_slice(&sector.to_le_bytes());
        bytes[8..12].copy_from_slice(&sectors.to_le_bytes());
        bytes[12..].copy_from_slice(&flags.to_le_bytes());
        bytes
    }

    #[test]
    fn each_rule_of_a_segment_broken_once_has_its_refusal() {
        let huge = Bounds { sectors: u64::MAX, ..DISK };
        let blocks = Bounds { block_size: 4096, ..DISK };
        for (bounds, zeroes, sector, sectors, flags, refusal) in [
            (DISK, false, 100, 1, 0, Refusal::Bad),
            (DISK, false, 0, 101, 0, Refusal::Bad),
            (DISK, true, u64::MAX, 1, 0, Refusal::Bad),
            (huge, true, 1 << 55, 1, 0, Refusal::Bad),
            (huge, false, 0, MAX_SEGMENT_SECTORS + 1, 0, Refusal::Bad),
            (blocks, false, 8, 7, 0, Refusal::Bad),
            (blocks, true, 7, 8, 0, Refusal::Bad),
            (DISK, false, 0, 1, 1, Refusal::Unsupported),
            (DISK, false, 0, 1, 2, Refusal::Unsupported),
            (DISK, true, 0, 1, 2, Refusal::Unsupported),
            (DISK, true, 0, 1, 1 << 31 | 1, Refusal::Unsupported),
        ] {
            let got = segment(bounds, zeroes, &bytes(sector, sectors, flags));
            assert_eq!(got, Err(refusal), "{zeroes} {sector} {sectors} {flags}");
        }
        let all = Range { offset: 0, len: 51200, unmap: false };
        assert_eq!(segment(DISK, true, &bytes(0, 100, 0)), Ok(all));
        assert_eq!(segment(DISK, true, &bytes(0, 100, 1)), Ok(Range { unmap: true, ..all }));
        assert_eq!(segment(DISK, false, &bytes(0, 100, 0)), Ok(Range { unmap: true, ..all }));
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
            discard: bool,
        ) {
            if let Some(kind) = kind {
                bytes[..4].copy_from_slice(&kind.to_le_bytes());
            }
            let bounds = Bounds { sectors, block_size: 512, read_only, discard };
            if let Ok(range) = segment(bounds, given % 2 == 0, &bytes) {
                prop_assert!(range.offset + range.len <= sectors * SECTOR);
            }
            match parse(bounds, &bytes, given, taken) {
                Ok(Request::Read { offset, len }) => {
                    prop_assert!(offset + len <= sectors * SECTOR);
                    prop_assert_eq!((len, len % SECTOR), (taken, 0));
                }
                Ok(Request::Write { offset, len }) => {
                    prop_assert!(!read_only && offset + len <= sectors * SECTOR);
                    prop_assert_eq!((len, len % SECTOR), (given, 0));
                }
                Ok(Request::Id) => prop_assert_eq!(taken, 20),
                Ok(Request::Discard { segments }) => {
                    prop_assert!(!read_only && discard && segments <= MAX_SEGMENTS);
                    prop_assert_eq!(given, (segments * SEGMENT) as u64);
                }
                Ok(Request::WriteZeroes { segments }) => {
                    prop_assert!(!read_only && segments <= MAX_SEGMENTS);
                    prop_assert_eq!(given, (segments * SEGMENT) as u64);
                }
                Ok(Request::Flush) | Err(_) => {}
            }
        }
    }
}
