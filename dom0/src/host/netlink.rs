//! Netlink sockets that the kernel tells of changes, and the messages in what it says.
//!
//! No call waits: a socket is watched by the runtime. A socket that was read too slowly says so
//! ([`Heard::Overrun`]), and whoever reads it looks at everything again.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, socket,
};
use tokio::io::unix::AsyncFd;

use crate::host::watch;

/// Room for what the kernel says at once (`NLMSG_GOODSIZE` is a page, dumps come in up to 32 KiB).
const BUFFER: usize = 32 << 10;

/// Bytes of a message's header, `struct nlmsghdr`, and of an attribute's, `struct nlattr`.
const HEADER: usize = 16;
const ATTRIBUTE: usize = 4;

/// The lower 14 bits of an attribute's type; the others say how it is written.
const TYPE: u16 = 0x3fff;

/// A socket.
#[derive(Debug)]
pub struct Netlink {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

/// What was heard.
#[derive(Debug)]
pub enum Heard<'a> {
    /// Messages, one after the other.
    Messages(Messages<'a>),
    /// Some were lost.
    Overrun,
}

impl Netlink {
    /// Opens a socket that hears what is said to these multicast groups, a bit for each of the first 32.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open(protocol: SockProtocol, groups: u32) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, protocol)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        Ok(Self { socket: watch::readable(fd)?, buffer: vec![0; BUFFER] })
    }

    /// Waits for the next messages. Cancel safe.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn hear(&mut self) -> io::Result<Heard<'_>> {
        let len = loop {
            // A socket that is always readable never makes a task wait; dom0's other tasks want to run too.
            tokio::task::coop::consume_budget().await;
            let mut guard = self.socket.readable().await?;
            match recv(self.socket.get_ref().as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(len) if len > self.buffer.len() => return Ok(Heard::Overrun),
                Ok(len) => break len,
                Err(Errno::EAGAIN) => guard.clear_ready(),
                Err(Errno::ENOBUFS) => return Ok(Heard::Overrun),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        };
        Ok(Heard::Messages(Messages(&self.buffer[..len])))
    }

    /// Sends a request to the kernel, which takes it at once.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn ask(&self, request: &[u8]) -> io::Result<()> {
        send(self.socket.get_ref().as_raw_fd(), request, MsgFlags::empty())?;
        Ok(())
    }
}

/// The messages of one datagram.
#[derive(Debug)]
pub struct Messages<'a>(&'a [u8]);

/// One message.
#[derive(Debug, Clone, Copy)]
pub struct Message<'a> {
    /// What it is.
    pub kind: u16,
    /// With its header.
    pub whole: &'a [u8],
    /// Behind its header.
    pub payload: &'a [u8],
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let (header, _) = self.0.split_first_chunk::<HEADER>()?;
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let whole = self.0.get(..len).filter(|whole| whole.len() >= HEADER)?;
        self.0 = self.0.get(len.next_multiple_of(4)..).unwrap_or_default();
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        Some(Message { kind, whole, payload: &whole[HEADER..] })
    }
}

/// The first attribute of this type, among those in `bytes`.
pub fn attribute(mut bytes: &[u8], kind: u16) -> Option<&[u8]> {
    loop {
        let (header, _) = bytes.split_first_chunk::<ATTRIBUTE>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let value = bytes.get(ATTRIBUTE..len)?;
        if u16::from_ne_bytes([header[2], header[3]]) & TYPE == kind {
            return Some(value);
        }
        bytes = bytes.get(len.next_multiple_of(4)..)?;
    }
}

/// A request, with one attribute that is a text, or without.
pub fn request(kind: u16, flags: u16, fixed: &[u8], text: Option<(u16, &str)>) -> Vec<u8> {
    let mut bytes = vec![0; HEADER];
    bytes.extend(fixed);
    if let Some((kind, text)) = text {
        let len = ATTRIBUTE + text.len() + 1;
        bytes.extend((len as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(text.as_bytes());
        bytes.resize((bytes.len() + 1).next_multiple_of(4), 0);
    }
    let len = bytes.len() as u32;
    bytes[..4].copy_from_slice(&len.to_ne_bytes());
    bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
    bytes[6..8].copy_from_slice(&(flags | libc::NLM_F_REQUEST as u16).to_ne_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_it_was_written_and_what_is_cut_off_is_nothing() {
        let bytes = request(7, 0, &[1, 0, 0, 0], Some((1, "lan")));
        let found: Vec<_> = Messages(&bytes).collect();
        assert_eq!((found.len(), found[0].kind, found[0].payload[0]), (1, 7, 1));
        assert_eq!(attribute(&found[0].payload[4..], 1), Some(&b"lan\0"[..]));
        assert_eq!(attribute(&found[0].payload[4..], 2), None);
        for len in 0..bytes.len() {
            assert_eq!(Messages(&bytes[..len]).count(), 0);
            assert!(len >= bytes.len() - 4 || attribute(&bytes[20..len.max(20)], 1).is_none());
        }
        // A length of nothing is no endless loop.
        assert_eq!(Messages(&[0; 64]).count(), 0);
        assert_eq!(attribute(&[0; 64], 1), None);
    }
}
