//! dom0's requests to disks in service: set limits, resize, retry held requests, report statistics.
//!
//! Refused: a disk that is not here, a size that is no whole number of blocks, a size for what has one of its own.
//! Promised: an answer within seconds, whatever the storage does; when a smaller size is answered, nothing that was
//! begun before reaches beyond it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use domus_startup::{Events, Fds, time};
use shared_abi::control::{BackendEvent, BackendReply, BlockRequest, DiskStatistics, IoLimits};
use shared_abi::ids::DeviceId;
use vu_server::Port;

use crate::disk::Disk;
use crate::statistics::Counters;
use crate::storage::Storage;
use crate::threads::Prepared;
use crate::throttle::{self, Shared};
use crate::worker_command::{BlockCommand, Offer};

/// How long requests beyond a smaller size are waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a new connection to a server is waited for: longer than the handshake may take.
const SERVER_PATIENCE: Duration = Duration::from_secs(15);

/// A disk that is served.
pub struct Served {
    /// Its id.
    pub id: DeviceId,
    /// The disk.
    pub disk: Arc<Disk>,
    /// What is behind it; none if nothing is.
    pub storage: Option<Arc<dyn Storage>>,
    /// What its workers have counted.
    pub counters: Vec<Arc<Counters>>,
    /// The way to its workers.
    pub ports: Vec<Port<BlockCommand>>,
    /// It is at a server, to which it can be connected again.
    pub remote: bool,
}

impl Served {
    /// A disk that has been prepared, with what is behind it.
    pub fn new(id: DeviceId, prepared: &Prepared, storage: Option<Arc<dyn Storage>>, remote: bool) -> Self {
        let (disk, counters, ports) = prepared.parts();
        Self { id, disk, storage, counters, ports, remote }
    }

    fn tell(&self, order: impl Fn() -> BlockCommand) -> Result<(), String> {
        self.ports
            .iter()
            .try_for_each(|port| port.tell(order()))
            .map_err(|gone| format!("{}: {gone}", self.id))
    }

    fn limits_changed(&self) -> Result<(), String> {
        self.disk.gate().look();
        self.tell(|| BlockCommand::Limits)
    }

    fn statistics(&self) -> DiskStatistics {
        let mut sum = DiskStatistics {
            bytes: self.disk.bytes(),
            stalls: self.disk.faults().stalls(),
            ..DiskStatistics::default()
        };
        self.counters.iter().for_each(|counters| counters.add_to(&mut sum));
        let oldest = self.counters.iter().filter_map(|counters| counters.oldest()).min();
        sum.oldest_ms = oldest.map(|given| time::monotonic().saturating_sub(given) / 1_000_000);
        sum.last_error = self.disk.faults().last();
        sum
    }

    fn resize(&self, asked: Option<u64>) -> Result<u64, String> {
        let id = &self.id;
        let storage = self.storage.as_deref().ok_or_else(|| format!("disk {id} has no image to resize"))?;
        let shape = self.disk.shape();
        let bytes = match asked {
            Some(_) if shape.read_only => return Err(format!("disk {id} is read-only: its size stays")),
            Some(bytes) => bytes,
            None => storage.measure().map_err(|why| format!("disk {id}: {why}"))?,
        };
        let block = u64::from(shape.block_size);
        if bytes < block || (asked.is_some() && !bytes.is_multiple_of(block)) {
            return Err(format!("disk {id}: a size of {bytes} bytes, its blocks have {block}"));
        }
        let set_len = || match asked {
            Some(_) => storage.set_len(bytes).map_err(|why| format!("disk {id}: {why}")),
            None => Ok(()),
        };
        let old = self.disk.bytes();
        if bytes >= old {
            set_len()?;
            return Ok(self.disk.resize(bytes));
        }
        // First nothing more is begun beyond the new end, then what was begun ends, then the image becomes shorter: a
        // write that came later would make it longer again.
        let size = self.disk.resize(bytes);
        self.settle().and_then(|()| set_len()).inspect_err(|_| {
            self.disk.resize(old);
        })?;
        Ok(size)
    }

    /// Hands a connection to the disk, and waits whether it is of use.
    fn reconnect(&self, socket: OwnedFd) -> Result<(), String> {
        let Some(port) = self.ports.first().filter(|_| self.remote) else {
            return Err(format!("disk {} has no server to connect to", self.id));
        };
        let (answer, answered) = sync_channel(1);
        port.tell(BlockCommand::Offer(Offer { socket, answer }))
            .map_err(|gone| format!("{}: {gone}", self.id))?;
        let answer = answered
            .recv_timeout(SERVER_PATIENCE)
            .unwrap_or_else(|_| Err("no answer from its thread".into()));
        answer.map_err(|why| format!("disk {}: {why}", self.id))
    }

    /// Waits until nothing that was begun reaches beyond the end of the disk.
    fn settle(&self) -> Result<(), String> {
        let (sender, settled) = sync_channel(self.ports.len());
        self.tell(|| BlockCommand::Settle(sender.clone()))?;
        let end = Instant::now() + PATIENCE;
        for _ in &self.ports {
            settled.recv_timeout(end.saturating_duration_since(Instant::now())).map_err(|_| {
                format!(
                    "disk {}: requests beyond the new end are not done after {} s: try again later",
                    self.id,
                    PATIENCE.as_secs()
                )
            })?;
        }
        Ok(())
    }
}

/// What the loss of a disk's server is said about.
pub fn server_of(device: &DeviceId) -> String {
    format!("the server of {device}")
}

/// The disks of one domain.
pub struct Disks {
    served: Vec<Served>,
    /// What they may do together.
    domain: Shared,
    events: Events,
}

impl Disks {
    /// These disks, whose gates know the limits of the domain.
    pub fn new(served: Vec<Served>, domain: Shared, events: Events) -> Self {
        Self { served, domain, events }
    }

    fn find(&self, id: &DeviceId) -> Result<&Served, String> {
        self.served
            .iter()
            .find(|served| served.id == *id)
            .ok_or_else(|| format!("there is no disk {id} here"))
    }

    /// Does what dom0 asks.
    ///
    /// # Errors
    /// One line for the operator.
    pub fn handle(&self, request: BlockRequest, mut fds: Fds) -> Result<BackendReply, String> {
        match request {
            BlockRequest::Start(_) => Err("the disks of this process are being served already".into()),
            BlockRequest::Limit { disk, limits } => self.limit(disk.as_ref(), limits),
            BlockRequest::Resize { disk, bytes } => self.find(&disk)?.resize(bytes).map(BackendReply::Size),
            BlockRequest::Retry => {
                for served in &self.served {
                    served.disk.faults().again();
                    served.tell(|| BlockCommand::Again)?;
                }
                Ok(BackendReply::Done)
            }
            BlockRequest::Statistics(disk) => {
                let mut statistics = self.find(&disk)?.statistics();
                if self.events.version() < Some(3) {
                    (statistics.oldest_ms, statistics.last_error) = (None, None);
                }
                Ok(BackendReply::Disk(Box::new(statistics)))
            }
            BlockRequest::Reconnect { disk, socket } => {
                let socket = fds.take(socket).map_err(|error| error.to_string())?;
                let served = self.find(&disk)?;
                // Before the new connection can be lost.
                self.events.over(&server_of(&disk));
                served.reconnect(socket).map(|()| BackendReply::Done).inspect_err(|why| {
                    if served.remote {
                        let (device, why) = (disk.clone(), why.clone());
                        self.events.stand(&server_of(&disk), &BackendEvent::ConnectionLost { device, why });
                    }
                })
            }
        }
    }

    fn limit(&self, disk: Option<&DeviceId>, limits: IoLimits) -> Result<BackendReply, String> {
        match disk {
            Some(id) => {
                let served = self.find(id)?;
                served.disk.gate().set(limits);
                served.limits_changed()?;
            }
            None => {
                throttle::change(&self.domain, limits);
                self.served.iter().try_for_each(Served::limits_changed)?;
            }
        }
        Ok(BackendReply::Done)
    }
}
