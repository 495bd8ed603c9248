//! dom0's requests to NICs in service: the cable, limits, an announcement, statistics, a new connection.

use std::sync::Arc;

use domus_startup::{Events, Fds};
use shared_abi::DeviceId;
use shared_abi::control::{BackendReply, NetRequest, NicRequest};

use crate::nic::Nic;

/// The NICs of one domain.
pub struct Nics {
    served: Vec<(DeviceId, Arc<Nic>)>,
    events: Events,
}

impl Nics {
    /// These NICs, whose lost streams are told as `events`.
    pub fn new(served: Vec<(DeviceId, Arc<Nic>)>, events: Events) -> Self {
        Self { served, events }
    }

    fn find(&self, id: &DeviceId) -> Result<&Nic, String> {
        let found = self.served.iter().find(|(nic, _)| nic == id);
        found.map(|(_, nic)| &**nic).ok_or_else(|| format!("there is no NIC {id} here"))
    }

    /// Does what dom0 asks.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn handle(&self, request: NetRequest, mut fds: Fds) -> Result<BackendReply, String> {
        let done = match request {
            NetRequest::Start(_) => Err("the NICs of this process are being served already".into()),
            NetRequest::Nic { nic, request } => {
                let nic = self.find(&nic)?;
                match request {
                    NicRequest::Link { up } => nic.set_link(up),
                    NicRequest::Announce => nic.announce(),
                    NicRequest::Limit(limits) => nic.limit(&limits),
                    NicRequest::Statistics => return Ok(BackendReply::Nic(Box::new(nic.statistics()))),
                }
            }
            NetRequest::Reconnect { nic, socket } => {
                let socket = fds.take(socket).map_err(|error| error.to_string())?;
                // Before the new one can be lost.
                self.events.over(&stream_of(&nic));
                self.find(&nic)?.connect(socket)
            }
        };
        done.map(|()| BackendReply::Done)
    }
}

/// What the loss of a NIC's stream is said about.
pub fn stream_of(nic: &DeviceId) -> String {
    format!("the stream of {nic}")
}
