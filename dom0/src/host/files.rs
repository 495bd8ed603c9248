//! Opens kernels, initrds and disk images, and never reads their contents. All of it may wait for storage, so all of it
//! is done on threads of their own: see [`slow`].

use std::fs::{File, Metadata};
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode as Permissions;

use crate::host::kernels::Which;
use crate::host::locks::{self, Lock};
use crate::host::resolve::Resolved;
use crate::host::slow::{self, StorageFile};
use crate::value::place::{ConfigError, Place};

/// An image is free within this time of the end of the process that had it: the kernel lets go of what io_uring had
/// open after that, in its own time.
const RELEASE: Duration = Duration::from_secs(2);
const RETRY: Duration = Duration::from_millis(20);

/// The strictest alignment, in bytes, that direct I/O on any disk needs.
const PAGE: usize = 4096;

/// A file, whatever it is called: device and inode, and the device that it stands for if it is one.
pub type FileId = (u64, u64, u64);

/// What a file is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// To be handed to a child.
    Use,
    /// To find out whether that would work, with no effect on anybody.
    Check,
}

/// Whether an image is to be opened with `O_DIRECT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direct {
    /// It must be.
    Must,
    /// If its file system can.
    IfPossible,
    /// No.
    No,
}

/// The JSON files in a folder that are meant, in the order of their names, `most` of them: an editor's copy, or a file
/// on its way (`.web1.json.swp`, `.#web1.json`), begins with a dot. Waits for storage: see [`slow`].
pub fn json_files(folder: &Path, most: usize) -> Vec<PathBuf> {
    let hidden = |path: &Path| path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
    let paths = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let meant = paths.filter(|path| path.extension().is_some_and(|end| end == "json") && !hidden(path));
    let mut meant: Vec<_> = meant.take(most).collect();
    meant.sort();
    meant
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

/// Opens what `meta` was told of a moment ago, and nothing else that has taken its name since: opening a pipe would
/// wait for its other end, and opening a terminal could make it dom0's own.
fn open_same(resolved: &Resolved, meta: &Metadata, flags: OFlag) -> io::Result<File> {
    let file = resolved.open(flags | OFlag::O_NONBLOCK | OFlag::O_NOCTTY, Permissions::empty())?;
    let now = file.metadata()?;
    if (now.dev(), now.ino(), now.file_type()) != (meta.dev(), meta.ino(), meta.file_type()) {
        return Err(io::Error::other("it was replaced just now"));
    }
    // Whoever gets it expects it to block. No other status flag is set.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::empty()))?;
    Ok(file)
}

/// Opens the kernel or the initrd at the JSON path `place`: a regular file, read-only.
///
/// # Errors
/// [`ConfigError`] if it does not exist, is something else, is empty, or cannot be opened.
pub async fn blob(place: &Place<'_>, path: &Path) -> Result<StorageFile, ConfigError> {
    Ok(kernel(place, path).await?.0)
}

/// The same, and which kernel it is, if it can be told.
///
/// # Errors
/// As [`blob`].
pub async fn kernel(place: &Place<'_>, path: &Path) -> Result<(StorageFile, Option<Which>), ConfigError> {
    let opened = slow::with(path, |path| {
        let cure = "name a file that dom0 can read";
        let resolved = Resolved::new(path).map_err(|e| says(path, &e, cure))?;
        let meta = resolved.path().metadata().map_err(|e| says(path, &e, cure))?;
        if !meta.is_file() {
            return Err(format!("\"{}\" is {}: {cure}", path.display(), kind(&meta)));
        }
        if meta.len() == 0 {
            return Err(format!("\"{}\" is empty: {cure}", path.display()));
        }
        let file = open_same(&resolved, &meta, OFlag::O_RDONLY).map_err(|e| says(path, &e, cure))?;
        let which = Which::new(&file.metadata().map_err(|e| says(path, &e, cure))?);
        Ok((StorageFile::from(file), which))
    });
    match opened.await {
        Ok(opened) => opened.map_err(|problem| place.refuse(problem)),
        Err(slow) => Err(place.refuse(slow)),
    }
}

/// Which file it is, whatever it is called.
///
/// # Errors
/// What `fstat(2)` said.
fn id(file: &File) -> io::Result<FileId> {
    let meta = file.metadata()?;
    let device = if meta.file_type().is_block_device() { meta.rdev() } else { 0 };
    Ok((meta.dev(), meta.ino(), device))
}

/// Which file a path leads to now. A block device is that device, by whatever device file.
///
/// # Errors
/// What `stat(2)` said.
pub fn id_of(path: &Path) -> io::Result<FileId> {
    let meta = path.metadata()?;
    let is_device = meta.file_type().is_block_device();
    Ok(if is_device { (0, 0, meta.rdev()) } else { (meta.dev(), meta.ino(), 0) })
}

/// Opens the file at the JSON path `place` for appending, and creates it, readable by its owner alone, if it is
/// missing. A check creates no file, so it may return none.
///
/// # Errors
/// [`ConfigError`] if the path names anything but a regular file, or cannot be written.
pub async fn appended(place: &Place<'_>, path: &Path, why: Mode) -> Result<Option<Appended>, ConfigError> {
    match slow::with(path, move |path| appended_now(path, why)).await {
        Ok(Ok(file)) => Ok(file),
        Ok(Err(problem)) => Err(place.refuse(problem)),
        Err(slow) => Err(place.refuse(slow)),
    }
}

/// A file that is open to append.
#[derive(Debug)]
pub struct Appended {
    /// It.
    pub file: StorageFile,
    /// Which it is.
    pub id: FileId,
    /// Bytes in it.
    pub length: u64,
}

fn appended_now(path: &Path, why: Mode) -> Result<Option<Appended>, String> {
    let cure = "name a regular file in a directory that dom0 may write to";
    let shown = path.display();
    let resolved = match Resolved::new(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("\"{shown}\" has no directory: {cure}"));
        }
        resolved => resolved.map_err(|error| says(path, &error, cure))?,
    };
    // Whatever has the name: opening a pipe would wait for its other end.
    match resolved.path().metadata() {
        Ok(meta) if !meta.is_file() => return Err(format!("\"{shown}\" is {}: {cure}", kind(&meta))),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(says(path, &error, cure)),
        Err(_) if why == Mode::Check => {
            let there = path.parent().is_some_and(Path::is_dir);
            return if there { Ok(None) } else { Err(format!("\"{shown}\" has no directory: {cure}")) };
        }
        _ => {}
    }
    let create = if why == Mode::Use { OFlag::O_CREAT } else { OFlag::empty() };
    let flags = OFlag::O_WRONLY | OFlag::O_APPEND | OFlag::O_NOCTTY | OFlag::O_NONBLOCK | create;
    let opened = resolved.open(flags, Permissions::S_IRUSR | Permissions::S_IWUSR).and_then(|file| {
        let (id, length) = (id(&file)?, file.metadata()?.len());
        Ok(Appended { file: file.into(), id, length })
    });
    opened.map(Some).map_err(|error| says(path, &error, cure))
}

/// How an image is opened.
#[derive(Debug, Clone, Copy)]
pub struct Access {
    /// For any number of readers, not for one writer.
    pub read_only: bool,
    /// Whether with `O_DIRECT`.
    pub direct: Direct,
    /// What for.
    pub why: Mode,
}

/// Opens the image at the JSON path `place` and locks it for one writer, or for any number of readers, and says which
/// file it is. An open for use waits a moment for an image that is in use. The file's flags tell whether `O_DIRECT` is
/// in force ([`is_direct`]).
///
/// # Errors
/// [`ConfigError`]; if another process has the image, the text names that process as far as it is known.
pub async fn image(
    place: &Place<'_>,
    path: &Path,
    access: Access,
) -> Result<(StorageFile, FileId), ConfigError> {
    match slow::with(path, move |path| image_now(path, access)).await {
        Ok(Ok((file, id))) => Ok((file.into(), id)),
        Ok(Err(problem)) => Err(place.refuse(problem)),
        Err(slow) => Err(place.refuse(slow)),
    }
}

fn image_now(path: &Path, Access { read_only, direct, why }: Access) -> Result<(File, FileId), String> {
    let cure = "name an image, a regular file, or a block device";
    let resolved = Resolved::new(path).map_err(|e| says(path, &e, cure))?;
    let meta = resolved.path().metadata().map_err(|e| says(path, &e, cure))?;
    let block = meta.file_type().is_block_device();
    if !block && !meta.is_file() {
        return Err(format!("\"{}\" is {}: {cure}", path.display(), kind(&meta)));
    }
    // Closing a block device that was open for writing wakes udev: a check must not.
    let access = match read_only || block && why == Mode::Check {
        true => OFlag::O_RDONLY,
        false => OFlag::O_RDWR,
    };
    // Without O_CREAT: fail if the device is mounted or otherwise in use (open(2)).
    let flags = if block && !read_only { OFlag::O_EXCL } else { OFlag::empty() };
    let deadline = match why {
        Mode::Use => Instant::now() + RELEASE,
        Mode::Check => Instant::now(),
    };
    let opened = loop {
        match open_same(&resolved, &meta, access | flags) {
            Err(e) if e.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => sleep(RETRY),
            other => break other,
        }
    };
    let file = opened.map_err(|e| {
        let cure = match e.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem if !read_only => {
                "make it writable, or set read_only"
            }
            io::ErrorKind::ResourceBusy => "it is mounted or in use; set read_only, or free it",
            _ => cure,
        };
        says(path, &e, cure)
    })?;
    if meta.is_file() && meta.len() < 512 {
        let length = meta.len();
        return Err(format!("\"{}\" has {length} bytes, less than a sector: {cure}", path.display()));
    }
    // Set on the open file: an open with the flag that fails would not say whether the flag is why.
    if direct != Direct::No
        && let Err(error) = go_direct(&file)
    {
        if direct == Direct::Must {
            return Err(format!(
                "\"{}\" cannot be read round the page cache (O_DIRECT: {error}): set cache to \"writeback\"",
                path.display()
            ));
        }
        fcntl(&file, FcntlArg::F_SETFL(OFlag::empty())).map_err(|errno| errno.to_string())?;
    }
    let lock = if read_only { Lock::Read } else { Lock::Write };
    let free = match why {
        Mode::Use => loop {
            match locks::take(&file, lock) {
                Ok(false) if Instant::now() < deadline => sleep(RETRY),
                other => break other,
            }
        },
        Mode::Check => locks::probe(&file, lock),
    };
    if matches!(free, Ok(false)) {
        let who = locks::holder(meta.dev(), meta.ino()).unwrap_or_else(|| "another process".into());
        return Err(format!("\"{}\" is in use by {who}: end that first, or copy the image", path.display()));
    }
    if let Err(error) = free {
        if !locks::has_none(&error) {
            return Err(format!(
                "\"{}\" cannot be locked ({error}): see what the locks of its file system wait for",
                path.display()
            ));
        }
        if why == Mode::Use {
            crate::log::stderr::line(format_args!(
                "\"{}\" is on a file system without locks ({error}): nothing keeps others from writing to it",
                path.display()
            ));
        }
    }
    let id = id(&file).map_err(|error| format!("\"{}\" cannot be looked at: {error}", path.display()))?;
    Ok((file, id))
}

/// Turns on `O_DIRECT`. A file system may accept the flag and then refuse to read with it, so one page is read as a
/// trial.
fn go_direct(image: &File) -> io::Result<()> {
    fcntl(image, FcntlArg::F_SETFL(OFlag::O_DIRECT))?;
    let mut buffer = vec![0; 2 * PAGE];
    let start = buffer.as_ptr().align_offset(PAGE);
    image.read_at(&mut buffer[start..start + PAGE], 0).map(drop)
}

/// True if the image is open with `O_DIRECT`.
pub fn is_direct(image: &File) -> bool {
    fcntl(image, FcntlArg::F_GETFL)
        .is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_DIRECT))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An image in `dir`.
    fn image_in(dir: &Path) -> std::path::PathBuf {
        let image = dir.join("image");
        std::fs::write(&image, [0; 512]).unwrap();
        image
    }

    fn place(at: &str) -> Place<'static> {
        Place::new(Path::new("web1.json"), at)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_image_that_becomes_free_in_a_moment_is_waited_for_and_a_check_says_at_once_that_it_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = image_in(dir.path());
        let holder = File::options().read(true).write(true).open(&path).unwrap();
        assert!(locks::take(&holder, Lock::Write).unwrap());
        let at = place("disks[0].path");
        let open = |why| image(&at, &path, Access { read_only: false, direct: Direct::No, why });
        let error = open(Mode::Check).await.unwrap_err().to_string();
        assert!(error.contains("is in use by"), "{error}");
        std::thread::spawn(move || {
            sleep(Duration::from_millis(200));
            drop(holder);
        });
        open(Mode::Use).await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_pipe_that_takes_a_files_place_is_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = image_in(dir.path());
        let (resolved, meta) = (Resolved::new(&path).unwrap(), path.metadata().unwrap());
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Permissions::S_IRUSR).unwrap();
        let error = open_same(&resolved, &meta, OFlag::O_RDONLY).unwrap_err();
        assert!(error.to_string().contains("replaced"), "{error}");
        assert!(blob(&place("boot.kernel"), &path).await.unwrap_err().to_string().contains("is a pipe"));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_opened_blocks_as_its_user_expects() {
        let dir = tempfile::tempdir().unwrap();
        let path = image_in(dir.path());
        let file = blob(&place("boot.kernel"), &path).await.unwrap();
        let flags = OFlag::from_bits_retain(fcntl(&*file, FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    }
}
