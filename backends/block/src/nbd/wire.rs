//! Bytes and numbers of the NBD protocol (`doc/proto.md` of the NetworkBlockDevice project), big-endian.

use std::ops::Range;

/// First bytes of a server: `NBDMAGIC`.
pub const MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Then, and before each option: `IHAVEOPT`.
pub const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
/// Before each reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Before each request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Before each simple reply.
pub const REPLY_MAGIC: u32 = 0x6744_6698;

/// Handshake flags, the same in both directions: fixed newstyle, and no zeros after `NBD_OPT_EXPORT_NAME`.
pub const FIXED_NEWSTYLE: u16 = 1 << 0;
/// See [`FIXED_NEWSTYLE`].
pub const NO_ZEROES: u16 = 1 << 1;

/// `NBD_OPT_GO`.
pub const OPT_GO: u32 = 7;
/// `NBD_REP_ACK`.
pub const REP_ACK: u32 = 1;
/// `NBD_REP_INFO`.
pub const REP_INFO: u32 = 3;
/// Set in replies that are errors.
pub const REP_ERROR: u32 = 1 << 31;
/// `NBD_INFO_EXPORT`.
pub const INFO_EXPORT: u16 = 0;
/// `NBD_INFO_BLOCK_SIZE`.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Longest export name, in bytes.
pub const MAX_NAME: usize = 4096;
/// Bytes of a request without its data.
pub const REQUEST_LEN: usize = 28;
/// Bytes of a simple reply without its data.
pub const REPLY_LEN: usize = 16;

/// What an export can do (transmission flags).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flags(pub u16);

impl Flags {
    /// Writes are refused.
    pub fn read_only(self) -> bool {
        self.0 & 1 << 1 != 0
    }

    /// `NBD_CMD_FLUSH` is there.
    pub fn flush(self) -> bool {
        self.0 & 1 << 2 != 0
    }

    /// [`FUA`] is there.
    pub fn fua(self) -> bool {
        self.0 & 1 << 3 != 0
    }

    /// `NBD_CMD_TRIM` is there.
    pub fn trim(self) -> bool {
        self.0 & 1 << 5 != 0
    }

    /// `NBD_CMD_WRITE_ZEROES` is there.
    pub fn write_zeroes(self) -> bool {
        self.0 & 1 << 6 != 0
    }
}

/// Command flag: answer when it survives a power cut.
pub const FUA: u16 = 1 << 0;
/// Command flag of write-zeroes: leave no hole.
pub const NO_HOLE: u16 = 1 << 1;

/// Commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are called what they do")]
pub enum Command {
    Read = 0,
    Write = 1,
    Flush = 3,
    Trim = 4,
    WriteZeroes = 6,
}

/// A request without its data and its cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub command: Command,
    /// [`FUA`], [`NO_HOLE`].
    pub flags: u16,
    /// First byte in the export.
    pub offset: u64,
    /// Bytes.
    pub len: u32,
}

impl Request {
    /// The bytes of the export that it changes, if it changes any.
    pub fn changes(self) -> Option<Range<u64>> {
        match self.command {
            Command::Write | Command::Trim | Command::WriteZeroes => {
                Some(self.offset..self.offset.saturating_add(self.len.into()))
            }
            _ => None,
        }
    }

    /// Its bytes.
    pub fn encode(self, cookie: u64) -> [u8; REQUEST_LEN] {
        let mut bytes = [0; REQUEST_LEN];
        bytes[..4].copy_from_slice(&REQUEST_MAGIC.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flags.to_be_bytes());
        bytes[6..8].copy_from_slice(&(self.command as u16).to_be_bytes());
        bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.offset.to_be_bytes());
        bytes[24..].copy_from_slice(&self.len.to_be_bytes());
        bytes
    }
}

/// A simple reply: its cookie and its error, 0 for none. None if it is something else.
pub fn reply(bytes: [u8; REPLY_LEN]) -> Option<(u64, u32)> {
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let cookie = u64::from(word(8)) << 32 | u64::from(word(12));
    (word(0) == REPLY_MAGIC).then_some((cookie, word(4)))
}

/// The server goes away: what it answers so was not done.
pub const ESHUTDOWN: u32 = 108;

/// Linux' number of an error of the protocol; one that is not in the protocol is an I/O error.
pub fn errno(error: u32) -> i32 {
    match error {
        1 => libc::EPERM,
        12 => libc::ENOMEM,
        22 => libc::EINVAL,
        28 => libc::ENOSPC,
        75 => libc::EOVERFLOW,
        95 => libc::EOPNOTSUPP,
        _ => libc::EIO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_and_a_reply_have_the_bytes_of_the_protocol() {
        let request = Request { command: Command::WriteZeroes, flags: NO_HOLE, offset: 0x1122, len: 512 };
        let bytes = request.encode(7);
        assert_eq!(bytes[..8], [0x25, 0x60, 0x95, 0x13, 0, 2, 0, 6]);
        assert_eq!(bytes[8..], [0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0x11, 0x22, 0, 0, 2, 0]);
        let answer = [0x67, 0x44, 0x66, 0x98, 0, 0, 0, 28, 0, 0, 0, 1, 0, 0, 0, 9];
        assert_eq!(reply(answer), Some(((1 << 32) + 9, 28)));
        assert_eq!(reply([0; 16]), None);
    }
}
