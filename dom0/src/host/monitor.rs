//! What the kernel says of network links, their addresses, forwarding and the tables of the packet filter, when
//! somebody changes them: whoever has made one keeps it true.
//!
//! ```text
//!   rtnetlink (links, addresses, forwarding) ─┐
//!                                             ├─▶ table of links ─▶ who watches a name of those looks again
//!   nfnetlink (nftables) ─────────────────────┘
//! ```
//!
//! A change is a reason to look, and no more: what was heard may be old by then, and some of it may be lost, in which
//! case all look. Nobody is woken for what does not concern the names that he watches.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::poll_fn;
use std::io;
use std::rc::{Rc, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use nix::sys::socket::SockProtocol;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use tokio::time::sleep;

use crate::host::links::{Kind, Link, Links, link};
use crate::host::netlink::{Heard, Message, Netlink, attribute};
use crate::host::nftables;

/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`, `RTNLGRP_IPV4_NETCONF` and `RTNLGRP_IPV6_NETCONF`.
const LINKS: u32 = 1 | 1 << 4 | 1 << 8 | 1 << 23 | 1 << 24;

/// `RTM_NEWNETCONF`: a switch of the network stack was thrown, for one interface or for all of them.
const NETCONF: u16 = 80;

/// In it: the interface ([`ALL`] for all), and whether packets are forwarded.
const NETCONF_IFINDEX: u16 = 1;
const NETCONF_FORWARDING: u16 = 2;
const ALL: i32 = -1;

/// The pause after a socket has failed.
const PAUSE: Duration = Duration::from_secs(1);

/// All that is watched. Used by one thread; it listens from the first [`Self::watch`] on.
#[derive(Debug, Clone, Default)]
pub struct Monitor(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    links: RefCell<BTreeMap<u32, Link>>,
    interests: RefCell<Vec<Weak<Interest>>>,
    hears_links: Cell<bool>,
    hears_tables: Cell<bool>,
}

/// Names that somebody watches.
#[derive(Debug)]
struct Interest {
    links: Vec<String>,
    table: Option<String>,
    changed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Interest {
    fn wake(&self) {
        self.changed.set(true);
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

/// Names that are watched for as long as this lives. For one task.
#[derive(Debug)]
pub struct Watch(Rc<Interest>);

impl Watch {
    /// Ready when something with one of the names may have changed since this was ready.
    pub fn poll_changed(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.0.changed.replace(false) {
            return Poll::Ready(());
        }
        *self.0.waker.borrow_mut() = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Waits for that. Cancel safe.
    pub async fn changed(&self) {
        poll_fn(|cx| self.poll_changed(cx)).await;
    }
}

impl Monitor {
    /// Watches links of these names, whether there are such or not, and a table (family inet) of this name. Must be
    /// called in a `LocalSet`.
    pub fn watch(&self, links: impl IntoIterator<Item = String>, table: Option<String>) -> Watch {
        let interest = Interest {
            links: links.into_iter().collect(),
            table,
            // It may have changed before.
            changed: Cell::new(true),
            waker: RefCell::default(),
        };
        let interest = Rc::new(interest);
        let mut interests = self.0.interests.borrow_mut();
        interests.retain(|interest| interest.strong_count() > 0);
        interests.push(Rc::downgrade(&interest));
        if !interest.links.is_empty() && !self.0.hears_links.replace(true) {
            tokio::task::spawn_local(listen("links", self.clone(), Self::hear_links));
        }
        // It takes privileges that a command of a user's does not have, nor need.
        if interest.table.is_some() && !self.0.hears_tables.replace(true) {
            tokio::task::spawn_local(listen("the packet filter", self.clone(), Self::hear_tables));
        }
        Watch(interest)
    }

    fn wake(&self, concerned: impl Fn(&Interest) -> bool) {
        // A waker may run what watches something else.
        let interests: Vec<_> = self.0.interests.borrow().iter().filter_map(Weak::upgrade).collect();
        interests.iter().filter(|interest| concerned(interest)).for_each(|interest| interest.wake());
    }

    fn wake_link(&self, name: &str) {
        self.wake(|interest| interest.links.iter().any(|watched| watched == name));
    }

    async fn hear_links(self) -> io::Result<()> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkRoute, LINKS)?;
        loop {
            // What is said meanwhile is heard after it.
            let all = Links::open()?.named("").await?;
            *self.0.links.borrow_mut() = all.into_iter().map(|link| (link.index, link)).collect();
            self.wake(|interest| !interest.links.is_empty());
            while let Heard::Messages(messages) = netlink.hear().await? {
                messages.for_each(|message| self.link_said(message));
            }
        }
    }

    fn link_said(&self, message: Message<'_>) {
        if message.kind == NETCONF {
            // Whoever has a table has a network, which may need forwarding. Each new interface tells its own, too.
            return if tells_forwarding(message.payload) {
                self.wake(|interest| interest.table.is_some());
            };
        }
        let Ok(message) = NetlinkMessage::<RouteNetlinkMessage>::deserialize(message.whole) else {
            return self.wake(|interest| !interest.links.is_empty());
        };
        let NetlinkPayload::InnerMessage(message) = message.payload else { return };
        match message {
            RouteNetlinkMessage::NewLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                let now = link(&message);
                let before = self.0.links.borrow_mut().insert(now.index, now.clone());
                if before.as_ref().is_none_or(|before| tells(before, &now)) {
                    self.wake_link(&now.name);
                    // It may have had another name.
                    before
                        .filter(|before| before.name != now.name)
                        .iter()
                        .for_each(|it| self.wake_link(&it.name));
                }
            }
            // One of the family of bridges says that a port has left.
            RouteNetlinkMessage::DelLink(message)
                if message.header.interface_family == AddressFamily::Unspec =>
            {
                let before = self.0.links.borrow_mut().remove(&message.header.index);
                before.iter().for_each(|before| self.wake_link(&before.name));
            }
            RouteNetlinkMessage::NewAddress(message) | RouteNetlinkMessage::DelAddress(message) => {
                let of = self.0.links.borrow().get(&message.header.index).map(|link| link.name.clone());
                of.iter().for_each(|name| self.wake_link(name));
            }
            _ => {}
        }
    }

    async fn hear_tables(self) -> io::Result<()> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter, nftables::GROUP)?;
        loop {
            // Also at first: something may have been changed before this listened.
            self.wake(|interest| interest.table.is_some());
            while let Heard::Messages(messages) = netlink.hear().await? {
                for name in messages.filter_map(nftables::changed) {
                    self.wake(|interest| interest.table.as_deref().is_some_and(|own| name == own.as_bytes()));
                }
            }
        }
    }
}

/// Listens for ever; what fails is said the first time.
async fn listen<F: Future<Output = io::Result<()>>>(what: &str, monitor: Monitor, hear: fn(Monitor) -> F) {
    let mut is_said = false;
    loop {
        if let Err(error) = hear(monitor.clone()).await
            && !std::mem::replace(&mut is_said, true)
        {
            crate::log::stderr::line(format_args!("changes of {what} are not heard of: {error}"));
        }
        sleep(PAUSE).await;
    }
}

/// True of `struct netconfmsg`, padded, with its attributes, that says whether all interfaces forward.
fn tells_forwarding(payload: &[u8]) -> bool {
    let attributes = payload.get(4..).unwrap_or_default();
    let of = attribute(attributes, NETCONF_IFINDEX).and_then(<[u8]>::first_chunk);
    of.is_some_and(|of| i32::from_ne_bytes(*of) == ALL) && attribute(attributes, NETCONF_FORWARDING).is_some()
}

/// A change of a link that concerns somebody. Whether somebody is at its other end matters of a tap alone; of a bridge
/// it changes with its ports.
fn tells(before: &Link, now: &Link) -> bool {
    let carrier = if now.kind == Kind::Tun { now.carrier } else { before.carrier };
    Link { carrier, ..now.clone() } != *before
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn who_watches_a_name_is_woken_for_that_and_for_nothing_else() {
        let monitor = Monitor::default();
        monitor.0.hears_links.set(true);
        monitor.0.hears_tables.set(true);
        let (one, other) =
            (monitor.watch(["a".into(), "b".into()], None), monitor.watch([], Some("t".into())));
        let ready = |watch: &Watch| watch.poll_changed(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(ready(&one) && ready(&other) && !ready(&one) && !ready(&other));
        monitor.wake_link("b");
        assert!(ready(&one) && !ready(&one) && !ready(&other));
        monitor.wake(|interest| interest.table.is_some());
        assert!(!ready(&one) && ready(&other));
        drop(one);
        monitor.wake_link("a");
        assert_eq!(monitor.0.interests.borrow().iter().filter_map(Weak::upgrade).count(), 1);
    }
}
