//! One typed message in one `SOCK_SEQPACKET` datagram, with descriptors beside it.
//!
//! Promises: a message longer than [`MAX_MESSAGE`] or with more than [`MAX_FDS`] descriptors is never
//! sent and never accepted; descriptors are received close-on-exec; the ones of a refused message are closed.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_abi::control::{Hello, Request, VERSION, Welcome};
use shared_abi::limits::{MAX_FDS, MAX_MESSAGE};

use crate::fds::Fds;

/// Why a message could not be sent or was refused.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The peer has closed its end.
    #[error("the peer closed the control socket")]
    Closed,
    /// The socket failed. `WouldBlock` on a non-blocking one means: try again when it is ready.
    #[error("control socket failed")]
    Io(#[source] io::Error),
    /// Longer than one message may be.
    #[error("control message of {0} bytes: at most {MAX_MESSAGE} fit")]
    TooLong(usize),
    /// More descriptors than one message may carry.
    #[error("control message with more than {MAX_FDS} descriptors")]
    TooManyFds,
    /// Not JSON, or not of the message's type; the text names the field.
    #[error("control message not understood: {0}")]
    Malformed(#[source] serde_json::Error),
    /// Of another version than the one agreed on.
    #[error("control message of version {0}, and {1} was agreed on")]
    Version(u32, u32),
    /// There is no version that both sides speak; the text is the child's.
    #[error("{0}")]
    Refused(String),
}

impl From<Errno> for LinkError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EPIPE | Errno::ECONNRESET => Self::Closed,
            _ => Self::Io(errno.into()),
        }
    }
}

/// One end of a connected `SOCK_SEQPACKET` socket.
#[derive(Debug)]
pub struct Link {
    fd: OwnedFd,
    /// Of the requests on it.
    version: u32,
}

impl Link {
    /// Sends one message. On a non-blocking socket `LinkError::Io(WouldBlock)` means that nothing was sent.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn send<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        self.send_flags(message, fds, MsgFlags::empty())
    }

    /// Sends one message, or fails at once with `LinkError::Io(WouldBlock)`.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn try_send<T: Serialize>(&self, message: &T) -> Result<(), LinkError> {
        self.send_flags(message, &[], MsgFlags::MSG_DONTWAIT)
    }

    fn send_flags<T: Serialize>(
        &self,
        message: &T,
        fds: &[BorrowedFd<'_>],
        flags: MsgFlags,
    ) -> Result<(), LinkError> {
        let bytes = serde_json::to_vec(message).map_err(LinkError::Malformed)?;
        if bytes.len() > MAX_MESSAGE {
            return Err(LinkError::TooLong(bytes.len()));
        }
        if fds.len() > MAX_FDS {
            return Err(LinkError::TooManyFds);
        }
        let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
        loop {
            match sendmsg::<()>(
                self.fd.as_raw_fd(),
                &[IoSlice::new(&bytes)],
                control,
                flags | MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(Errno::EINTR) => {}
                other => return Ok(other.map(drop)?),
            }
        }
    }

    /// The version agreed on; this build's own before a greeting.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Sends one [`Request`] of the version agreed on.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn send_request<R: Serialize>(&self, request: &R, fds: &[BorrowedFd<'_>]) -> Result<(), LinkError> {
        self.send(&Request { version: self.version, request }, fds)
    }

    /// A controller's greeting, all of it: says which versions it speaks and waits for the answer.
    ///
    /// # Errors
    /// See [`Self::welcome`].
    pub fn greeted(mut self) -> Result<Self, LinkError> {
        self.hello()?;
        self.welcome()?;
        Ok(self)
    }

    /// A controller's first message.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn hello(&self) -> Result<(), LinkError> {
        self.send(&Hello::OWN, &[])
    }

    /// Receives the answer to [`Self::hello`].
    ///
    /// # Errors
    /// [`LinkError::Refused`] if there is no version that both speak; [`LinkError::Version`] if the child claims a
    /// version that this build does not speak.
    pub fn welcome(&mut self) -> Result<(), LinkError> {
        match self.receive()?.0 {
            Welcome::Version(version) if (Hello::OWN.oldest..=Hello::OWN.newest).contains(&version) => {
                self.version = version;
                Ok(())
            }
            Welcome::Version(version) => Err(LinkError::Version(version, VERSION)),
            Welcome::Refused(why) => Err(LinkError::Refused(why)),
        }
    }

    /// The child's part of the greeting: receives the versions that the controller speaks and answers with the chosen
    /// one. A refused controller has been told.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub fn greet(mut self) -> Result<Self, LinkError> {
        let heard = self.receive::<Hello>();
        let refused = match heard {
            Ok((theirs, _)) => match Hello::OWN.common(theirs) {
                Some(version) => {
                    self.send(&Welcome::Version(version), &[])?;
                    self.version = version;
                    return Ok(self);
                }
                None => {
                    let Hello { oldest, newest } = Hello::OWN;
                    LinkError::Refused(format!(
                        "speaks the versions {oldest} to {newest} of dom0's messages, and dom0 {} to {}: start it again with a program of dom0's version",
                        theirs.oldest, theirs.newest
                    ))
                }
            },
            Err(error @ (LinkError::Closed | LinkError::Io(_))) => return Err(error),
            Err(error) => error,
        };
        let _ = self.send(&Welcome::Refused(crate::control::chain(&refused)), &[]);
        Err(refused)
    }

    /// Receives one message and its descriptors.
    ///
    /// # Errors
    /// See [`LinkError`]; after `Malformed`, `TooLong` and `Version` the next message can be received.
    pub fn receive<T: DeserializeOwned>(&self) -> Result<(T, Fds), LinkError> {
        let (bytes, fds) = self.receive_bytes()?;
        Ok((serde_json::from_slice(&bytes).map_err(LinkError::Malformed)?, fds))
    }

    /// Receives one [`Request`] and checks its version.
    ///
    /// # Errors
    /// See [`LinkError::Version`] and the others.
    pub fn receive_request<R: DeserializeOwned>(&self) -> Result<(R, Fds), LinkError> {
        let (bytes, fds) = self.receive_bytes()?;
        Ok((decode_request(&bytes, self.version)?, fds))
    }

    fn receive_bytes(&self) -> Result<(Vec<u8>, Fds), LinkError> {
        // One byte more than allowed, so that a message that is too long shows.
        let mut bytes = vec![0; MAX_MESSAGE + 1];
        let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
        let (length, truncated, fds) = loop {
            let mut iov = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_CMSG_CLOEXEC;
            match recvmsg::<()>(self.fd.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(message) => {
                    let fds = own_rights(&message);
                    break (message.bytes, message.flags, fds);
                }
            }
        };
        if truncated.contains(MsgFlags::MSG_CTRUNC) {
            return Err(LinkError::TooManyFds);
        }
        if length > MAX_MESSAGE || truncated.contains(MsgFlags::MSG_TRUNC) {
            return Err(LinkError::TooLong(length));
        }
        if length == 0 {
            return Err(LinkError::Closed);
        }
        bytes.truncate(length);
        Ok((bytes, Fds::from(fds)))
    }
}

/// Parses the bytes of one [`Request`] and checks that it is of the version `agreed` on.
///
/// # Errors
/// [`LinkError::Malformed`], which names the field, or [`LinkError::Version`].
pub fn decode_request<R: DeserializeOwned>(bytes: &[u8], agreed: u32) -> Result<R, LinkError> {
    let Request { version, request } = serde_json::from_slice(bytes).map_err(LinkError::Malformed)?;
    if version == agreed { Ok(request) } else { Err(LinkError::Version(version, agreed)) }
}

fn own_rights(message: &nix::sys::socket::RecvMsg<'_, '_, ()>) -> Vec<OwnedFd> {
    let rights = message.cmsgs().into_iter().flatten().filter_map(|part| match part {
        ControlMessageOwned::ScmRights(fds) => Some(fds),
        _ => None,
    });
    rights.flatten().map(own).collect()
}

#[expect(unsafe_code, reason = "takes ownership of descriptors that the kernel has just installed")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: recvmsg has just installed this descriptor for us by SCM_RIGHTS; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

impl From<OwnedFd> for Link {
    fn from(fd: OwnedFd) -> Self {
        Self { fd, version: VERSION }
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for Link {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};
    use shared_abi::control::RunnerRequest;

    use super::*;

    fn pair() -> (Link, Link) {
        let (a, b) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        (a.into(), b.into())
    }

    #[test]
    fn a_request_arrives_with_its_descriptors() {
        let (a, b) = pair();
        let (r, w) = nix::unistd::pipe().unwrap();
        a.send_request(&RunnerRequest::Pause, &[r.as_fd(), w.as_fd()]).unwrap();
        let (request, mut fds) = b.receive_request::<RunnerRequest>().unwrap();
        assert_eq!(request, RunnerRequest::Pause);
        assert!(fds.take(shared_abi::control::FdIndex(1)).is_ok());
    }

    #[test]
    fn another_version_an_unknown_field_and_nonsense_are_refused_by_name() {
        let (next, named) = (VERSION + 1, format!("version {}", VERSION + 1));
        let next = format!(r#"{{"version":{next},"request":"pause"}}"#);
        for (text, part) in [
            (next.as_str(), named.as_str()),
            (r#"{"version":1,"request":"pause","more":1}"#, "more"),
            (r#"{"version":1,"request":{"start":{"identity":3}}}"#, "Identity"),
            ("\u{0}", "not understood"),
        ] {
            let error = decode_request::<RunnerRequest>(text.as_bytes(), VERSION).unwrap_err().to_string();
            assert!(error.contains(part), "{error} does not name {part}");
        }
    }

    #[test]
    fn a_controller_of_another_time_is_spoken_to_in_its_version_or_refused_by_name() {
        let (a, b) = pair();
        a.send(&Hello { oldest: 0, newest: VERSION + 7 }, &[]).unwrap();
        let child = b.greet().unwrap();
        assert_eq!(a.receive::<Welcome>().unwrap().0, Welcome::Version(VERSION));
        assert_eq!(child.version, VERSION);

        let (a, b) = pair();
        a.send(&Hello { oldest: VERSION + 1, newest: VERSION + 2 }, &[]).unwrap();
        assert!(matches!(b.greet(), Err(LinkError::Refused(_))));
        let mut a = a;
        let error = a.welcome().unwrap_err().to_string();
        assert!(error.contains(&format!("dom0 {} to {}", VERSION + 1, VERSION + 2)), "{error}");

        let (a, b) = pair();
        a.send(&serde_json::json!({"version": 1, "request": "pause"}), &[]).unwrap();
        assert!(b.greet().is_err());
        assert!(matches!(a.receive::<Welcome>().unwrap().0, Welcome::Refused(_)));
    }

    #[test]
    fn a_message_over_the_limit_is_refused_and_the_next_one_is_received() {
        let (a, b) = pair();
        send(a.as_raw_fd(), &vec![b' '; MAX_MESSAGE + 9], MsgFlags::empty()).unwrap();
        a.send_request(&RunnerRequest::Status, &[]).unwrap();
        assert!(matches!(b.receive_request::<RunnerRequest>(), Err(LinkError::TooLong(_))));
        assert!(b.receive_request::<RunnerRequest>().is_ok());
        drop(a);
        assert!(matches!(b.receive_request::<RunnerRequest>(), Err(LinkError::Closed)));
    }
}
