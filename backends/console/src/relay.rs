//! Forwards a vhost-user connection to another socket, descriptors included.
//!
//! The daemon of the crate `vhost-user-backend` connects or listens by path, and starts its threads as it does so.
//! Behind a relay the daemon is connected and running before the process is sealed; the frontend may connect later, by
//! a descriptor or a path. The relay forwards only the few messages of the set-up: kicks, calls and rings bypass it.
//!
//! The relay reads one message at a time, by the length in its header. If several messages are read at once, a socket
//! delivers the descriptors of the last one together with the bytes of the ones before, and the receiver would assign
//! them to the wrong message.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

/// Most descriptors in one message: a memory table has at most so many regions.
const MAX_FDS: usize = 32;

/// Which side has ended a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// The frontend has hung up.
    Frontend,
    /// The backend has: it refused something.
    Backend,
}

/// Carries messages both ways until one side ends.
///
/// # Errors
/// `poll` has failed.
pub fn run(frontend: &UnixStream, backend: &UnixStream) -> io::Result<Ended> {
    let (mut requests, mut replies) = (Framing::default(), Framing::default());
    loop {
        let interest = |socket| PollFd::new(socket, PollFlags::POLLIN);
        let mut fds = [interest(frontend.as_fd()), interest(backend.as_fd())];
        while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let [from_frontend, from_backend] = fds.map(|fd| fd.any().unwrap_or(true));
        // What the backend has said before it ended is carried first.
        if from_backend && !carry(backend, frontend, &mut replies) {
            return Ok(Ended::Backend);
        }
        if from_frontend && !carry(frontend, backend, &mut requests) {
            return Ok(Ended::Frontend);
        }
    }
}

/// Bytes of a vhost-user header: request, flags, size of the payload.
const HEADER: usize = 12;

/// Where in a message a stream is.
#[derive(Debug, Default)]
struct Framing {
    header: [u8; HEADER],
    /// Bytes of the header so far.
    have: usize,
    /// Bytes of the payload still to come.
    payload: usize,
}

impl Framing {
    /// How many bytes belong to the message, as far as is known.
    fn wanted(&self) -> usize {
        if self.have < HEADER { HEADER - self.have } else { self.payload }
    }

    /// These bytes have come, at most as many as were wanted.
    fn came(&mut self, bytes: &[u8]) {
        if self.have < HEADER {
            self.header[self.have..self.have + bytes.len()].copy_from_slice(bytes);
            self.have += bytes.len();
            if self.have == HEADER {
                let [.., a, b, c, d] = self.header;
                self.payload = u32::from_le_bytes([a, b, c, d]) as usize;
            }
        } else {
            self.payload -= bytes.len();
        }
        if self.have == HEADER && self.payload == 0 {
            self.have = 0;
        }
    }
}

/// Carries a part of one message. False at the end of the stream.
fn carry(from: &UnixStream, to: &UnixStream, framing: &mut Framing) -> bool {
    let mut bytes = [0; 4096];
    let wanted = framing.wanted().min(bytes.len());
    let mut space = nix::cmsg_space!([RawFd; MAX_FDS]);
    let (count, fds) = {
        let mut into = [IoSliceMut::new(&mut bytes[..wanted])];
        match recvmsg::<()>(from.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC) {
            Ok(message) => {
                let rights = message.cmsgs().into_iter().flatten().filter_map(|part| match part {
                    ControlMessageOwned::ScmRights(fds) => Some(fds),
                    _ => None,
                });
                (message.bytes, rights.flatten().map(own).collect::<Vec<_>>())
            }
            Err(Errno::EINTR) => return true,
            Err(_) => return false,
        }
    };
    framing.came(&bytes[..count]);
    let raw: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let mut control = if raw.is_empty() { &rights[..0] } else { &rights[..] };
    let mut left = &bytes[..count];
    while !left.is_empty() {
        match sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(left)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Ok(sent) => {
                left = &left[sent..];
                control = &[];
            }
            Err(Errno::EINTR) => {}
            Err(_) => return false,
        }
    }
    count > 0
}

#[expect(unsafe_code, reason = "takes ownership of descriptors that recvmsg has just installed")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: recvmsg has just installed this descriptor for us by SCM_RIGHTS; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_own_message_and_the_end_is_told() {
        let (mut outer, frontend) = UnixStream::pair().unwrap();
        let (backend, mut inner) = UnixStream::pair().unwrap();
        let relay = std::thread::spawn(move || run(&frontend, &backend).unwrap());
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let raw = [writer.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&raw)];
        let plain = [1, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0, 0, 7, 7, 7];
        let with = [2, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0];
        outer.write_all(&plain).unwrap();
        sendmsg::<()>(outer.as_raw_fd(), &[IoSlice::new(&with)], &rights, MsgFlags::empty(), None).unwrap();
        drop(writer);
        let mut first = [0; 15];
        inner.read_exact(&mut first).unwrap();
        assert_eq!(first, plain);
        let mut bytes = [0; 64];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let mut into = [IoSliceMut::new(&mut bytes)];
        let message =
            recvmsg::<()>(inner.as_raw_fd(), &mut into, Some(&mut space), MsgFlags::empty()).unwrap();
        let Some(ControlMessageOwned::ScmRights(fds)) = message.cmsgs().unwrap().next() else {
            panic!("no descriptor")
        };
        let writer = own(fds[0]);
        assert_eq!(message.bytes, 12);
        nix::unistd::write(&writer, b"x").unwrap();
        assert_eq!(nix::unistd::read(&reader, &mut [0; 4]).unwrap(), 1);
        inner.write_all(b"reply").unwrap();
        let mut reply = [0; 5];
        outer.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"reply");
        drop(outer);
        assert_eq!(relay.join().unwrap(), Ended::Frontend);
        assert_eq!(inner.read(&mut reply).unwrap(), 0);
    }
}
