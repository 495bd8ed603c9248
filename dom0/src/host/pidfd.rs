//! Descriptors of processes (pidfd): a signal through one reaches the process it was opened for, and no other.

#![expect(unsafe_code, reason = "pidfd_open and pidfd_send_signal have no safe interface")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use nix::unistd::Pid;

/// Opens a pidfd of a process that is nobody's child here.
///
/// # Errors
/// What `pidfd_open(2)` said: there is no such process.
pub fn open_pidfd(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: takes no pointer.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pidfd_open has just made this descriptor; nobody else knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sends a signal to the process behind a pidfd; no error if it has ended.
pub fn signal(pidfd: BorrowedFd<'_>, signal: nix::sys::signal::Signal) {
    let no_info = ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo is allowed (pidfd_send_signal(2)); the other arguments are no pointers. The descriptor
    // is a pidfd, so no other process can be hit by a reused pid.
    unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal as libc::c_int, no_info, 0)
    };
}
