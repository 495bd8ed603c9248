//! The format of an image as its own bytes have it.
//!
//! Nothing is served by what this says: a guest writes the first bytes of its disk. It is said to those who have named
//! no format, and it refuses to take a file for a raw disk that is an image of another kind.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of a file that are looked at, and their alignment: with `O_DIRECT` a page is what every file system reads.
const PAGE: usize = 4096;

/// Place, bytes, and the name of the format. ISO 9660 is not here: to a disk it is raw.
const HEADS: &[(usize, &[u8], &str)] = &[
    (0, b"QFI\xfb\0\0\0\x01", "qcow"),
    (0, b"QFI\xfb", QCOW2),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"vhdxfile", "VHDX"),
    (0, VHD, "VHD"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"LUKS\xba\xbe", LUKS),
];

/// The one format but raw that Domus serves, as a config has it.
pub const QCOW2: &str = "qcow2";

/// What a guest makes of a disk of its own when it encrypts it.
pub const LUKS: &str = "LUKS";

/// Begins the footer of a VHD, which one with a fixed size has at its end only.
const VHD: &[u8] = b"conectix";

/// The format that the first page of an image tells, whether the image is open with `O_DIRECT` or not. None: raw, or
/// what nobody knows.
///
/// # Errors
/// The system's.
pub fn head(image: &File) -> io::Result<Option<&'static str>> {
    let mut buffer = vec![0; 2 * PAGE];
    let start = buffer.as_ptr().align_offset(PAGE);
    let read = image.read_at(&mut buffer[start..start + PAGE], 0)?;
    Ok(told(&buffer[start..start + read]))
}

/// As [`head`], and at the end of a regular file, too.
///
/// # Errors
/// The system's.
pub fn whole(image: &File) -> io::Result<Option<&'static str>> {
    let told = head(image)?;
    let meta = image.metadata()?;
    if told.is_some() || !meta.is_file() {
        return Ok(told);
    }
    // 512 bytes, or 511 as Virtual PC 2004 wrote it.
    for footer in [512, 511] {
        let mut bytes = [0; VHD.len()];
        if let Some(at) = meta.len().checked_sub(footer)
            && image.read_exact_at(&mut bytes, at).is_ok()
            && bytes == VHD
        {
            return Ok(Some("VHD"));
        }
    }
    Ok(None)
}

fn told(bytes: &[u8]) -> Option<&'static str> {
    let is = |at: usize, magic: &[u8]| bytes.get(at..at + magic.len()) == Some(magic);
    HEADS.iter().find(|(at, magic, _)| is(*at, magic)).map(|(.., name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_format_is_told_by_its_bytes_and_what_has_none_is_raw() {
        let image = tempfile::tempfile().unwrap();
        let told = |at: u64, bytes: &[u8]| {
            image.set_len(0).unwrap();
            image.set_len(40_000).unwrap();
            image.write_all_at(bytes, at).unwrap();
            whole(&image).unwrap()
        };
        for (at, magic, name) in HEADS {
            assert_eq!(told(*at as u64, magic), Some(*name), "{magic:?}");
        }
        assert_eq!(told(40_000 - 512, VHD), Some("VHD"));
        assert_eq!(told(40_000 - 511, VHD), Some("VHD"));
        assert_eq!(told(0, b"QFI\xfb\0\0\0\x03"), Some(QCOW2));
        // An ISO's volume descriptor, a boot sector, a file system.
        for (at, magic) in [(32_769, &b"CD001"[..]), (510, b"\x55\xaa"), (1080, b"\x53\xef"), (4, b"QFI\xfb")]
        {
            assert_eq!(told(at, magic), None, "{magic:?}");
        }
        for short in [0, 3, 100] {
            image.set_len(short).unwrap();
            assert_eq!(whole(&image).unwrap(), None);
        }
    }
}
