//! A ring's eventfds. They are kept as files, so that anything else can be passed off as one.
#![expect(unsafe_code, reason = "the vhost crate wants an eventfd of a type that is made of a number only")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use vmm_sys_util::eventfd::EventFd as Borrowed;

/// One to be kicked by. To read it blocks: no backend may do that before it is told that there is something.
///
/// # Errors
/// No descriptor is left.
pub fn kick() -> io::Result<File> {
    Ok(OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?).into())
}

/// One to be called by.
///
/// # Errors
/// No descriptor is left.
pub fn call() -> io::Result<File> {
    Ok(OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?).into())
}

/// The same descriptor, as the `vhost` crate wants it.
///
/// # Errors
/// No descriptor is left.
pub fn lent(fd: &impl AsFd) -> io::Result<Borrowed> {
    let own = fd.as_fd().try_clone_to_owned()?;
    // SAFETY: the number is that of an open descriptor which nobody else owns from here on.
    Ok(unsafe { Borrowed::from_raw_fd(own.into_raw_fd()) })
}

/// Takes what `fd` counts as soon as it counts anything; 0 if it does not within `limit`.
///
/// # Errors
/// The descriptor cannot be waited for, or is none that counts.
pub fn counted(mut fd: &File, limit: Duration) -> io::Result<u64> {
    let mut count = [0; 8];
    let mut ready = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut ready, PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX))? == 0 {
        return Ok(0);
    }
    fd.read_exact(&mut count)?;
    Ok(u64::from_ne_bytes(count))
}
