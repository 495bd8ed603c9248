//! The eventfds of a frontend: what is taken for one, and how one is signalled.
//!
//! Refused: sockets, pipes and files. They could block a writer for as long as their peer likes, or get bytes that
//! nobody meant for them. What is left are the kernel's anonymous files, of which an eventfd is one; only an eventfd
//! takes what [`Signals`] writes.
#![expect(unsafe_code, reason = "statx has no safe binding among our crates")]

use std::fs::File;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use crate::aio::Aio;

/// The file itself, as it is known: a file system whose server does not answer must not block whoever looks.
pub(crate) const LOOK: libc::c_int = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;

/// Why a descriptor is refused.
#[derive(Debug, thiserror::Error)]
pub enum EventfdError {
    /// It has a type, which an anonymous file has not.
    #[error("it is no eventfd but a file of type {0:#o}")]
    Type(u32),
    /// It cannot be looked at.
    #[error("it cannot be looked at")]
    Look(#[source] io::Error),
}

/// Refuses what is no anonymous file.
///
/// # Errors
/// [`EventfdError`].
pub fn check(fd: &File) -> Result<(), EventfdError> {
    let mut found = MaybeUninit::<libc::statx>::zeroed();
    let (number, into) = (fd.as_raw_fd(), found.as_mut_ptr());
    // SAFETY: the path is an empty C string, and the kernel writes at most one `statx`, for which `found` has room.
    let result = unsafe { libc::statx(number, c"".as_ptr(), LOOK, libc::STATX_TYPE, into) };
    Errno::result(result).map_err(|errno| EventfdError::Look(errno.into()))?;
    // SAFETY: all of it is numbers, of which zeroes are valid, and what the kernel has not written is still zero.
    let found = unsafe { found.assume_init() };
    match u32::from(found.stx_mode) & libc::S_IFMT {
        0 => Ok(()),
        kind => Err(EventfdError::Type(kind)),
    }
}

/// The same for one that is to be signalled, which is not to block from now on. Whoever gave it shares its flags and
/// can change them back: see [`Signals`].
///
/// # Errors
/// [`EventfdError`].
pub fn check_signalled(fd: &File) -> Result<(), EventfdError> {
    check(fd)?;
    let set = || {
        let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
    };
    set().map(drop).map_err(|errno| EventfdError::Look(errno.into()))
}

/// How a queue's eventfds are signalled.
#[derive(Debug, Clone, Default)]
pub enum Signals {
    /// By `write`. A peer that fills an eventfd and lets it block again stops the thread that signals: right for a
    /// process that serves one domain, which harms itself.
    #[default]
    Write,
    /// By the kernel, which waits for nobody ([`Aio`]): for threads that serve several domains.
    Kernel(Arc<Aio>),
}

impl Signals {
    /// Adds one to an eventfd. A full one needs nothing more, and a descriptor that is none is its owner's loss.
    pub fn signal(&self, fd: &File) {
        match self {
            Self::Write => _ = nix::unistd::write(fd, &1_u64.to_ne_bytes()),
            Self::Kernel(aio) => aio.signal(fd),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    fn eventfd(flags: EfdFlags) -> File {
        OwnedFd::from(EventFd::from_flags(flags).unwrap()).into()
    }

    #[test]
    fn eventfds_are_taken_and_sockets_pipes_and_files_are_not() {
        let fd = eventfd(EfdFlags::empty());
        check_signalled(&fd).unwrap();
        let flags = fcntl(&fd, FcntlArg::F_GETFL).unwrap();
        assert!(OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK));
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let others = [
            UnixStream::pair().unwrap().0.into(),
            reader,
            writer,
            File::open("/dev/null").unwrap().into(),
            File::open("/proc/self/stat").unwrap().into(),
            domus_startup::memfd::sealed("file", 8).unwrap().into(),
        ];
        for other in others.map(File::from) {
            assert!(matches!(check(&other), Err(EventfdError::Type(_))), "{other:?}");
        }
    }

    #[test]
    fn a_full_eventfd_that_blocks_again_stops_nobody_whom_the_kernel_signals_for() {
        let signals = Signals::Kernel(Aio::new().unwrap().into());
        let fd = eventfd(EfdFlags::empty());
        signals.signal(&fd);
        let mut count = [0; 8];
        nix::unistd::read(&fd, &mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
        nix::unistd::write(&fd, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        // Many more than the context has room for, and what is no eventfd besides.
        for _ in 0..1000 {
            signals.signal(&fd);
            signals.signal(&domus_startup::memfd::sealed("file", 8).unwrap());
        }
    }
}
