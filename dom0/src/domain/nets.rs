//! The NICs of a domain: what dom0 keeps open of them, and what it tells their backend, as often as one is started.
//!
//! What a driver has set is in a file that belongs to the incarnation and goes to every backend in turn; limits and
//! cables that an operator has changed are kept here.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::task::{Context, Poll};

use domus_startup::fds::Outgoing;
use shared_abi::control::{Identity, NetCard, NetNic, NetRequest, NetStart, NetWire, NicLimits};
use shared_abi::{DeviceId, DomId, DomainName, SwitchName};
use tokio::time::timeout;

use super::backend::{Message, Start};
use super::build::StartError;
use super::kept::Kept;
use super::record::{NicRecord, Record};
use crate::commons::Commons;
use crate::config::{ConfigError, DomainConfig, Net, NetLink};
use crate::networks::Networks;
use crate::resources::links::Links;
use crate::resources::passt::{self, PASST_START, PasstError};
use crate::resources::record::Known;
use crate::resources::run_dir::DomainDir;
use crate::resources::{sockets, steering, tap};
use crate::supervisor::Process;
use crate::switches::Switches;

/// What is open of a domain's NICs, and what has been changed since.
#[derive(Debug, Default)]
pub struct Nets {
    nics: Vec<OpenNic>,
    /// What the interfaces that must be removed begin with.
    macvtaps: Option<String>,
    /// What is plugged in somewhere.
    plugs: Vec<Plug>,
}

/// One of them.
#[derive(Debug)]
struct OpenNic {
    id: DeviceId,
    wire: OpenWire,
    pairs: u16,
    /// What its driver has set.
    state: File,
    limits: NicLimits,
    up: bool,
}

#[derive(Debug)]
enum OpenWire {
    /// A tap or macvtap.
    Tap {
        /// Its queues.
        queues: Vec<File>,
        /// The table by which it chooses among them.
        steering: Option<OwnedFd>,
    },
    /// passt, and dom0's end of its cable until a backend gets that.
    User { passt: Option<Process>, socket: Option<OwnedFd> },
    /// Another process has what there is.
    Elsewhere,
}

impl OpenWire {
    /// Opens the wire of NIC `n`, whose interface has that in its name.
    async fn open(
        config: &DomainConfig,
        domid: DomId,
        n: usize,
        net: &Net,
        commons: &Commons,
        links: &Links,
    ) -> Result<Self, StartError> {
        Ok(match &net.link {
            NetLink::Bridge(bridge) => {
                Self::tap(tap::on_bridge(config, domid, n, net, ("bridge", bridge), links).await?)
            }
            NetLink::Tap(name) => Self::tap(tap::existing(config, n, net, name, links).await?),
            NetLink::Macvtap(lower) => Self::tap(tap::macvtap(config, domid, n, net, lower, links).await?),
            NetLink::User(forwards) => {
                let refuse = |error: PasstError| {
                    ConfigError::new(&config.file, format!("nets[{n}].user"), super::chain(&error))
                };
                let started = passt::start(&*commons.supervisor, &config.unit, &net.id, net.mtu, forwards);
                let (passt, socket) = started.await.map_err(refuse)?;
                // Without ports nothing is likely to be in its way, and nobody is made to wait.
                if !forwards.is_empty()
                    && let Ok(how) = timeout(PASST_START, passt.ended()).await
                {
                    return Err(refuse(PasstError::Ended(how)).into());
                }
                Self::User { passt: Some(passt), socket: Some(socket) }
            }
            NetLink::Network(name) => {
                let bridge = commons.networks.bridge(name).await.map_err(|error| {
                    ConfigError::new(&config.file, format!("nets[{n}].network"), super::chain(&error))
                })?;
                let bridge = ("network", bridge.as_str());
                Self::tap(tap::on_bridge(config, domid, n, net, bridge, links).await?)
            }
            NetLink::Switch(_) | NetLink::VhostUser(_) => Self::Elsewhere,
        })
    }

    /// Number of queue pairs.
    fn pairs(&self) -> u16 {
        match self {
            Self::Tap { queues, .. } => queues.len() as u16,
            Self::User { .. } | Self::Elsewhere => 1,
        }
    }

    /// A tap that is not open here.
    fn is_absent(&self) -> bool {
        matches!(self, Self::Tap { queues, .. } if queues.is_empty())
    }

    fn tap(queues: Vec<File>) -> Self {
        // A macvtap takes no program, and a dom0 without privileges may not load one: the kernel chooses by itself then.
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
    config: &DomainConfig,
    n: usize,
    net: &Net,
    links: &Links,
    networks: &Networks,
) -> Result<(), ConfigError> {
    let key = net.link.key();
    let refuse = |problem: String| ConfigError::new(&config.file, format!("nets[{n}].{key}"), problem);
    match &net.link {
        NetLink::Bridge(name) | NetLink::Tap(name) | NetLink::Macvtap(name) => {
            tap::check(config, n, key, name, links).await.map(drop)
        }
        NetLink::User(_) => passt::check().map_err(|error| refuse(error.to_string())),
        NetLink::VhostUser(path) => {
            sockets::foreign(config, &format!("nets[{n}].{key}"), path, false).map(drop)
        }
        NetLink::Network(name) => networks.check(name).await.map_err(|error| refuse(super::chain(&error))),
        // It is started with its first port.
        NetLink::Switch(_) => Ok(()),
    }
}

/// Plugs a NIC into its switch, with a new socket, whose other end the runner is to have.
///
/// # Errors
/// One line.
pub async fn plug(
    config: &DomainConfig,
    net: &Net,
    switch: &SwitchName,
    kept: &Kept,
    commons: &Commons,
) -> Result<OwnedFd, String> {
    let mut fds = Outgoing::default();
    let card = kept.nets.borrow().card(net, &mut fds);
    let (card, socket) = card.map_err(|error| format!("cannot make what a switch is given: {error}"))?;
    let port = (config.name.clone(), net.id.clone());
    kept.nets.borrow_mut().plugged(commons.switches.clone(), switch.clone(), port.clone());
    commons.switches.plug(switch, port, card, fds).await?;
    Ok(socket)
}

/// A NIC at a switch, to be taken out.
struct Plug {
    switches: Rc<Switches>,
    switch: SwitchName,
    port: (DomainName, DeviceId),
}

impl fmt::Debug for Plug {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}", self.port.1, self.switch)
    }
}

impl Nets {
    /// Opens what the NICs of a config need. What was made is in `made` whatever comes of it.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn open(
        config: &DomainConfig,
        domid: DomId,
        dir: &DomainDir,
        commons: &Commons,
        links: &Links,
        made: &mut Self,
    ) -> Result<(), StartError> {
        for (n, net) in config.nets.iter().enumerate() {
            if matches!(net.link, NetLink::Macvtap(_)) {
                made.macvtaps = Some(format!("vif{domid}."));
            }
            let wire = OpenWire::open(config, domid, n, net, commons, links).await?;
            let pairs = wire.pairs();
            let state =
                dir.nic_state(n).map_err(|source| StartError::Io { act: "make a NIC's memory", source })?;
            let id = net.id.clone();
            made.nics.push(OpenNic { id, wire, pairs, state, limits: net.limits, up: net.up });
        }
        Ok(())
    }

    /// Those of a domain that a dom0 before this one had. No tap of them is open here; a passt that is not given here is
    /// gone.
    ///
    /// # Errors
    /// The memory of a NIC cannot be opened.
    pub fn taken_over(
        config: &DomainConfig,
        record: &Record,
        dir: &DomainDir,
        commons: &Commons,
        mut passts: Vec<(DeviceId, Process)>,
    ) -> io::Result<Self> {
        let mut taken = Self::default();
        for (n, net) in config.nets.iter().enumerate() {
            let Some(known) = record.nics.iter().find(|nic| nic.id == net.id) else { continue };
            let wire = match &net.link {
                NetLink::Bridge(_) | NetLink::Tap(_) | NetLink::Macvtap(_) | NetLink::Network(_) => {
                    OpenWire::Tap { queues: Vec::new(), steering: None }
                }
                NetLink::User(_) => {
                    let passt = passts.iter().position(|(nic, _)| *nic == net.id);
                    OpenWire::User { passt: passt.map(|at| passts.swap_remove(at).1), socket: None }
                }
                NetLink::VhostUser(_) => OpenWire::Elsewhere,
                NetLink::Switch(switch) => {
                    let port = (config.name.clone(), net.id.clone());
                    taken.plugged(commons.switches.clone(), switch.clone(), port);
                    OpenWire::Elsewhere
                }
            };
            if matches!(net.link, NetLink::Macvtap(_)) {
                taken.macvtaps = Some(format!("vif{}.", record.domid));
            }
            taken.nics.push(OpenNic {
                id: net.id.clone(),
                wire,
                pairs: known.pairs,
                state: dir.nic_state(n)?,
                limits: known.limits,
                up: known.up,
            });
        }
        Ok(taken)
    }

    /// What a dom0 that comes later must know of them: each NIC, and the process of each passt.
    pub fn records(&self) -> (Vec<NicRecord>, Vec<(DeviceId, Known)>) {
        let nics = self.nics.iter().map(|nic| NicRecord {
            id: nic.id.clone(),
            pairs: nic.pairs,
            limits: nic.limits,
            up: nic.up,
        });
        let passts = self.nics.iter().filter_map(|nic| match &nic.wire {
            OpenWire::User { passt: Some(passt), .. } => Some((nic.id.clone(), Known::of(passt.pid())?)),
            _ => None,
        });
        (nics.collect(), passts.collect())
    }

    /// NICs whose passt is not there.
    pub fn without_passt(&self) -> Vec<DeviceId> {
        let without = self.nics.iter().filter(|nic| matches!(nic.wire, OpenWire::User { passt: None, .. }));
        without.map(|nic| nic.id.clone()).collect()
    }

    /// True if a tap of them is not open here.
    pub fn are_absent(&self) -> bool {
        self.nics.iter().any(|nic| nic.wire.is_absent())
    }

    fn find(&mut self, nic: &DeviceId) -> Option<&mut OpenNic> {
        self.nics.iter_mut().find(|open| open.id == *nic)
    }

    /// Number of queue pairs that a NIC has.
    pub fn pairs(&self, nic: &DeviceId) -> Option<u16> {
        self.nics.iter().find(|open| open.id == *nic).map(|open| open.pairs)
    }

    /// A NIC's limits, and whether its cable is plugged in.
    pub fn settings(&self, nic: &DeviceId) -> Option<(NicLimits, bool)> {
        self.nics.iter().find(|open| open.id == *nic).map(|open| (open.limits, open.up))
    }

    /// Keeps a NIC's new limits for the backends to come.
    pub fn keep_limits(&mut self, nic: &DeviceId, limits: NicLimits) {
        if let Some(open) = self.find(nic) {
            open.limits = limits;
        }
    }

    /// Keeps whether a NIC's cable is plugged in.
    pub fn keep_link(&mut self, nic: &DeviceId, up: bool) {
        if let Some(open) = self.find(nic) {
            open.up = up;
        }
    }

    /// The passt of a NIC, to be ended, whose socket is of no use any more.
    pub fn take_passt(&mut self, nic: &DeviceId) -> Option<Process> {
        match &mut self.find(nic)?.wire {
            OpenWire::User { passt, socket } => {
                *socket = None;
                passt.take()
            }
            OpenWire::Tap { .. } | OpenWire::Elsewhere => None,
        }
    }

    /// Ready when the passt of a NIC has ended.
    pub fn poll_passts(&self, cx: &mut Context<'_>) -> Poll<DeviceId> {
        for nic in &self.nics {
            if let OpenWire::User { passt: Some(passt), .. } = &nic.wire
                && passt.poll_ended(cx).is_ready()
            {
                return Poll::Ready(nic.id.clone());
            }
        }
        Poll::Pending
    }

    /// Keeps a NIC's new passt, and the socket for the next backend, if that does not have it yet.
    pub fn keep_passt(&mut self, nic: &DeviceId, process: Process, connection: Option<OwnedFd>) {
        if let Some(OpenNic { wire: OpenWire::User { passt, socket }, .. }) = self.find(nic) {
            (*passt, *socket) = (Some(process), connection);
        }
    }

    /// NICs on passt whose socket has gone to a backend, which has ended now.
    pub fn unconnected(&self) -> Vec<DeviceId> {
        let without = self.nics.iter().filter(|nic| matches!(nic.wire, OpenWire::User { socket: None, .. }));
        without.map(|nic| nic.id.clone()).collect()
    }

    fn plugged(&mut self, switches: Rc<Switches>, switch: SwitchName, port: (DomainName, DeviceId)) {
        if !self.plugs.iter().any(|plug| plug.port == port) {
            self.plugs.push(Plug { switches, switch, port });
        }
    }

    /// Lets go of the taps and ends what was started; what is plugged in is taken out, and the macvtaps are removed.
    pub async fn close(&mut self) {
        for Plug { switches, switch, port } in self.plugs.drain(..) {
            switches.unplug(&switch, port).await;
        }
        let processes: Vec<_> = self
            .nics
            .drain(..)
            .filter_map(|nic| match nic.wire {
                OpenWire::User { passt, .. } => passt,
                OpenWire::Tap { .. } | OpenWire::Elsewhere => None,
            })
            .collect();
        end(processes).await;
        if let (Some(prefix), Ok(links)) = (self.macvtaps.take(), Links::open()) {
            tap::remove_macvtaps(&prefix, &links).await;
        }
    }

    /// Lets go of everything as it is: another dom0 may take it over.
    pub fn leave(&mut self) {
        self.plugs.clear();
        self.macvtaps = None;
        for nic in self.nics.drain(..) {
            if let OpenWire::User { passt: Some(passt), .. } = nic.wire {
                passt.leave();
            }
        }
    }

    /// The start message of their backend.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn start(&mut self, config: &DomainConfig, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (mut nics, mut sockets) = (Vec::new(), Vec::new());
        for (net, open) in config.nets.iter().zip(&mut self.nics) {
            let wire = match &mut open.wire {
                OpenWire::Tap { queues, steering } => {
                    let queues = queues.iter().map(|tap| tap.try_clone().map(|tap| fds.add(tap)));
                    let queues = queues.collect::<io::Result<_>>()?;
                    let steering = steering.as_ref().map(|table| table.try_clone()).transpose()?;
                    NetWire::Tap { queues, steering: steering.map(|table| fds.add(table)) }
                }
                OpenWire::User { socket, .. } => {
                    NetWire::Stream { socket: socket.take().map(|socket| fds.add(socket)) }
                }
                OpenWire::Elsewhere => continue,
            };
            let (card, socket) = open.card(net, &mut fds)?;
            sockets.push((net.id.clone(), socket));
            nics.push(NetNic { card, wire });
        }
        let message = Message::Net(NetRequest::Start(NetStart { identity: identity.clone(), nics }));
        Ok(Start { message, fds: fds.into_vec(), sockets, lifeline: None, marks: None })
    }

    /// What a switch is told of a NIC, and the runner's end of its socket.
    ///
    /// # Errors
    /// No descriptors left; `NotFound` for a NIC that is not here.
    pub fn card(&self, net: &Net, fds: &mut Outgoing) -> io::Result<(NetCard, OwnedFd)> {
        let open = self.nics.iter().find(|open| open.id == net.id).ok_or(io::ErrorKind::NotFound)?;
        open.card(net, fds)
    }
}

/// Opens the taps that a dom0 before this one had open, now that its backend is gone and they with it.
///
/// # Errors
/// [`StartError`]; also if one has another number of queues now.
pub async fn open_absent(
    config: &DomainConfig,
    domid: DomId,
    kept: &Kept,
    commons: &Commons,
) -> Result<(), StartError> {
    if !kept.nets.borrow().are_absent() {
        return Ok(());
    }
    let links = Links::open().map_err(|source| StartError::Io { act: "open rtnetlink", source })?;
    for (n, net) in config.nets.iter().enumerate() {
        let absent = |nic: &&OpenNic| nic.id == net.id && nic.wire.is_absent();
        let Some(pairs) = kept.nets.borrow().nics.iter().find(absent).map(|nic| nic.pairs) else { continue };
        if matches!(net.link, NetLink::Macvtap(_)) {
            // It stays when nobody has it open. A new one has the same address.
            tap::remove_macvtaps(&tap::vif(domid, n), &links).await;
        }
        // As many as it had, whatever the config leaves open.
        let net = Net { pairs, pairs_given: true, ..net.clone() };
        let wire = OpenWire::open(config, domid, n, &net, commons, &links).await?;
        if let Some(nic) = kept.nets.borrow_mut().find(&net.id) {
            nic.wire = wire;
        }
    }
    Ok(())
}

impl OpenNic {
    fn card(&self, net: &Net, fds: &mut Outgoing) -> io::Result<(NetCard, OwnedFd)> {
        let (ours, theirs) = sockets::pair()?;
        let card = NetCard {
            id: net.id.clone(),
            mac: net.mac,
            mtu: net.mtu,
            pairs: self.pairs,
            filter: net.filter.clone(),
            limits: self.limits,
            link_up: self.up,
            state: fds.add(self.state.try_clone()?),
            socket: fds.add(theirs),
        };
        Ok((card, ours))
    }
}

/// Kills processes and waits for their end.
pub async fn end(processes: Vec<Process>) {
    processes.iter().for_each(Process::kill);
    for process in processes {
        process.reap().await;
    }
}
