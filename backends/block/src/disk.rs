//! An image: a regular file or a block device that was opened by somebody else.
//!
//! Refused: anything that is neither, and a writable disk on a descriptor that cannot write. Promised: the bounds are
//! taken once; an image that grows is not noticed, one that shrinks gives read errors.

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::request::{Bounds, ID_LEN, SECTOR};

/// Why an image cannot be a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// It is a directory, a socket, a pipe, a character device.
    #[error("an image is a regular file or a block device, this is neither")]
    NotAnImage,
    /// Less than one sector.
    #[error("an image of {0} bytes has no sector: at least {SECTOR} are needed")]
    Empty(u64),
    /// The descriptor cannot do what the disk needs.
    #[error("the image is not open for {0}")]
    Access(&'static str),
    /// Longer than what `VIRTIO_BLK_T_GET_ID` returns.
    #[error("serial \"{0}\" has more than {ID_LEN} bytes")]
    Serial(String),
    /// The system refused to say.
    #[error("cannot {act} the image")]
    System {
        /// What was attempted.
        act: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A disk to serve.
#[derive(Debug)]
pub struct Disk {
    file: File,
    bounds: Bounds,
    block_size: u32,
    id: [u8; ID_LEN],
    left_over: u64,
}

impl Disk {
    /// Looks at an open image.
    ///
    /// # Errors
    /// [`DiskError`].
    pub fn new(mut file: File, serial: &str, read_only: bool) -> Result<Self, DiskError> {
        let system = |act| move |source| DiskError::System { act, source };
        let kind = file.metadata().map_err(system("stat"))?.file_type();
        let flags = fcntl(&file, FcntlArg::F_GETFL).map_err(|errno| system("look at")(errno.into()))?;
        match OFlag::from_bits_retain(flags) & OFlag::O_ACCMODE {
            OFlag::O_RDWR => {}
            OFlag::O_RDONLY if read_only => {}
            OFlag::O_RDONLY => {
                return Err(DiskError::Access("writing: open it so, or make the disk read-only"));
            }
            _ => return Err(DiskError::Access("reading")),
        }
        let block_size = match () {
            () if kind.is_file() => SECTOR as u32,
            () if kind.is_block_device() => {
                logical_block_size(&file).map_err(system("ask the block size of"))?
            }
            () => return Err(DiskError::NotAnImage),
        };
        let bytes = file.seek(SeekFrom::End(0)).map_err(system("measure"))?;
        // A guest works in whole blocks of the device.
        let sectors = bytes / u64::from(block_size) * (u64::from(block_size) / SECTOR);
        if sectors == 0 {
            return Err(DiskError::Empty(bytes));
        }
        let mut id = [0; ID_LEN];
        id.get_mut(..serial.len())
            .ok_or_else(|| DiskError::Serial(serial.into()))?
            .copy_from_slice(serial.as_bytes());
        let left_over = bytes - sectors * SECTOR;
        Ok(Self { file, bounds: Bounds { sectors, read_only }, block_size, id, left_over })
    }

    /// The image, for the kernel to read and write.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// What requests are checked against.
    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Logical block size in bytes: 512 to 4096.
    pub fn block_size(&self) -> u32 {
        self.block_size
    }

    /// What `VIRTIO_BLK_T_GET_ID` returns: the serial, filled up with zeros.
    pub fn id(&self) -> &[u8; ID_LEN] {
        &self.id
    }

    /// Bytes at the image's end that make no whole block: the guest does not see them.
    pub fn left_over(&self) -> u64 {
        self.left_over
    }
}

nix::ioctl_read_bad!(
    /// The logical block size of a block device, in bytes.
    blksszget, libc::BLKSSZGET,
    libc::c_int
);

#[expect(unsafe_code, reason = "an ioctl that writes an int")]
fn logical_block_size(file: &File) -> io::Result<u32> {
    let mut size = 0;
    // SAFETY: BLKSSZGET writes one int, to `size`, which lives here.
    unsafe { blksszget(file.as_raw_fd(), &raw mut size) }?;
    u32::try_from(size).ok().filter(|size| size.is_power_of_two() && (512..=4096).contains(size)).ok_or_else(
        || {
            io::Error::new(
                io::ErrorKind::Unsupported,
                format!("its blocks have {size} bytes: 512 to 4096 are served"),
            )
        },
    )
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn an_image_is_rounded_down_to_whole_sectors() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 1000]).unwrap();
        let disk = Disk::new(File::open(&path).unwrap(), "abc", true).unwrap();
        assert_eq!((disk.bounds().sectors, disk.left_over()), (1, 488));
        assert_eq!(disk.id(), b"abc\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    }

    #[test]
    fn what_cannot_be_a_disk_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, vec![0; 512]).unwrap();
        let open = |read, write| OpenOptions::new().read(read).write(write).open(&path).unwrap();
        assert!(matches!(Disk::new(open(true, false), "", false), Err(DiskError::Access(_))));
        assert!(matches!(Disk::new(open(false, true), "", false), Err(DiskError::Access(_))));
        assert!(matches!(Disk::new(open(true, true), &"x".repeat(21), false), Err(DiskError::Serial(_))));
        assert!(Disk::new(open(true, true), &"x".repeat(20), false).is_ok());
        assert!(matches!(Disk::new(File::open(&dir).unwrap(), "", true), Err(DiskError::NotAnImage)));
        assert!(matches!(Disk::new(File::open("/dev/zero").unwrap(), "", true), Err(DiskError::NotAnImage)));
        open(true, true).set_len(511).unwrap();
        assert!(matches!(Disk::new(open(true, true), "", false), Err(DiskError::Empty(511))));
    }
}
