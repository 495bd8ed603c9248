//! Sockets between the processes of a domain, and to backends that Domus does not start.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, socketpair};

use crate::config::{ConfigError, DomainConfig};

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

/// Connects to a vhost-user backend at the JSON path `at`; with `connect` false only looks whether there is a socket.
///
/// # Errors
/// [`ConfigError`] if there is none, or nobody listens.
pub fn foreign(
    config: &DomainConfig,
    at: &str,
    path: &Path,
    connect: bool,
) -> Result<Option<OwnedFd>, ConfigError> {
    let refuse = |problem: String| ConfigError::new(&config.file, at, problem);
    let cure = "start the vhost-user backend first, and name the socket it listens on";
    let shown = path.display();
    match path.metadata() {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => return Err(refuse(format!("\"{shown}\" is no socket: {cure}"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(refuse(format!("\"{shown}\" does not exist: {cure}")));
        }
        Err(error) => return Err(refuse(format!("\"{shown}\" cannot be found ({error}): {cure}"))),
    }
    if !connect {
        return Ok(None);
    }
    match UnixStream::connect(path) {
        Ok(stream) => Ok(Some(stream.into())),
        Err(error) => Err(refuse(format!("\"{shown}\" cannot be connected to ({error}): {cure}"))),
    }
}
