//! Opens kernels, initrds and disk images. Their contents are never looked at here.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::config::{ConfigError, DomainConfig};

use super::locks::{self, Lock};

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// To be handed to a child.
    Use,
    /// To find out whether that would work, with no effect on anybody.
    Check,
}

/// The kind of a file that is in the way, for people.
fn kind(meta: &Metadata) -> &'static str {
    let kind = meta.file_type();
    if kind.is_dir() {
        "a directory"
    } else if kind.is_file() {
        "a regular file"
    } else if kind.is_block_device() {
        "a block device"
    } else if kind.is_char_device() {
        "a character device"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "of an unknown kind"
    }
}

fn says(path: &Path, error: &io::Error, cure: &str) -> String {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::NotFound => format!("\"{path}\" does not exist: {cure}"),
        io::ErrorKind::PermissionDenied => format!("\"{path}\" may not be opened by dom0: {cure}"),
        _ => format!("\"{path}\" cannot be opened ({error}): {cure}"),
    }
}

/// Opens the kernel or the initrd at the JSON path `at`: a regular file, read-only.
///
/// # Errors
/// [`ConfigError`] if it does not exist, is something else, is empty, or cannot be opened.
pub fn blob(config: &DomainConfig, at: &str, path: &Path) -> Result<File, ConfigError> {
    let refuse = |problem: String| ConfigError::new(&config.file, at, problem);
    let cure = "name a file that dom0 can read";
    // Looked at before it is opened: opening a pipe would wait for its other end.
    let meta = path.metadata().map_err(|e| refuse(says(path, &e, cure)))?;
    if !meta.is_file() {
        return Err(refuse(format!("\"{}\" is {}: {cure}", path.display(), kind(&meta))));
    }
    if meta.len() == 0 {
        return Err(refuse(format!("\"{}\" is empty: {cure}", path.display())));
    }
    File::open(path).map_err(|e| refuse(says(path, &e, cure)))
}

/// Opens the image of disk `n` and locks it: one writer, or any number of readers.
///
/// # Errors
/// [`ConfigError`]; if somebody else has it, the text says who as far as that can be known.
pub fn image(
    config: &DomainConfig,
    n: usize,
    path: &Path,
    read_only: bool,
    why: For,
) -> Result<File, ConfigError> {
    let refuse = |problem: String| ConfigError::new(&config.file, format!("disks[{n}].path"), problem);
    let cure = "name a raw image or a block device";
    let meta = path.metadata().map_err(|e| refuse(says(path, &e, cure)))?;
    let block = meta.file_type().is_block_device();
    if !block && !meta.is_file() {
        return Err(refuse(format!("\"{}\" is {}: {cure}", path.display(), kind(&meta))));
    }
    let mut options = OpenOptions::new();
    // Closing a block device that was open for writing wakes udev: a check must not.
    options.read(true).write(!(read_only || block && why == For::Check));
    if block && !read_only {
        // Without O_CREAT: fail if the device is mounted or otherwise in use (open(2)).
        options.custom_flags(nix::libc::O_EXCL);
    }
    let file = options.open(path).map_err(|e| {
        let cure = match e.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                "make it writable, or set read_only"
            }
            io::ErrorKind::ResourceBusy => "it is mounted or in use; set read_only, or free it",
            _ => cure,
        };
        refuse(says(path, &e, cure))
    })?;
    if meta.is_file() && meta.len() < 512 {
        let length = meta.len();
        return Err(refuse(format!("\"{}\" has {length} bytes, less than a sector: {cure}", path.display())));
    }
    let lock = if read_only { Lock::Read } else { Lock::Write };
    let free = match why {
        For::Use => locks::take(&file, lock),
        For::Check => locks::probe(&file, lock),
    };
    match free {
        Ok(true) => Ok(file),
        Ok(false) => {
            let who = locks::holder(meta.dev(), meta.ino()).unwrap_or_else(|| "another process".into());
            let problem =
                format!("\"{}\" is in use by {who}: end that first, or copy the image", path.display());
            Err(refuse(problem))
        }
        // A file system without locks protects nothing; that is no reason not to start.
        Err(_) => Ok(file),
    }
}
