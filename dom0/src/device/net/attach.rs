//! What is at the other end of a NIC's cable: opened, or looked at.

use std::fs::File;
use std::os::fd::OwnedFd;

use domus_startup::control::chain;
use tokio::time::timeout;

use crate::device::error::DeviceError;
use crate::device::net::config::{Nic, NicLink};
use crate::device::net::passt::{self, PASST_START, PasstError};
use crate::device::net::{steering, tap};
use crate::device::{Owner, Providers};
use crate::host::links::Links;
use crate::host::sockets;
use crate::network::managed::Networks;
use crate::process::Process;
use crate::value::place::{ConfigError, Place};

/// What is open of a NIC's cable.
#[derive(Debug)]
pub enum Attachment {
    /// A tap or macvtap.
    Tap {
        /// Its queues.
        queues: Vec<File>,
        /// The table by which it chooses among them.
        steering: Option<OwnedFd>,
    },
    /// passt.
    User {
        /// Its process.
        passt: Option<Process>,
        /// The other end of its cable, until a backend gets that.
        socket: Option<OwnedFd>,
    },
    /// dom0 holds nothing: the switch or an external backend owns the other end.
    Elsewhere,
}

impl Attachment {
    /// The wire of a NIC before it is opened.
    pub fn closed(link: &NicLink) -> Self {
        match link {
            NicLink::Bridge(_) | NicLink::Tap(_) | NicLink::Macvtap(_) | NicLink::Network(_) => {
                Self::Tap { queues: Vec::new(), steering: None }
            }
            NicLink::User(_) => Self::User { passt: None, socket: None },
            NicLink::Switch(_) | NicLink::VhostUser(_) => Self::Elsewhere,
        }
    }

    /// Opens the wire of NIC `n`, whose interface has that in its name.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn open(
        owner: &Owner,
        n: usize,
        net: &Nic,
        from: &Providers,
        links: &Links,
    ) -> Result<Self, DeviceError> {
        let (place, domid) = (&owner.place(format_args!("nets[{n}]")), owner.domid);
        Ok(match &net.link {
            NicLink::Bridge(bridge) => {
                Self::tap(tap::on_bridge(place, domid, n, net, ("bridge", bridge), links).await?)
            }
            NicLink::Tap(name) => Self::tap(tap::existing(place, net, name, links).await?),
            NicLink::Macvtap(lower) => Self::tap(tap::macvtap(place, domid, n, net, lower, links).await?),
            NicLink::User(forwards) => {
                let refuse = |error: PasstError| place.under("user").refuse(chain(&error));
                let started =
                    passt::start(&*from.supervisor, (&owner.started_as, domid), &net.id, net.mtu, forwards);
                let (passt, socket) = started.await.map_err(refuse)?;
                // Without ports nothing is likely to be in its way, and nobody is made to wait.
                if !forwards.is_empty()
                    && let Ok(how) = timeout(PASST_START, passt.ended()).await
                {
                    return Err(refuse(PasstError::Ended(how)).into());
                }
                Self::User { passt: Some(passt), socket: Some(socket) }
            }
            NicLink::Network(name) => {
                let bridge = from
                    .networks
                    .bridge(name)
                    .await
                    .map_err(|error| place.under("network").refuse(chain(&error)))?;
                let bridge = ("network", bridge.as_str());
                Self::tap(tap::on_bridge(place, domid, n, net, bridge, links).await?)
            }
            NicLink::Switch(_) | NicLink::VhostUser(_) => Self::Elsewhere,
        })
    }

    /// Number of queue pairs.
    pub fn pairs(&self) -> u16 {
        match self {
            Self::Tap { queues, .. } => queues.len() as u16,
            Self::User { .. } | Self::Elsewhere => 1,
        }
    }

    /// A tap that is not open here.
    pub fn is_closed_tap(&self) -> bool {
        matches!(self, Self::Tap { queues, .. } if queues.is_empty())
    }

    fn tap(queues: Vec<File>) -> Self {
        // A macvtap takes no program, and a dom0 without privileges may not load one: the kernel chooses by itself
        // then.
        let steered = queues.first().filter(|_| queues.len() > 1);
        let steering = steered.and_then(|queue| steering::steer(queue).ok());
        Self::Tap { queues, steering }
    }
}

/// Looks whether NIC `n` could be opened, without any effect.
///
/// # Errors
/// [`ConfigError`].
pub async fn check(
    place: &Place<'_>,
    net: &Nic,
    links: &Links,
    networks: &Networks,
) -> Result<(), ConfigError> {
    let key = net.link.key();
    let refuse = |problem: String| place.under(key).refuse(problem);
    match &net.link {
        NicLink::Bridge(name) | NicLink::Tap(name) | NicLink::Macvtap(name) => {
            tap::check(place, key, name, links).await.map(drop)
        }
        NicLink::User(_) => passt::check().map_err(|error| refuse(error.to_string())),
        NicLink::VhostUser(path) => sockets::foreign(&place.under(key), path, false).await.map(drop),
        NicLink::Network(name) => networks.check(name).await.map_err(|error| refuse(chain(&error))),
        // It is started with its first port.
        NicLink::Switch(_) => Ok(()),
    }
}
