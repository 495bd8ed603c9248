//! What an operator asks of a running machine's NICs.

use shared_abi::control::{BackendReply, NetRequest, NicRequest};
use shared_abi::{DeviceId, NetworkName, Role};
use tokio::time::timeout;

use crate::device::Backend;
use crate::device::net::config::NicLink;
use crate::device::net::report::{NicChange, NicReport};
use crate::domain::events::Kind;
use crate::domain::machine::{Machine, Notice};
use crate::process::link::QUESTION;

impl Machine {
    /// The managed networks that its NICs are on.
    pub fn networks(&self) -> Vec<NetworkName> {
        self.devices.nics.networks()
    }

    /// Reports on every NIC.
    pub async fn nics(&mut self) -> Vec<NicReport> {
        let mut reports = self.devices.nics.reports();
        for report in &mut reports {
            if let Some(BackendReply::Nic(statistics)) = self.nic_question(&report.id).await {
                report.statistics = Some(*statistics);
            }
            if self.devices.nics.serves(&report.id) {
                report.backend = self.backend(Role::Net).map(|backend| backend.process.pid().as_raw());
            }
            if self.is_waiting(&report.id) {
                report.state = "waiting";
            }
        }
        reports
    }

    /// What whoever serves a NIC has counted, if it says so soon.
    async fn nic_question(&mut self, nic: &DeviceId) -> Option<BackendReply> {
        let request = NicRequest::Statistics;
        if !self.devices.nics.serves(nic) {
            return timeout(QUESTION, self.ask_nic(nic, request)).await.ok()?.ok();
        }
        self.question(Role::Net, &NetRequest::Nic { nic: nic.clone(), request }).await
    }

    /// Asks whoever serves a NIC.
    async fn ask_nic(&mut self, nic: &DeviceId, request: NicRequest) -> Result<BackendReply, String> {
        match self.devices.nics.link(nic)? {
            NicLink::VhostUser(_) => {
                Err(format!("NIC {nic} is served by a backend that Domus did not start: ask that one"))
            }
            NicLink::Switch(switch) => {
                let port = (self.owner.name.clone(), nic.clone());
                self.from.switches.nic(&switch, port, request).await
            }
            _ => {
                let request = NetRequest::Nic { nic: nic.clone(), request };
                self.ask_backend(Role::Net, &request).await
            }
        }
    }

    /// Changes something of a NIC.
    ///
    /// # Errors
    /// One line.
    pub async fn set_nic(&mut self, nic: &DeviceId, change: NicChange) -> Result<(), String> {
        self.devices.nics.link(nic)?;
        let old = self.devices.nics.limits(nic).filter(|_| self.runner.is_some());
        let old = old.ok_or("the domain is not running")?;
        let limits = change.limits.over(old);
        if limits != old {
            self.ask_nic(nic, NicRequest::Limit(limits)).await?;
            self.devices.nics.keep_limits(nic, limits);
        }
        if let Some(up) = change.up {
            self.ask_nic(nic, NicRequest::Link { up }).await?;
            self.devices.nics.keep_link(nic, up);
            let kind = if up { Kind::LinkUp } else { Kind::LinkDown };
            self.notices.push(Notice::Event(kind, nic.to_string()));
        }
        if change.announce {
            self.ask_nic(nic, NicRequest::Announce).await?;
        }
        if change.up.is_some() || change.announce {
            let told = self.tell_guest(nic.clone()).await;
            told.map_err(|error| format!("it is done, and the guest is not told: {error}"))?;
        }
        Ok(())
    }
}
