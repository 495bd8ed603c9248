//! A workaround for the network device of QEMU 7.2 to 10, which sends `SET_VRING_ENABLE` before `SET_FEATURES`.
//!
//! That device sends the message once for each ring and never again. The `vhost` crate refuses the message until
//! `VHOST_USER_F_PROTOCOL_FEATURES` is acknowledged, so this module takes it off the socket before the crate sees it.
//! It can go when no such QEMU is to be served.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv};

/// `VHOST_USER_SET_VRING_ENABLE`.
const SET_VRING_ENABLE: u32 = 18;

/// Header (request, flags, size) and payload (index, number), all 32 bits in the machine's order.
const LENGTH: usize = 20;

const VERSION: u32 = 1;
const REPLY: u32 = 1 << 2;
const NEED_REPLY: u32 = 1 << 3;

/// One such message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Enable {
    /// The ring.
    pub index: u32,
    /// Whether it is to run.
    pub on: bool,
    needs_reply: bool,
}

impl Enable {
    /// The message that comes next on `stream`, taken off it, if it is one of these. Waits for a message.
    ///
    /// # Errors
    /// The socket broke between the look and the read.
    pub fn take(stream: &mut UnixStream) -> io::Result<Option<Self>> {
        let mut bytes = [0; LENGTH];
        // An end or a broken socket is for the crate to find, which tells them apart.
        let Ok(seen) = recv(stream.as_raw_fd(), &mut bytes, MsgFlags::MSG_PEEK) else { return Ok(None) };
        let Some(enable) = Self::parse(&bytes[..seen]) else { return Ok(None) };
        stream.read_exact(&mut bytes)?;
        Ok(Some(enable))
    }

    /// Says that it is done, if the frontend wants to know.
    ///
    /// # Errors
    /// The socket's.
    pub fn acknowledge(self, stream: &mut UnixStream) -> io::Result<()> {
        if !self.needs_reply {
            return Ok(());
        }
        let words = [SET_VRING_ENABLE, VERSION | REPLY, 8, 0, 0];
        stream.write_all(&words.map(u32::to_ne_bytes).concat())
    }

    fn parse(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; LENGTH] = bytes.try_into().ok()?;
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at * 4..at * 4 + 4)?.try_into().ok()?));
        let (request, flags, size, index, number) = (word(0)?, word(1)?, word(2)?, word(3)?, word(4)?);
        let version = flags & !NEED_REPLY;
        if (request, version, size) != (SET_VRING_ENABLE, VERSION, 8) || number > 1 {
            return None;
        }
        Some(Self { index, on: number == 1, needs_reply: flags & NEED_REPLY != 0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(words: [u32; 5]) -> Vec<u8> {
        words.map(u32::to_ne_bytes).concat()
    }

    #[test]
    fn an_enable_is_taken_off_the_socket_and_what_follows_stays() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(&message([18, 1, 8, 3, 1])).unwrap();
        theirs.write_all(b"next").unwrap();
        let enable = Enable::take(&mut ours).unwrap();
        assert_eq!(enable, Some(Enable { index: 3, on: true, needs_reply: false }));
        let mut rest = [0; 4];
        ours.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"next");
    }

    #[test]
    fn any_other_message_stays_for_the_crate() {
        for words in [[17, 1, 8, 0, 1], [18, 2, 8, 0, 1], [18, 1, 12, 0, 1], [18, 1, 8, 0, 2]] {
            assert_eq!(Enable::parse(&message(words)), None, "{words:?}");
        }
        assert_eq!(Enable::parse(&[]), None);
    }

    #[test]
    fn a_reply_is_sent_when_it_is_asked_for() {
        let (mut ours, mut theirs) = UnixStream::pair().unwrap();
        Enable::parse(&message([18, 9, 8, 0, 1])).unwrap().acknowledge(&mut ours).unwrap();
        let mut reply = [0; 20];
        theirs.read_exact(&mut reply).unwrap();
        assert_eq!(reply.as_slice(), message([18, 5, 8, 0, 0]));
    }
}
