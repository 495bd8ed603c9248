//! Turns a connected socket into an export: the fixed newstyle handshake with `NBD_OPT_GO`, without further options.

use std::io;

use super::stream::{Receiver, Sender};
use super::wire::{self, Flags};
use crate::request::SECTOR;

/// Most replies to one option: servers send a few kinds of information, at most these are read.
const MAX_REPLIES: usize = 32;
/// Most bytes of one reply to an option.
const MAX_REPLY: u32 = 8192;
/// Bytes of a server's text that are repeated.
const MAX_TEXT: usize = 200;
/// Largest smallest block: a page.
const MAX_BLOCK: u32 = 4096;

/// Why there is no export.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection failed.
    #[error("the NBD server hung up in the handshake")]
    Socket(#[from] io::Error),
    /// Not an NBD server, or one of before 2011.
    #[error("the server does not speak NBD's fixed newstyle handshake")]
    Protocol,
    /// It answers something that was not asked, too much, or too long.
    #[error("the NBD server breaks the protocol: {0}")]
    Broken(&'static str),
    /// It says no.
    #[error("the NBD server refuses export \"{export}\": {why}")]
    Refused {
        /// The export's name.
        export: String,
        /// What it says, or the number of its error.
        why: String,
    },
    /// Too long for the protocol.
    #[error("an export name of {0} bytes: NBD allows {max}", max = wire::MAX_NAME)]
    Name(usize),
    /// Larger blocks than a guest can be given.
    #[error("the NBD server wants blocks of {0} bytes: 1 to {MAX_BLOCK} are served")]
    Block(u32),
    /// No sector.
    #[error("the export has {0} bytes, which are less than a sector")]
    Empty(u64),
    /// Nothing heard.
    #[error("the NBD server has not finished the handshake within {0} s")]
    Silent(u64),
    /// A disk does not become smaller under its guest.
    #[error("the export has {now} bytes now, the guest knows {before}: it may have grown, not shrunk")]
    Shrunk {
        /// The export's size.
        now: u64,
        /// The guest's.
        before: u64,
    },
    /// The guest was told that it may write.
    #[error("the export is read-only and the disk is not: say \"read_only\": true")]
    ReadOnly,
}

/// What the server has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// Its size in bytes.
    pub bytes: u64,
    /// What can be done with it.
    pub flags: Flags,
    /// Offsets and lengths are multiples of this: a power of two up to 4096.
    pub block: u32,
}

/// Asks for an export.
///
/// # Errors
/// [`HandshakeError`]; the connection is of no use then.
pub async fn go(to: &Sender, from: &mut Receiver, export: &str) -> Result<Export, HandshakeError> {
    if export.len() > wire::MAX_NAME {
        return Err(HandshakeError::Name(export.len()));
    }
    if from.u64().await? != wire::MAGIC || from.u64().await? != wire::OPTION_MAGIC {
        return Err(HandshakeError::Protocol);
    }
    let flags = from.u16().await?;
    if flags & wire::FIXED_NEWSTYLE == 0 {
        return Err(HandshakeError::Protocol);
    }
    let flags = flags & (wire::FIXED_NEWSTYLE | wire::NO_ZEROES);
    to.send(&u32::from(flags).to_be_bytes(), &option(export)).await?;
    let mut found = None;
    let mut block = 1;
    for _ in 0..MAX_REPLIES {
        if from.u64().await? != wire::OPTION_REPLY_MAGIC || from.u32().await? != wire::OPT_GO {
            return Err(HandshakeError::Broken("an answer to another question"));
        }
        let (kind, len) = (from.u32().await?, from.u32().await?);
        if len > MAX_REPLY {
            return Err(HandshakeError::Broken("an answer that is too long"));
        }
        let mut data = vec![0; len as usize];
        from.receive(&mut data).await?;
        match kind {
            wire::REP_ACK => {
                let (bytes, flags) = found.ok_or(HandshakeError::Broken("no size of the export"))?;
                return check(Export { bytes, flags, block });
            }
            wire::REP_INFO => match information(&data) {
                Some(Information::Export(bytes, flags)) => found = Some((bytes, flags)),
                Some(Information::Block(smallest)) => block = smallest,
                None => {}
            },
            error if error & wire::REP_ERROR != 0 => {
                return Err(HandshakeError::Refused { export: export.into(), why: reason(error, &data) });
            }
            _ => return Err(HandshakeError::Broken("an answer of an unknown kind")),
        }
    }
    Err(HandshakeError::Broken("answers without end"))
}

/// `NBD_OPT_GO` that asks for the block size, too: a server may insist on it being asked for.
fn option(export: &str) -> Vec<u8> {
    let name = export.as_bytes();
    let mut bytes = wire::OPTION_MAGIC.to_be_bytes().to_vec();
    bytes.extend(wire::OPT_GO.to_be_bytes());
    bytes.extend((4 + name.len() as u32 + 2 + 2).to_be_bytes());
    bytes.extend((name.len() as u32).to_be_bytes());
    bytes.extend(name);
    bytes.extend(1_u16.to_be_bytes());
    bytes.extend(wire::INFO_BLOCK_SIZE.to_be_bytes());
    bytes
}

enum Information {
    Export(u64, Flags),
    Block(u32),
}

fn information(data: &[u8]) -> Option<Information> {
    let (kind, rest) = data.split_first_chunk()?;
    match u16::from_be_bytes(*kind) {
        wire::INFO_EXPORT => {
            let (bytes, rest) = rest.split_first_chunk()?;
            let (flags, _) = rest.split_first_chunk()?;
            Some(Information::Export(u64::from_be_bytes(*bytes), Flags(u16::from_be_bytes(*flags))))
        }
        wire::INFO_BLOCK_SIZE => {
            let (smallest, _) = rest.split_first_chunk()?;
            Some(Information::Block(u32::from_be_bytes(*smallest)))
        }
        _ => None,
    }
}

fn check(export: Export) -> Result<Export, HandshakeError> {
    if !export.block.is_power_of_two() || export.block > MAX_BLOCK {
        return Err(HandshakeError::Block(export.block));
    }
    if export.bytes < SECTOR {
        return Err(HandshakeError::Empty(export.bytes));
    }
    Ok(export)
}

/// What a server says of its refusal, in one line of printable text.
fn reason(error: u32, data: &[u8]) -> String {
    let text = String::from_utf8_lossy(data);
    let text: String = text.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
    match error & !wire::REP_ERROR {
        _ if !text.is_empty() => text,
        2 => "its policy forbids it".into(),
        5 => "it wants TLS, which is not spoken here".into(),
        6 => "it has no such export".into(),
        7 => "it is shutting down".into(),
        number => format!("error {number}"),
    }
}
