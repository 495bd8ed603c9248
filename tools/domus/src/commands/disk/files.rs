//! Image files: opened and locked, or made so that nothing half-made is ever seen.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use dom0::host::locks::{self, Lock};
use dom0::host::magic;
use nix::fcntl::AtFlags;
use shared_abi::control::ImageFormat;
use tempfile::NamedTempFile;

use super::sealed::{self, Fds, Named};

/// An image that is there, locked until this is dropped.
#[derive(Debug)]
pub struct Image {
    /// Its absolute path.
    pub path: PathBuf,
    /// Its format: what was said, else what its bytes tell.
    pub format: ImageFormat,
    file: File,
}

/// The format that an image is said to have, if that is said, and where it is.
#[derive(Debug, Clone, Copy)]
pub struct Said {
    /// The format.
    pub format: Option<ImageFormat>,
    /// What to write on the command line for a raw one.
    pub raw: &'static str,
}

impl Said {
    /// The format of an open image.
    fn or_told(self, file: &File, path: &Path) -> anyhow::Result<ImageFormat> {
        if let Some(format) = self.format {
            return Ok(format);
        }
        let path = path.display();
        let told = magic::whole(file).with_context(|| format!("cannot read {path}"))?;
        match told {
            Some(magic::QCOW2) => Ok(ImageFormat::Qcow2),
            Some(other) => bail!(
                "{path} is a {other} image, which Domus does not read: convert it with qemu-img convert -O qcow2, or say \
                 {} if the disk is the file as it is",
                self.raw
            ),
            None if path.to_string().ends_with(".qcow2") => {
                bail!("{path} is no qcow2 image, whatever its name says: say {} if it is raw", self.raw)
            }
            None => Ok(ImageFormat::Raw),
        }
    }
}

impl Image {
    /// Opens an image, for writing if it is locked for that.
    ///
    /// # Errors
    /// One line: it is not there, no image, or in use.
    pub fn open(path: &Path, said: Said, lock: Lock) -> anyhow::Result<Self> {
        let image = Self::open_only(path, said, lock == Lock::Write)?;
        let taken =
            locks::take(&image.file, lock).with_context(|| format!("cannot lock {}", path.display()))?;
        if !taken {
            bail!("{} is in use by {}: shut that down first", path.display(), image.user()?);
        }
        Ok(image)
    }

    /// Opens an image to look at it, whoever uses it; says who does.
    ///
    /// # Errors
    /// As for [`open`](Self::open).
    pub fn peek(path: &Path, said: Said) -> anyhow::Result<(Self, Option<String>)> {
        let image = Self::open_only(path, said, false)?;
        let free = locks::probe(&image.file, Lock::Read).unwrap_or(true);
        let user = if free { None } else { Some(image.user()?) };
        Ok((image, user))
    }

    fn open_only(named: &Path, said: Said, write: bool) -> anyhow::Result<Self> {
        let cannot = || format!("cannot open {}", named.display());
        let path = std::path::absolute(named).with_context(cannot)?;
        // Without waiting: a FIFO would never be opened.
        let file = OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(&path);
        let file = file.with_context(cannot)?;
        let kind = file.metadata().with_context(cannot)?.file_type();
        if !kind.is_file() && !kind.is_block_device() {
            bail!("{} is no image: an image is a regular file or a block device", path.display());
        }
        let format = said.or_told(&file, named)?;
        Ok(Self { path, format, file })
    }

    fn user(&self) -> anyhow::Result<String> {
        let meta = self.file.metadata()?;
        Ok(locks::holder(meta.dev(), meta.ino()).unwrap_or_else(|| "another program".into()))
    }

    /// Bytes that it has on the host.
    ///
    /// # Errors
    /// The system's.
    pub fn allocated(&self) -> anyhow::Result<u64> {
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// The size of its disk.
    ///
    /// # Errors
    /// The system's, or why the image is refused.
    pub fn bytes(&self) -> anyhow::Result<u64> {
        match self.format {
            ImageFormat::Raw => Ok((&self.file).seek(SeekFrom::End(0))?),
            ImageFormat::Qcow2 => Ok(sealed::look(self)?.bytes),
        }
    }

    /// Gives a raw image another size.
    ///
    /// # Errors
    /// The system's; a block device has the size it has.
    pub fn set_len(&self, bytes: u64) -> anyhow::Result<()> {
        self.file
            .set_len(bytes)
            .with_context(|| format!("cannot make {} {bytes} bytes long", self.path.display()))
    }

    /// Passes it on.
    pub fn pass(&self, fds: &mut Fds) -> Named {
        fds.add(&self.file, &self.path, self.format)
    }
}

/// A file on the way: it gets its name when it is complete, and goes away if this is dropped before.
#[derive(Debug)]
pub struct NewFile {
    path: PathBuf,
    file: Unfinished,
}

#[derive(Debug)]
enum Unfinished {
    /// Without a name: it vanishes with this process, however that ends.
    Nameless(File),
    /// Where the file system knows no nameless files.
    Hidden(NamedTempFile),
}

impl NewFile {
    /// Begins the file that will be at `path`, where nothing is yet.
    ///
    /// # Errors
    /// One line for the user.
    pub fn new(path: &Path) -> anyhow::Result<Self> {
        let cannot = || format!("cannot make {}", path.display());
        let path = std::path::absolute(path).with_context(cannot)?;
        if path.symlink_metadata().is_ok() {
            bail!("{} is there already: remove it, or choose another name", path.display());
        }
        let dir = path.parent().with_context(cannot)?;
        let nameless =
            OpenOptions::new().read(true).write(true).custom_flags(libc::O_TMPFILE).mode(0o644).open(dir);
        let file = match nameless {
            Ok(file) => Unfinished::Nameless(file),
            Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
                Unfinished::Hidden(NamedTempFile::new_in(dir).with_context(cannot)?)
            }
            Err(error) => return Err(error).with_context(cannot),
        };
        Ok(Self { path, file })
    }

    fn file(&self) -> &File {
        match &self.file {
            Unfinished::Nameless(file) => file,
            Unfinished::Hidden(file) => file.as_file(),
        }
    }

    /// Gives it a length, all zeros.
    ///
    /// # Errors
    /// The system's.
    pub fn set_len(&self, bytes: u64) -> anyhow::Result<()> {
        self.file()
            .set_len(bytes)
            .with_context(|| format!("cannot make {} {bytes} bytes long", self.path.display()))
    }

    /// Passes it on.
    pub fn pass(&self, fds: &mut Fds) -> Named {
        fds.add(self.file(), &self.path, ImageFormat::Raw)
    }

    /// It is complete: gives it its name.
    ///
    /// # Errors
    /// The system's; it is gone then.
    pub fn keep(self) -> anyhow::Result<()> {
        self.name().with_context(|| format!("cannot make {}", self.path.display()))
    }

    fn name(&self) -> io::Result<()> {
        self.file().sync_all()?;
        let from = match &self.file {
            Unfinished::Nameless(file) => {
                use std::os::fd::AsRawFd;
                PathBuf::from(format!("/proc/self/fd/{}", file.as_fd().as_raw_fd()))
            }
            Unfinished::Hidden(file) => file.path().to_owned(),
        };
        // A link, not a rename: it fails where a file has appeared meanwhile.
        nix::unistd::linkat(
            nix::fcntl::AT_FDCWD,
            &from,
            nix::fcntl::AT_FDCWD,
            &self.path,
            AtFlags::AT_SYMLINK_FOLLOW,
        )?;
        let dir = self.path.parent().unwrap_or(Path::new("/"));
        File::open(dir)?.sync_all()
    }
}
