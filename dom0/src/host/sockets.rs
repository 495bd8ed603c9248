//! Sockets between the processes of a domain, and to backends that Domus does not start.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, socket, socketpair,
};

use crate::host::slow;
use crate::value::place::{ConfigError, Place};

/// Both ends of a connected stream socket.
///
/// # Errors
/// What `socketpair(2)` said: no descriptors left.
pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::SOCK_CLOEXEC)?)
}

/// True if a read from the stream socket would return bytes now.
pub fn has_unread(socket: &OwnedFd) -> bool {
    let mut byte = [0];
    let flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
    recv(socket.as_raw_fd(), &mut byte, flags).is_ok_and(|count| count > 0)
}

/// Connects to a vhost-user backend at the JSON path `place`; with `connect` false only checks that the socket exists.
///
/// # Errors
/// [`ConfigError`] if the socket is missing, or nobody listens on it.
pub async fn foreign(place: &Place<'_>, path: &Path, connect: bool) -> Result<Option<OwnedFd>, ConfigError> {
    match slow::with(path, move |path| foreign_now(path, connect)).await {
        Ok(found) => found.map_err(|problem| place.refuse(problem)),
        Err(slow) => Err(place.refuse(slow)),
    }
}

fn foreign_now(path: &Path, connect: bool) -> Result<Option<OwnedFd>, String> {
    let cure = "start the vhost-user backend first, and name the socket it listens on";
    let shown = path.display();
    match path.metadata() {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => return Err(format!("\"{shown}\" is no socket: {cure}")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(format!("\"{shown}\" does not exist: {cure}"));
        }
        Err(error) => return Err(format!("\"{shown}\" cannot be found ({error}): {cure}")),
    }
    if !connect {
        return Ok(None);
    }
    let refuse = |error| format!("\"{shown}\" cannot be connected to ({error}): {cure}");
    dial(path).map(Some).map_err(refuse)
}

/// Connects without waiting: a listener that does not accept must not hold dom0 up. The result is in blocking mode.
///
/// # Errors
/// What the system said.
pub fn dial(path: &Path) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok(fd)
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn a_backend_that_does_not_accept_is_an_error_and_not_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("backend.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let full: Vec<_> =
            std::iter::repeat_with(|| dial(&path)).take(5000).take_while(Result::is_ok).collect();
        assert!(!full.is_empty() && dial(&path).is_err());
        drop(listener);
        assert!(dial(&path).is_err());
    }
}
