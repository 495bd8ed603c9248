//! What an operator asks of a running domain's NICs.

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use shared_abi::control::{BackendReply, NetRequest, NicLimits, NicRequest, NicStatistics, RunnerRequest};
use shared_abi::{DeviceId, MacAddress, Role};

use crate::device::net::config::{Net, NetLink};
use crate::domain::Domain;
use crate::domain::events::Kind;
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

impl Domain {
    /// Reports on every NIC.
    pub async fn nics(&mut self) -> Vec<NicReport> {
        let config = self.config.clone();
        let mut reports = Vec::new();
        for net in &config.nets {
            let statistics = match self.ask_nic(net, NicRequest::Statistics).await {
                Ok(BackendReply::Nic(statistics)) => Some(*statistics),
                _ => None,
            };
            let kept = self.incarnation.kept.as_ref();
            let settings = kept.and_then(|kept| kept.nets.borrow().settings(&net.id));
            let (limits, up) = settings.unwrap_or((net.limits, net.up));
            let own = self.incarnation.backends.iter().find(|one| one.role == Role::Net && net.is_own());
            reports.push(NicReport {
                id: net.id.clone(),
                kind: net.link.key(),
                wire: wire(&net.link),
                mac: net.mac,
                mtu: net.mtu,
                pairs: kept.and_then(|kept| kept.nets.borrow().pairs(&net.id)).unwrap_or(net.pairs),
                up,
                backend: own.map(|backend| backend.process.pid().as_raw()),
                state: if self.is_waiting(&net.id) { "waiting" } else { "serving" },
                limits,
                statistics,
            });
        }
        reports
    }

    /// Asks whoever serves a NIC.
    async fn ask_nic(&mut self, net: &Net, request: NicRequest) -> Result<BackendReply, String> {
        match &net.link {
            NetLink::VhostUser(_) => {
                let nic = &net.id;
                Err(format!("NIC {nic} is served by a backend that Domus did not start: ask that one"))
            }
            NetLink::Switch(switch) => {
                let port = (self.config.name.clone(), net.id.clone());
                self.commons.providers.switches.nic(switch, port, request).await
            }
            _ => {
                let request = NetRequest::Nic { nic: net.id.clone(), request };
                self.ask_net(&request, Outgoing::default()).await
            }
        }
    }

    /// Changes something of a NIC.
    ///
    /// # Errors
    /// One line.
    pub async fn set_nic(&mut self, nic: &DeviceId, change: NicChange) -> Result<(), String> {
        let config = self.config.clone();
        let net = config.nets.iter().find(|net| net.id == *nic).ok_or_else(|| {
            let nics = config.nets.iter().map(|net| net.id.as_str()).collect::<Vec<_>>();
            format!("there is no NIC \"{nic}\": the domain has {}", nics.join(", "))
        })?;
        let kept = self.incarnation.kept.clone().ok_or("the domain is not running")?;
        let (old, _) = kept.nets.borrow().settings(nic).ok_or("the domain is not running")?;
        let limits = change.limits.over(old);
        if limits != old {
            self.ask_nic(net, NicRequest::Limit(limits)).await?;
            kept.nets.borrow_mut().keep_limits(nic, limits);
        }
        if let Some(up) = change.up {
            self.ask_nic(net, NicRequest::Link { up }).await?;
            kept.nets.borrow_mut().keep_link(nic, up);
            self.happened(if up { Kind::LinkUp } else { Kind::LinkDown }, Some(nic.as_str()));
        }
        if change.announce {
            self.ask_nic(net, NicRequest::Announce).await?;
        }
        if change.up.is_some() || change.announce {
            let told = self.request(&RunnerRequest::ReadConfig(nic.clone()), "told the guest").await;
            told.map_err(|error| format!("it is done, and the guest is not told: {}", chain(&error)))?;
        }
        Ok(())
    }
}

fn wire(link: &NetLink) -> String {
    match link {
        NetLink::Bridge(name) | NetLink::Tap(name) | NetLink::Macvtap(name) => name.clone(),
        NetLink::Network(name) => name.to_string(),
        NetLink::Switch(name) => name.to_string(),
        NetLink::VhostUser(path) => path.display().to_string(),
        NetLink::User(forwards) => forwards.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}
