//! Locks on disk images (`F_OFD_SETLK`, fcntl(2)). A lock belongs to the open file, so the block backend that receives
//! the descriptor keeps the lock for its whole life, whatever happens to dom0. QEMU locks in the same way.
//!
//! A [`OpenMarker`] is a lock on one byte far beyond every image's end. It shows dom0 when the last use of an open file
//! that dom0 has handed out has ended.

#![expect(unsafe_code, reason = "nix has no OFD locks with F_OFD_GETLK's result")]

use std::ffi::CString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::host::slow::StorageFile;

/// How an image is locked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lock {
    /// Others may read.
    Read,
    /// Nobody else may do anything.
    Write,
}

fn flock(lock: Lock) -> libc::flock {
    libc::flock {
        l_type: match lock {
            Lock::Read => libc::F_RDLCK as libc::c_short,
            Lock::Write => libc::F_WRLCK as libc::c_short,
        },
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: MARKS,
        l_pid: 0,
    }
}

/// Where the marks begin: no image is as long.
const MARKS: i64 = 1 << 62;

/// A lock on one byte that an open file holds, and by which another one of the same image sees whether it still exists:
/// the kernel keeps it for operations of a process that has ended.
#[derive(Debug)]
pub struct OpenMarker {
    image: StorageFile,
    byte: i64,
}

impl OpenMarker {
    /// Opens `image` once more, in the same way, and marks that open file by a number that no other one has.
    ///
    /// # Errors
    /// It cannot be opened again by this user, or its file system has no locks.
    pub fn reopen(image: &File, number: u32) -> io::Result<(File, Self)> {
        let flags = OFlag::from_bits_retain(fcntl(image, FcntlArg::F_GETFL)?);
        let access = flags & OFlag::O_ACCMODE;
        let mut options = File::options();
        options.read(true).write(access == OFlag::O_RDWR);
        options.custom_flags((flags & OFlag::O_DIRECT).bits());
        let again = options.open(format!("/proc/self/fd/{}", image.as_raw_fd()))?;
        let mark = Self { image: image.try_clone()?.into(), byte: MARKS + i64::from(number) };
        // A file that is open for reading only takes no other kind, and nobody else has this byte.
        let kind = if access == OFlag::O_RDWR { Lock::Write } else { Lock::Read };
        set(&again, &mark.flock(kind))?;
        Ok((again, mark))
    }

    fn flock(&self, lock: Lock) -> libc::flock {
        libc::flock { l_start: self.byte, l_len: 1, ..flock(lock) }
    }

    /// True once the open file is closed, in every process and every operation; also true if the file system does not
    /// tell.
    pub fn is_gone(&self) -> bool {
        test(&self.image, self.flock(Lock::Write)).unwrap_or(true)
    }
}

/// Locks the whole file; false if somebody else has it locked, or has a [`OpenMarker`] there: the kernel may still work
/// on it for a process that has ended.
///
/// # Errors
/// What `F_OFD_SETLK` said otherwise, such as that the file system has no locks.
pub fn take(file: &File, lock: Lock) -> io::Result<bool> {
    match set(file, &flock(lock)) {
        Ok(()) if test(file, marks(lock))? => Ok(true),
        Ok(()) => {
            let unlock = libc::flock { l_type: libc::F_UNLCK as libc::c_short, ..flock(lock) };
            set(file, &unlock).map(|()| false)
        }
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// True for the error of a file system that has no locks, which protects nothing and is no reason not to start; false
/// for that of one whose locks fail: another host may have it locked.
pub fn has_none(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL))
}

fn set(file: &File, request: &libc::flock) -> io::Result<()> {
    // SAFETY: the descriptor is open for the length of the call and F_OFD_SETLK reads one struct flock.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_SETLK, request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// True if [`take`] would succeed now.
///
/// # Errors
/// What `F_OFD_GETLK` said.
pub fn probe(file: &File, lock: Lock) -> io::Result<bool> {
    Ok(test(file, flock(lock))? && test(file, marks(lock))?)
}

/// All places of marks.
fn marks(lock: Lock) -> libc::flock {
    // 0 means: to the end.
    libc::flock { l_start: MARKS, l_len: 0, ..flock(lock) }
}

/// True if nobody else has what this lock would exclude.
fn test(file: &File, mut request: libc::flock) -> io::Result<bool> {
    // SAFETY: the descriptor is open for the length of the call and F_OFD_GETLK reads and writes one struct flock.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_OFD_GETLK, &mut request) };
    match result {
        0 => Ok(request.l_type == libc::F_UNLCK as libc::c_short),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A process that has the file open, such as `domain web1 (domus-block, pid 77)`. A domain's process is preferred to
/// the dom0 that keeps the file for it. Finds only processes that dom0 has the right to inspect.
pub fn holder(dev: u64, ino: u64) -> Option<String> {
    let own = std::process::id();
    let mut other = None;
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == own {
            continue;
        }
        let Ok(mut open) = fs::read_dir(process.path().join("fd")) else { continue };
        if open.any(|fd| fd.is_ok_and(|fd| identity(&fd.path()) == Some((dev, ino)))) {
            if domain(pid).is_some() {
                return Some(describe(pid));
            }
            other = other.or(Some(pid));
        }
    }
    other.map(describe)
}

/// Device and inode of the target of a link in `/proc/PID/fd`: the file itself, even if its name is gone. Reads the
/// kernel's cached values and asks no file server, which may be gone.
fn identity(fd: &Path) -> Option<(u64, u64)> {
    let path = CString::new(fd.as_os_str().as_bytes()).ok()?;
    let flags = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: all-zero bytes are a valid struct statx, which holds numbers only.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: path is a C string and the kernel writes one struct statx; both outlive the call.
    let result = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, libc::STATX_INO, &mut stat) };
    (result == 0).then(|| (libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

/// The domain that a process is one of.
fn domain(pid: u32) -> Option<String> {
    let control = crate::host::proc::control(pid.try_into().ok()?)?;
    let name = control.parent()?.file_name()?.to_str()?;
    name.parse::<shared_abi::DomainName>().is_ok().then(|| name.to_owned())
}

/// A process for people: its name and pid, and its domain if it is one of ours.
pub fn describe(pid: u32) -> String {
    let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    match domain(pid) {
        Some(domain) => format!("domain {domain} ({}, pid {pid})", comm.trim()),
        None => {
            use std::os::unix::fs::MetadataExt;
            let user = fs::metadata(format!("/proc/{pid}")).map(|meta| format!(", user {}", meta.uid()));
            format!("{} (pid {pid}{})", comm.trim(), user.unwrap_or_default())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_that_fail_are_not_taken_for_none() {
        let of = |errno| has_none(&io::Error::from_raw_os_error(errno));
        assert!(of(libc::EOPNOTSUPP) && of(libc::ENOSYS));
        assert!(!of(libc::ENOLCK) && !of(libc::EIO) && !of(libc::ESTALE));
    }

    #[test]
    fn a_file_is_known_by_its_descriptor_even_if_its_name_is_gone() {
        use std::os::unix::fs::MetadataExt;
        let file = tempfile::tempfile().unwrap();
        let meta = file.metadata().unwrap();
        let fd = format!("/proc/self/fd/{}", file.as_raw_fd());
        assert_eq!(identity(Path::new(&fd)), Some((meta.dev(), meta.ino())));
    }

    #[test]
    fn one_writer_excludes_everybody_and_readers_share() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (a, b) = (open(), open());
        assert!(take(&a, Lock::Write).unwrap());
        assert!(!take(&b, Lock::Read).unwrap() && !probe(&b, Lock::Write).unwrap());
        drop(a);
        assert!(take(&b, Lock::Read).unwrap());
        let c = open();
        assert!(probe(&c, Lock::Read).unwrap() && !probe(&c, Lock::Write).unwrap());
        assert!(take(&c, Lock::Read).unwrap());
    }

    #[test]
    fn a_mark_is_gone_with_the_last_descriptor_of_its_open_file_and_locks_nobody_out() {
        let image = tempfile::tempfile().unwrap();
        assert!(take(&image, Lock::Write).unwrap());
        let (first, mark) = OpenMarker::reopen(&image, 0).unwrap();
        let (second, other) = OpenMarker::reopen(&image, 1).unwrap();
        let handed_on = first.try_clone().unwrap();
        drop(first);
        assert!(!mark.is_gone() && !other.is_gone());
        drop(handed_on);
        assert!(mark.is_gone() && !other.is_gone());
        // An image on which the kernel still works is not free, whoever has let go of it.
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        let next = File::options().read(true).write(true).open(path).unwrap();
        drop((image, mark, other));
        assert!(!take(&next, Lock::Write).unwrap() && !probe(&next, Lock::Read).unwrap());
        drop(second);
        // The markers' own descriptors are closed on another thread.
        while !probe(&next, Lock::Read).unwrap() {
            std::thread::yield_now();
        }
        assert!(take(&next, Lock::Write).unwrap());
    }

    #[test]
    fn the_lock_stays_with_the_open_file_wherever_its_descriptor_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let first = open();
        assert!(take(&first, Lock::Write).unwrap());
        let handed_on = first.try_clone().unwrap();
        drop(first);
        assert!(!take(&open(), Lock::Write).unwrap());
        drop(handed_on);
        assert!(take(&open(), Lock::Write).unwrap());
    }
}
