//! What a NIC's cable is made of in the host's kernel: its tap, and the bridge that this is a port of. Looked at
//! whenever the kernel says that one of them has changed, and put right.
//!
//! | amiss | put right |
//! |---|---|
//! | the tap is no port of its bridge, is off, has another MTU | it is a port again, once there is such a bridge |
//! | the tap is gone, or another one has its name | a process has it open that can have no other: another process |

use crate::device::Owner;
use crate::device::error::DeviceError;
use crate::device::net::config::{Nic, NicLink};
use crate::device::net::tap;
use crate::host::links::{Kind, Link, Links};
use crate::host::monitor::{Monitor, Watch};
use crate::value::place::Place;

/// A cable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cable {
    /// The tap or macvtap.
    pub tap: String,
    /// Its index, as far as it is known: another one of that name has another.
    pub index: Option<u32>,
    /// The bridge that it is put on, with the key of the config that names that.
    pub bridge: Option<(&'static str, String)>,
    /// The key of the config that names what has to be there for another tap, with its name.
    needs: (&'static str, String),
}

/// What is amiss with a cable. The text says it for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Amiss {
    /// The tap can be put right.
    Port(String),
    /// There is no tap that the backend has open.
    Tap(String),
}

impl Cable {
    /// That of NIC `n`. On a managed network its bridge is this. None if it has none that is watched.
    pub fn of(owner: &Owner, n: usize, nic: &Nic, network_bridge: Option<String>) -> Option<Self> {
        let made = tap::vif(owner.domid, n);
        let on = |key, bridge: String| Self {
            tap: made.clone(),
            index: None,
            bridge: Some((key, bridge.clone())),
            needs: (key, bridge),
        };
        match &nic.link {
            NicLink::Bridge(bridge) => Some(on("bridge", bridge.clone())),
            NicLink::Network(_) => Some(on("network", network_bridge?)),
            NicLink::Tap(tap) => {
                Some(Self { tap: tap.clone(), index: None, bridge: None, needs: ("tap", tap.clone()) })
            }
            NicLink::Macvtap(lower) => {
                Some(Self { tap: made, index: None, bridge: None, needs: ("macvtap", lower.clone()) })
            }
            NicLink::Switch(_) | NicLink::VhostUser(_) | NicLink::User(_) => None,
        }
    }

    /// Watches all that it is made of, and could be made of.
    pub fn watch(&self, monitor: &Monitor) -> Watch {
        monitor.watch([self.tap.clone(), self.needs.1.clone()], None)
    }

    /// Whether it is as it was made. `is_open`: the tap has an end here.
    ///
    /// # Errors
    /// It cannot be looked at.
    pub async fn look(&mut self, mtu: u16, is_open: bool, links: &Links) -> std::io::Result<Option<Amiss>> {
        let tap = &self.tap;
        let Some(link) = links.find(tap).await? else {
            return Ok(Some(Amiss::Tap(format!("the tap {tap} was removed"))));
        };
        // The one that is open here has its other end, whoever uses it. Where a dom0 before this one has opened it,
        // that is its backend's, whose own end says more.
        let is_dead = is_open && link.kind == Kind::Tun && !link.carrier;
        if *self.index.get_or_insert(link.index) != link.index || is_dead {
            return Ok(Some(Amiss::Tap(format!("the tap {tap} was removed, and is another one now"))));
        }
        let Some((_, bridge)) = &self.bridge else { return Ok(None) };
        let Link { bridge: port_of, up, mtu: has, .. } = link;
        let amiss = match links.find(bridge).await? {
            None => format!("the bridge {bridge} was removed"),
            Some(link) if port_of != Some(link.index) => format!("the tap {tap} was no port of {bridge}"),
            Some(_) if !up => format!("the tap {tap} was switched off"),
            Some(_) if has != u32::from(mtu) => format!("the tap {tap} had the MTU {has}"),
            Some(_) => return Ok(None),
        };
        Ok(Some(Amiss::Port(amiss)))
    }

    /// Makes the tap a port of its bridge again.
    ///
    /// # Errors
    /// [`DeviceError`]: there is no such bridge, among others.
    pub async fn join(&self, place: &Place<'_>, nic: &Nic, links: &Links) -> Result<(), DeviceError> {
        let (Some((key, bridge)), Some(index)) = (&self.bridge, self.index) else { return Ok(()) };
        let at = tap::check(place, key, bridge, links).await?;
        Ok(tap::join(place, (key, bridge, at), (&self.tap, index), nic, links).await?)
    }

    /// Refuses while what another tap is made of is not there.
    ///
    /// # Errors
    /// [`DeviceError`].
    pub async fn can_be_made(&self, place: &Place<'_>, links: &Links) -> Result<(), DeviceError> {
        let (key, name) = &self.needs;
        Ok(tap::check(place, key, name, links).await.map(drop)?)
    }
}
