//! The kernel's packet filter (nftables over nfnetlink): who is told of a change of which table, and what a table looks
//! like now.

use std::io;
use std::time::Duration;

use nix::sys::socket::SockProtocol;
use tokio::time::timeout;

use crate::host::netlink::{Heard, Message, Netlink, attribute, request};

/// `NFNLGRP_NFTABLES` as a bit.
pub const GROUP: u32 = 1 << 6;

/// `NFNL_SUBSYS_NFTABLES`, the upper byte of a message's kind, and its messages.
const SUBSYSTEM: u16 = 10 << 8;
const GET_TABLE: u16 = SUBSYSTEM | 1;
const GET_CHAIN: u16 = SUBSYSTEM | 4;
const GET_RULE: u16 = SUBSYSTEM | 7;
const NEW_GENERATION: u16 = SUBSYSTEM | 15;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

/// `struct nfgenmsg` of family `NFPROTO_INET`: family, version, and a number that changes with every change of any
/// table.
const GENERIC: [u8; 4] = [1, 0, 0, 0];

/// `NFTA_TABLE_NAME`, `NFTA_CHAIN_TABLE`, `NFTA_RULE_TABLE` and their like are all the first.
const TABLE: u16 = 1;

/// `NFTA_GEN_ID`.
const GENERATION: u16 = 1;

/// Messages that end an answer.
const DONE: u16 = libc::NLMSG_DONE as u16;
const ERROR: u16 = libc::NLMSG_ERROR as u16;

/// Within this time the kernel has answered.
const ANSWER: Duration = Duration::from_secs(2);

/// The name of the table of family inet in which this message tells of a change.
pub fn changed(message: Message<'_>) -> Option<&[u8]> {
    let (generic, attributes) = message.payload.split_first_chunk::<4>()?;
    if message.kind & 0xff00 != SUBSYSTEM || message.kind == NEW_GENERATION || generic[0] != GENERIC[0] {
        return None;
    }
    attribute(attributes, TABLE)?.strip_suffix(&[0])
}

/// The number of changes that there have been, of all tables: one that was loaded as a whole counts as one.
///
/// # Errors
/// What the kernel said.
pub async fn generation() -> io::Result<u32> {
    let ask = async {
        let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter, 0)?;
        netlink.ask(&request(GET_GENERATION, 0, &[0; 4], None))?;
        let Heard::Messages(messages) = netlink.hear().await? else {
            return Err(io::Error::other("the kernel's answer is too long"));
        };
        let mut told = messages.filter(|message| message.kind == NEW_GENERATION).filter_map(|message| {
            let (_, attributes) = message.payload.split_first_chunk::<4>()?;
            attribute(attributes, GENERATION)?.try_into().ok().map(u32::from_be_bytes)
        });
        told.next().ok_or_else(|| io::ErrorKind::InvalidData.into())
    };
    timeout(ANSWER, ask).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Everything in a table of family inet, as the kernel tells it: the same bytes for as long as nobody changes it, since
/// each thing in it has a number of its own. Empty if there is no such table.
///
/// # Errors
/// What the kernel said.
pub async fn contents(table: &str) -> io::Result<Vec<u8>> {
    timeout(ANSWER, all(table)).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn all(table: &str) -> io::Result<Vec<u8>> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter, 0)?;
    let mut bytes = Vec::new();
    for (kind, is_dump) in [(GET_TABLE, false), (GET_CHAIN, true), (GET_RULE, true)] {
        let flags = if is_dump { libc::NLM_F_DUMP } else { libc::NLM_F_ACK } as u16;
        netlink.ask(&request(kind, flags, &GENERIC, Some((TABLE, table))))?;
        match answer(&mut netlink, table, &mut bytes).await {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
            other => other?,
        }
    }
    Ok(bytes)
}

/// Adds what is said of the table, until the answer ends.
async fn answer(netlink: &mut Netlink, table: &str, bytes: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let Heard::Messages(messages) = netlink.hear().await? else {
            return Err(io::Error::other("the kernel's answer is too long"));
        };
        for message in messages {
            let number = message.payload.first_chunk().map_or(0, |number| i32::from_ne_bytes(*number));
            match (message.kind, number) {
                (DONE | ERROR, 0..) => return Ok(()),
                (DONE | ERROR, error) => return Err(io::Error::from_raw_os_error(-error)),
                _ => {}
            }
            // A kernel that does not look for one table in a dump tells all.
            if changed(message) == Some(table.as_bytes())
                && let Some((_, attributes)) = message.payload.split_first_chunk::<4>()
            {
                bytes.extend(attributes);
            }
        }
    }
}
