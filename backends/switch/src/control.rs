//! The requests of dom0 to a switch: plug and unplug ports, and ask and set what a NIC has.
//!
//! Refused: a port beyond [`MAX_PORTS`](crate::MAX_PORTS), a MAC address that another port has, more than one queue
//! pair. Promised: after a port is unplugged, the memory of its guest is not mapped any more; a port that is plugged
//! again inherits nothing from the one before.

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Duration;

use domus_startup::{Events, Fds};
use shared_abi::control::{BackendReply, NetCard, NicRequest, SwitchEvent, SwitchRequest};
use shared_abi::ids::{DeviceId, DomainName};
use vu_server::{Port, Server, Signals};

use crate::connection::{Connection, Connections};
use crate::forward::SwitchCommand;
use crate::nic::{Nic, PortCommand, Shared};

/// How long the data thread may take to answer: far more than one turn.
const PATIENCE: Duration = Duration::from_secs(5);

/// Whose NIC a port is.
type Owner = (DomainName, DeviceId);

/// A port that is plugged in.
struct Plugged {
    owner: Owner,
    shared: Arc<Shared>,
    connection: Connection,
    commands: Port<PortCommand>,
}

/// The ports of a switch, as dom0 knows them.
pub struct Switch {
    data: Port<SwitchCommand>,
    connections: Vec<Connections>,
    /// One for each of `connections`.
    ports: Vec<Option<Plugged>>,
    signals: Signals,
    events: Events,
}

impl Switch {
    /// A switch without ports, whose data thread is behind `data`, and which can have as many ports as `connections`.
    pub fn new(
        data: Port<SwitchCommand>,
        connections: Vec<Connections>,
        signals: Signals,
        events: Events,
    ) -> Self {
        let ports = connections.iter().map(|_| None).collect();
        Self { data, connections, ports, signals, events }
    }

    /// Does what dom0 asks.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn handle(&mut self, request: SwitchRequest, mut fds: Fds) -> Result<BackendReply, String> {
        let reply = match request {
            SwitchRequest::Start(_) => return Err("the switch is started already".into()),
            SwitchRequest::Ping => BackendReply::Done,
            SwitchRequest::Plug { domain, card } => self.plug((domain, card.id.clone()), &card, &mut fds)?,
            SwitchRequest::Unplug { domain, nic } => self.unplug(&(domain, nic))?,
            SwitchRequest::Nic { domain, nic, request } => self.nic(&(domain, nic), request)?,
        };
        fds.finish().map_err(|error| error.to_string())?;
        Ok(reply)
    }

    fn slot(&self, owner: &Owner) -> Option<usize> {
        self.ports.iter().position(|port| port.as_ref().is_some_and(|port| port.owner == *owner))
    }

    fn plug(&mut self, owner: Owner, card: &NetCard, fds: &mut Fds) -> Result<BackendReply, String> {
        let name = format!("{} {}", owner.0, owner.1);
        let stream = fds.take(card.socket).map(UnixStream::from).map_err(|error| error.to_string())?;
        // There is nothing that a driver could set and that would have to outlive this process.
        fds.take(card.state).map_err(|error| error.to_string())?;
        if card.pairs != 1 {
            return Err(format!("{name}: {} queue pairs, a NIC on a switch has one", card.pairs));
        }
        self.unplug(&owner)?;
        if let Some(other) = self.ports.iter().flatten().find(|port| port.shared.mac == card.mac) {
            return Err(format!("{name}: {} has the MAC address {} already", other.shared.name, card.mac));
        }
        let Some((slot, connections)) =
            self.connections.iter().enumerate().find(|(slot, _)| self.ports[*slot].is_none())
        else {
            return Err(format!("{name}: all {} ports of this switch are in use", self.ports.len()));
        };
        let refused = |error: &dyn std::fmt::Display| format!("{name}: {error}");
        let shared = Arc::new(Shared::new(name.clone(), card));
        let (port, commands) = vu_server::worker::commands().map_err(|error| refused(&error))?;
        let add = SwitchCommand::Add { slot, shared: shared.clone(), commands };
        self.data.tell(add).map_err(|gone| refused(&gone))?;
        let nic = Nic { shared: shared.clone(), signals: self.signals.clone() };
        let server = Server::new(&name, nic, vec![port.clone(), port.clone()]);
        let failed = {
            let (events, (domain, nic)) = (self.events.clone(), owner.clone());
            move |why: String| {
                vu_server::say::limited(format_args!("domus-switch: {domain} {nic}: {why}"));
                events.send(&SwitchEvent::PortFailed { domain, nic, why });
            }
        };
        match connections.serve(server, stream, failed) {
            Ok(connection) => {
                self.ports[slot] = Some(Plugged { owner, shared, connection, commands: port });
                Ok(BackendReply::Done)
            }
            Err(error) => {
                self.remove(slot)?;
                Err(refused(&error))
            }
        }
    }

    fn unplug(&mut self, owner: &Owner) -> Result<BackendReply, String> {
        if let Some(slot) = self.slot(owner)
            && let Some(port) = &self.ports[slot]
        {
            port.connection.end().map_err(|why| format!("{}: {why}", port.shared.name))?;
            self.remove(slot)?;
            self.ports[slot] = None;
        }
        Ok(BackendReply::Done)
    }

    /// Has the data thread forget a port, none of whose rings runs.
    fn remove(&self, slot: usize) -> Result<(), String> {
        let (done, removed) = sync_channel(1);
        self.data.tell(SwitchCommand::Remove { slot, done }).map_err(|gone| gone.to_string())?;
        removed.recv_timeout(PATIENCE).map_err(|_| "the data thread does not answer".into())
    }

    fn nic(&self, owner: &Owner, request: NicRequest) -> Result<BackendReply, String> {
        let port = self.slot(owner).and_then(|slot| self.ports[slot].as_ref());
        let port = port.ok_or_else(|| format!("{} {} is not plugged into this switch", owner.0, owner.1))?;
        match request {
            NicRequest::Statistics => return Ok(BackendReply::Nic(Box::new(port.shared.statistics()))),
            NicRequest::Announce => {
                return Err(format!(
                    "{}: a NIC on a switch has no control queue, so its guest cannot be asked to announce itself",
                    port.shared.name
                ));
            }
            NicRequest::Link { up } => port.shared.set_link(up),
            NicRequest::Limit(limits) => {
                port.shared.receive.gate.set(limits.receive);
                port.shared.transmit.gate.set(limits.transmit);
            }
        }
        let (done, looked) = sync_channel(1);
        // A port whose frontend has gone has no commands any more, and no frames either.
        if port.commands.tell(PortCommand::Look(done)).is_ok() {
            looked.recv_timeout(PATIENCE).or_else(|error| match error {
                std::sync::mpsc::RecvTimeoutError::Disconnected => Ok(()),
                std::sync::mpsc::RecvTimeoutError::Timeout => {
                    Err(format!("{}: the data thread does not answer", port.shared.name))
                }
            })?;
        }
        Ok(BackendReply::Done)
    }
}
