//! Looks at and changes network links (rtnetlink), for the NICs of a domain.

use std::io;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkInfo};
use rtnetlink::{Handle, LinkUnspec};

/// What a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Linux bridge.
    Bridge,
    /// A tun or tap device.
    Tun,
    /// Anything else.
    Other,
}

/// A link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// What it is.
    pub kind: Kind,
    /// Somebody is at the other end; for a tap: a process has it open.
    pub carrier: bool,
}

/// A connection to the kernel's rtnetlink, in dom0's network namespace. It ends when this is dropped.
#[derive(Debug)]
pub struct Links {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

fn failed(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

impl Links {
    /// Opens the connection.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection()?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// The link with this name, if there is one.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn find(&self, name: &str) -> io::Result<Option<Link>> {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        let message = match found.try_next().await.map_err(failed) {
            Ok(Some(message)) => message,
            Ok(None) => return Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
            Err(error) => return Err(error),
        };
        let infos = message.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        let kind = infos.flatten().find_map(|info| match info {
            LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge),
            LinkInfo::Kind(InfoKind::Tun) => Some(Kind::Tun),
            _ => None,
        });
        let carrier =
            message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Carrier(1)));
        Ok(Some(Link { index: message.header.index, kind: kind.unwrap_or(Kind::Other), carrier }))
    }

    /// Puts the link on the bridge and switches it on.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn join(&self, link: u32, bridge: u32, mtu: u16) -> io::Result<()> {
        // A bridge takes the lowest address of its ports as its own: this one is higher than any other.
        let address = vec![0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
        let message =
            LinkUnspec::new_with_index(link).address(address).mtu(mtu.into()).controller(bridge).up().build();
        self.handle.link().change(message).execute().await.map_err(failed)
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}
