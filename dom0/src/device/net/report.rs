//! What there is to say of a NIC, and what can be changed of it.

use shared_abi::control::{NicLimits, NicStatistics};
use shared_abi::{DeviceId, MacAddress};

use crate::device::net::config::NicLink;
use crate::device::net::nic::OpenNic;
use crate::value::rate::NicLimitsFile;

/// What there is to say of a NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NicReport {
    /// Its id.
    pub id: DeviceId,
    /// What is at the other end of its cable: the key of its config.
    pub kind: &'static str,
    /// The bridge, tap, interface, network, switch or socket, or the ports that lead to the guest.
    pub wire: String,
    /// Its address.
    pub mac: MacAddress,
    /// Its MTU.
    pub mtu: u16,
    /// Number of queue pairs.
    pub pairs: u16,
    /// The cable is plugged in.
    pub up: bool,
    /// The process that serves it, if it is the domain's own and there.
    pub backend: Option<i32>,
    /// `serving` or `waiting`.
    pub state: &'static str,
    /// What it may carry.
    pub limits: NicLimits,
    /// What it has done since its backend started, if it is one of Domus' and there.
    pub statistics: Option<NicStatistics>,
}

impl NicReport {
    /// Of a NIC that is served; whoever knows its process adds that.
    pub(super) fn of(open: &OpenNic) -> Self {
        Self {
            id: open.nic.id.clone(),
            kind: open.nic.link.key(),
            wire: wire(&open.nic.link),
            mac: open.nic.mac,
            mtu: open.nic.mtu,
            pairs: open.pairs,
            up: open.up,
            backend: None,
            state: "serving",
            limits: open.limits,
            statistics: None,
        }
    }
}

/// What is to change of a NIC.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NicChange {
    /// Plug its cable in, or pull it.
    pub up: Option<bool>,
    /// Have the guest announce itself.
    pub announce: bool,
    /// Limits.
    pub limits: NicLimitsFile,
}

fn wire(link: &NicLink) -> String {
    match link {
        NicLink::Bridge(name) | NicLink::Tap(name) | NicLink::Macvtap(name) => name.clone(),
        NicLink::Network(name) => name.to_string(),
        NicLink::Switch(name) => name.to_string(),
        NicLink::VhostUser(path) => path.display().to_string(),
        NicLink::User(forwards) => forwards.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}
