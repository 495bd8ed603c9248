//! Looks at and changes network links (rtnetlink), for the NICs of domains and for networks.

use std::io;
use std::net::IpAddr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, MacVtapMode};
use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{Handle, LinkBridge, LinkBridgePort, LinkMacVtap, LinkUnspec};
use shared_abi::MacAddress;

/// What a link is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A Linux bridge.
    Bridge,
    /// A tun or tap device.
    Tun,
    /// A macvtap.
    Macvtap,
    /// Anything else.
    Other,
}

/// A link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is.
    pub kind: Kind,
    /// The bridge that it is a port of.
    pub bridge: Option<u32>,
    /// Its group.
    pub group: u32,
    /// Its MTU.
    pub mtu: u32,
    /// Its address.
    pub mac: Vec<u8>,
    /// It is switched on.
    pub up: bool,
    /// Somebody is at the other end; for a tap: a process has it open.
    pub carrier: bool,
}

/// A link that is to be a port of a bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Port {
    /// The link.
    pub link: u32,
    /// The bridge.
    pub bridge: u32,
    /// The link's MTU.
    pub mtu: u16,
    /// The only address behind it: the bridge learns no other there, and takes no spanning tree's messages from it.
    pub only: Option<MacAddress>,
    /// Frames go there whose address the bridge does not know.
    pub floods: bool,
    /// Frames do not pass between this port and others that are isolated.
    pub isolated: bool,
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
        Ok(Some(link(&message)))
    }

    /// All links whose name begins so.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn named(&self, prefix: &str) -> io::Result<Vec<Link>> {
        let all = self.handle.link().get().execute();
        let all: Vec<LinkMessage> = all.try_collect().await.map_err(failed)?;
        Ok(all.iter().map(link).filter(|link| link.name.starts_with(prefix)).collect())
    }

    /// Makes a link a port of a bridge and switches it on.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn join(&self, port: Port) -> io::Result<()> {
        let Port { link, bridge, mtu, only, floods, isolated } = port;
        // A bridge takes the lowest address of its ports as its own: this one is higher than any other.
        let address = vec![0xfe, 0xff, 0xff, 0xff, 0xff, 0xff];
        let message =
            LinkUnspec::new_with_index(link).address(address).mtu(mtu.into()).controller(bridge).build();
        self.handle.link().change(message).execute().await.map_err(failed)?;
        let is_guarded = only.is_some();
        let message = LinkBridgePort::new(link)
            .guard(is_guarded)
            .root_block(is_guarded)
            .learning(!is_guarded)
            .flood(floods)
            .isolated(isolated)
            .build();
        self.handle.link().change(message).execute().await.map_err(failed)?;
        if let Some(mac) = only {
            let entry = self.handle.neighbours().add_bridge(link, &mac.bytes());
            let entry = entry.state(NeighbourState::Noarp).flags(NeighbourFlags::Controller).replace();
            entry.execute().await.map_err(failed)?;
        }
        let message = LinkUnspec::new_with_index(link).up().build();
        self.handle.link().change(message).execute().await.map_err(failed)
    }
}

impl Links {
    /// Makes a bridge that is on, with an address that does not change with its ports, in a group of links.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_bridge(&self, name: &str, mac: MacAddress, group: u32) -> io::Result<()> {
        let message = LinkBridge::new(name).address(mac.bytes().to_vec()).link_group(group).build();
        self.handle.link().add(message).execute().await.map_err(failed)
    }

    /// Makes a macvtap on the interface `lower`, in mode bridge, that is on.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_macvtap(&self, name: &str, lower: u32, mac: MacAddress, mtu: u16) -> io::Result<()> {
        let message = LinkMacVtap::new(name, lower, MacVtapMode::Bridge)
            .address(mac.bytes().to_vec())
            .mtu(mtu.into())
            .up()
            .build();
        self.handle.link().add(message).execute().await.map_err(failed)
    }

    /// Gives the link an address.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn add_address(&self, link: u32, address: IpAddr, prefix: u8) -> io::Result<()> {
        self.handle.address().add(link, address, prefix).execute().await.map_err(failed)
    }

    /// The link's addresses, with their prefixes.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn addresses(&self, link: u32) -> io::Result<Vec<(IpAddr, u8)>> {
        let all = self.handle.address().get().set_link_index_filter(link).execute();
        let all: Vec<AddressMessage> = all.try_collect().await.map_err(failed)?;
        let own = all.iter().filter(|message| message.header.index == link);
        Ok(own
            .filter_map(|message| {
                let local = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Local(address) => Some(*address),
                    _ => None,
                };
                // IPv6 has the address alone.
                let address = |attribute: &AddressAttribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                };
                let attributes = &message.attributes;
                let found = attributes.iter().find_map(local).or_else(|| attributes.iter().find_map(address));
                Some((found?, message.header.prefix_len))
            })
            .collect())
    }

    /// Gives the link this address and MTU, and switches it on.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn set(&self, link: u32, mac: MacAddress, mtu: u32) -> io::Result<()> {
        let message = LinkUnspec::new_with_index(link).address(mac.bytes().to_vec()).mtu(mtu).up().build();
        self.handle.link().change(message).execute().await.map_err(failed)
    }

    /// Removes the link.
    ///
    /// # Errors
    /// What the kernel said.
    pub async fn remove(&self, link: u32) -> io::Result<()> {
        self.handle.link().del(link).execute().await.map_err(failed)
    }
}

/// What a message of the kernel's says of a link.
pub fn link(message: &LinkMessage) -> Link {
    let infos = message.attributes.iter().filter_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => Some(infos),
        _ => None,
    });
    let kind = infos.flatten().find_map(|info| match info {
        LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge),
        LinkInfo::Kind(InfoKind::Tun) => Some(Kind::Tun),
        LinkInfo::Kind(InfoKind::MacVtap) => Some(Kind::Macvtap),
        _ => None,
    });
    let first = |wanted: fn(&LinkAttribute) -> Option<u32>| message.attributes.iter().find_map(wanted);
    let name = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    });
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => Some(mac.clone()),
        _ => None,
    });
    let bridge = first(|attribute| match attribute {
        LinkAttribute::Controller(bridge) => Some(*bridge),
        _ => None,
    });
    let group = first(|attribute| match attribute {
        LinkAttribute::Group(group) => Some(*group),
        _ => None,
    });
    let mtu = first(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    let carrier = message.attributes.iter().any(|attribute| matches!(attribute, LinkAttribute::Carrier(1)));
    Link {
        index: message.header.index,
        name: name.unwrap_or_default(),
        kind: kind.unwrap_or(Kind::Other),
        bridge,
        group: group.unwrap_or(0),
        mtu: mtu.unwrap_or(0),
        mac: mac.unwrap_or_default(),
        up: message.header.flags.contains(LinkFlags::Up),
        carrier,
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}
