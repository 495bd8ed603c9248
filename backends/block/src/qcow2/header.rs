//! What a qcow2 header may say, checked before imago reads it: sizes that would cost memory, and features that are not
//! served, refused with the reason and the cure.
//!
//! The layout is that of QEMU's `docs/interop/qcow2.txt`.

/// Bytes of the header that are looked at: version 2 has 72, version 3 at least 104.
pub const LEN: usize = 104;

/// Most bytes of the L1 table and of the refcount table, as QEMU has it.
const MAX_L1: u64 = 32 << 20;
const MAX_REFCOUNT_TABLE: u64 = 8 << 20;
/// Most bytes of a disk: what file systems and virtio's sectors hold.
const MAX_SIZE: u64 = i64::MAX as u64 & !0xfff;

/// Incompatible features.
const DIRTY: u64 = 1 << 0;
const CORRUPT: u64 = 1 << 1;
const DATA_FILE: u64 = 1 << 2;
const COMPRESSION: u64 = 1 << 3;
const EXTENDED_L2: u64 = 1 << 4;

/// Why an image is not served.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// No magic number.
    #[error("it is no qcow2 image: is its format \"raw\"?")]
    Magic,
    /// Neither version 2 nor 3.
    #[error("qcow2 version {0}: versions 2 and 3 are served")]
    Version(u32),
    /// Clusters smaller than 512 bytes or larger than 2 MiB.
    #[error("clusters of 2^{0} bytes: 2^9 to 2^21 are allowed")]
    Cluster(u32),
    /// A table or size that no real image has.
    #[error("{what} of {value} is more than {most}, what an image may have")]
    Size {
        /// Of what.
        what: &'static str,
        /// As the header has it.
        value: u64,
        /// What is allowed.
        most: u64,
    },
    /// Encrypted.
    #[error("the image is encrypted, which is not served: convert it with qemu-img")]
    Encrypted,
    /// Not closed properly, with lazy reference counts.
    #[error("the image was not closed properly: run `qemu-img check -r all` on it")]
    Dirty,
    /// Marked as damaged.
    #[error("the image is marked as corrupt: run `qemu-img check -r all` on it")]
    Corrupt,
    /// The guest's data is in another file.
    #[error("the image's data is in an external file, which is not served: convert it with qemu-img")]
    DataFile,
    /// Not deflate.
    #[error("the image is not compressed with zlib: convert it with qemu-img")]
    Compression,
    /// Subclusters.
    #[error("the image has extended L2 entries, which are not served: convert it with qemu-img")]
    ExtendedL2,
    /// Blocks of reference counts are missing in the middle.
    #[error("the image's reference counts have gaps: run `qemu-img check -r all` on it")]
    Gaps,
    /// Something newer.
    #[error("the image has unknown incompatible features {0:#x}: convert it with qemu-img")]
    Features(u64),
}

/// What a header says of its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// 2 or 3.
    pub version: u32,
    /// Bytes of a cluster.
    pub cluster: u32,
    /// The size of the disk in bytes.
    pub bytes: u64,
    /// Where the L1 table is, and how many entries it has.
    pub l1: (u64, u32),
    /// Number of internal snapshots.
    pub snapshots: u32,
    /// Where the list of them is.
    pub snapshots_at: u64,
    /// Where the refcount table is, and how many bytes it has.
    pub refcount_table: (u64, u64),
    /// Bits of a reference count: 1 to 64.
    pub refcount_bits: u32,
}

/// The number at an offset; 0 behind the end.
pub(super) fn be32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u32::from_be_bytes(*bytes))
}

/// See [`be32`].
pub(super) fn be64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_be_bytes(*bytes))
}

/// Checks the first bytes of an image, zeros behind its end.
///
/// # Errors
/// [`HeaderError`].
pub fn check(bytes: &[u8; LEN]) -> Result<Facts, HeaderError> {
    if &bytes[..4] != b"QFI\xfb" {
        return Err(HeaderError::Magic);
    }
    let version = be32(bytes, 4);
    if !(2..=3).contains(&version) {
        return Err(HeaderError::Version(version));
    }
    let cluster_bits = be32(bytes, 20);
    if !(9..=21).contains(&cluster_bits) {
        return Err(HeaderError::Cluster(cluster_bits));
    }
    let refcount_table = u64::from(be32(bytes, 56)) << cluster_bits;
    for (what, value, most) in [
        ("a size", be64(bytes, 24), MAX_SIZE),
        ("an L1 table", u64::from(be32(bytes, 36)) * 8, MAX_L1),
        ("a refcount table", refcount_table, MAX_REFCOUNT_TABLE.max(1 << cluster_bits)),
        ("a backing path", be32(bytes, 16).into(), 1023),
    ] {
        if value > most {
            return Err(HeaderError::Size { what, value, most });
        }
    }
    if be32(bytes, 32) != 0 {
        return Err(HeaderError::Encrypted);
    }
    match if version == 2 { 0 } else { be64(bytes, 72) } {
        0 => Ok(Facts {
            version,
            cluster: 1 << cluster_bits,
            bytes: be64(bytes, 24),
            l1: (be64(bytes, 40), be32(bytes, 36)),
            snapshots: be32(bytes, 60),
            snapshots_at: be64(bytes, 64),
            refcount_table: (be64(bytes, 48), refcount_table),
            refcount_bits: if version == 2 { 16 } else { 1 << be32(bytes, 96).min(6) },
        }),
        features if features & CORRUPT != 0 => Err(HeaderError::Corrupt),
        features if features & DIRTY != 0 => Err(HeaderError::Dirty),
        features if features & DATA_FILE != 0 => Err(HeaderError::DataFile),
        features if features & COMPRESSION != 0 => Err(HeaderError::Compression),
        features if features & EXTENDED_L2 != 0 => Err(HeaderError::ExtendedL2),
        features => Err(HeaderError::Features(features)),
    }
}

/// Checks the refcount table of an image that is to be written to: its list of refcount blocks must have no gap.
///
/// All programs write it without a gap. Given a gap at the place where it first searches for free clusters, imago
/// recurses without end.
///
/// # Errors
/// [`HeaderError::Gaps`].
pub fn check_refcount_table(table: &[u8]) -> Result<(), HeaderError> {
    let mut entries = table.as_chunks::<8>().0.iter().map(|entry| entry.iter().any(|&byte| byte != 0));
    let first = entries.next().unwrap_or(false);
    // Behind the first that is missing, all are.
    if first && !entries.skip_while(|&there| there).any(|there| there) {
        Ok(())
    } else {
        Err(HeaderError::Gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        bytes[23] = 16;
        bytes[29] = 1;
        bytes
    }

    #[test]
    fn each_rule_broken_once_has_its_refusal() {
        let facts = Facts {
            version: 3,
            cluster: 1 << 16,
            bytes: 1 << 16,
            l1: (0, 0),
            snapshots: 0,
            snapshots_at: 0,
            refcount_table: (0, 0),
            refcount_bits: 1,
        };
        assert_eq!(check(&header()), Ok(facts));
        for (at, byte, refusal) in [
            (3, 0, HeaderError::Magic),
            (7, 4, HeaderError::Version(4)),
            (23, 22, HeaderError::Cluster(22)),
            (23, 8, HeaderError::Cluster(8)),
            (35, 1, HeaderError::Encrypted),
            (79, 1, HeaderError::Dirty),
            (79, 3, HeaderError::Corrupt),
            (79, 4, HeaderError::DataFile),
            (79, 8, HeaderError::Compression),
            (79, 16, HeaderError::ExtendedL2),
            (78, 1, HeaderError::Features(0x100)),
            (24, 0x80, HeaderError::Size { what: "a size", value: (1 << 63) + (1 << 16), most: MAX_SIZE }),
            (36, 1, HeaderError::Size { what: "an L1 table", value: 8 << 24, most: MAX_L1 }),
            (58, 1, HeaderError::Size { what: "a refcount table", value: 1 << 24, most: MAX_REFCOUNT_TABLE }),
            (17, 1, HeaderError::Size { what: "a backing path", value: 1 << 16, most: 1023 }),
        ] {
            let mut bytes = header();
            bytes[at] = byte;
            assert_eq!(check(&bytes), Err(refusal), "byte {at}");
        }
        let mut second = header();
        second[7] = 2;
        second[79] = 0xff;
        assert!(check(&second).is_ok(), "version 2 has no features");
    }

    #[test]
    fn a_refcount_table_with_a_gap_is_refused() {
        let table =
            |there: &[u8]| there.iter().flat_map(|&byte| [0, 0, 0, 0, 0, byte, 0, 0]).collect::<Vec<_>>();
        for (there, result) in [
            (&[1, 0, 0][..], Ok(())),
            (&[1, 2], Ok(())),
            (&[0, 0], Err(HeaderError::Gaps)),
            (&[0, 1], Err(HeaderError::Gaps)),
            (&[1, 0, 1], Err(HeaderError::Gaps)),
            (&[], Err(HeaderError::Gaps)),
        ] {
            assert_eq!(check_refcount_table(&table(there)), result, "{there:?}");
        }
    }
}
