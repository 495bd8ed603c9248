//! The NICs of a domain: what dom0 keeps open of them, and what it tells their backend, as often as one is started.
//!
//! What a driver has set is in a file that belongs to the incarnation and goes to every backend in turn; limits and
//! cables that an operator has changed are kept here.

use std::cell::RefCell;
use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;
use std::task::{Context, Poll};

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use serde::{Deserialize, Serialize};
use shared_abi::control::{Identity, NetCard, NetNic, NetRequest, NetStart, NetWire, NicLimits};
use shared_abi::limits::NIC_STATE_LEN;
use shared_abi::{DeviceId, DomainName, SwitchName};
use tokio::time::timeout;

use crate::device::error::DeviceError;
use crate::device::net::config::{Net, NetLink};
use crate::device::net::forward::Forward;
use crate::device::net::passt::{self, PASST_START, PasstError};
use crate::device::net::{steering, tap};
use crate::device::start::{Message, Start};
use crate::device::{Owner, Providers};
use crate::host::links::Links;
use crate::host::proc::ProcessId;
use crate::host::sockets;
use crate::network::managed::Networks;
use crate::network::switches::Switches;
use crate::process::Process;
use crate::value::place::{ConfigError, Place};

/// A NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NicRecord {
    /// Its id.
    pub id: DeviceId,
    /// Its queue pairs.
    pub pairs: u16,
    /// What it may do.
    pub limits: NicLimits,
    /// Its cable is plugged in.
    pub up: bool,
}

/// What is open of a domain's NICs, and what has been changed since.
#[derive(Debug, Default)]
pub struct Nets {
    /// In the order of the config.
    nics: Vec<OpenNic>,
    /// What the interfaces that must be removed begin with.
    macvtaps: Option<String>,
    /// What is plugged in somewhere.
    plugs: Vec<Plug>,
}

/// One of them.
#[derive(Debug)]
struct OpenNic {
    /// Its place in the config's list.
    n: usize,
    /// What the domain was started with.
    net: Net,
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
        owner: &Owner,
        n: usize,
        net: &Net,
        from: &Providers,
        links: &Links,
    ) -> Result<Self, DeviceError> {
        let (place, domid) = (&owner.place(format_args!("nets[{n}]")), owner.domid);
        Ok(match &net.link {
            NetLink::Bridge(bridge) => {
                Self::tap(tap::on_bridge(place, domid, n, net, ("bridge", bridge), links).await?)
            }
            NetLink::Tap(name) => Self::tap(tap::existing(place, net, name, links).await?),
            NetLink::Macvtap(lower) => Self::tap(tap::macvtap(place, domid, n, net, lower, links).await?),
            NetLink::User(forwards) => {
                let refuse = |error: PasstError| place.under("user").refuse(chain(&error));
                let started = passt::start(&*from.supervisor, &owner.started_as, &net.id, net.mtu, forwards);
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
                let bridge = from
                    .networks
                    .bridge(name)
                    .await
                    .map_err(|error| place.under("network").refuse(chain(&error)))?;
                let bridge = ("network", bridge.as_str());
                Self::tap(tap::on_bridge(place, domid, n, net, bridge, links).await?)
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
    place: &Place<'_>,
    net: &Net,
    links: &Links,
    networks: &Networks,
) -> Result<(), ConfigError> {
    let key = net.link.key();
    let refuse = |problem: String| place.under(key).refuse(problem);
    match &net.link {
        NetLink::Bridge(name) | NetLink::Tap(name) | NetLink::Macvtap(name) => {
            tap::check(place, key, name, links).await.map(drop)
        }
        NetLink::User(_) => passt::check().map_err(|error| refuse(error.to_string())),
        NetLink::VhostUser(path) => sockets::foreign(&place.under(key), path, false).map(drop),
        NetLink::Network(name) => networks.check(name).await.map_err(|error| refuse(chain(&error))),
        // It is started with its first port.
        NetLink::Switch(_) => Ok(()),
    }
}

/// Plugs a NIC into its switch, with a new socket, whose other end the runner is to have.
///
/// # Errors
/// One line.
pub async fn plug(
    owner: &Owner,
    nic: &DeviceId,
    nets: &RefCell<Nets>,
    from: &Providers,
) -> Result<OwnedFd, DeviceError> {
    let mut fds = Outgoing::default();
    let made = nets.borrow().at_switch(nic, &mut fds);
    let (switch, card, socket) =
        made.map_err(|source| DeviceError::Io { act: "make what a switch is given", source })?;
    let port = (owner.name.clone(), nic.clone());
    nets.borrow_mut().plugged(from.switches.clone(), switch.clone(), port.clone());
    from.switches.plug(&switch, port, card, fds).await.map_err(DeviceError::Switch)?;
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
    /// [`DeviceError`].
    pub async fn open(
        owner: &Owner,
        config: &[Net],
        from: &Providers,
        links: &Links,
        made: &mut Self,
    ) -> Result<(), DeviceError> {
        for (n, net) in config.iter().enumerate() {
            if matches!(net.link, NetLink::Macvtap(_)) {
                made.macvtaps = Some(format!("vif{}.", owner.domid));
            }
            let wire = OpenWire::open(owner, n, net, from, links).await?;
            let pairs = wire.pairs();
            let state = driver_state(&owner.directory, n)
                .map_err(|source| DeviceError::Io { act: "make a NIC's memory", source })?;
            let net = net.clone();
            made.nics.push(OpenNic { n, pairs, wire, state, limits: net.limits, up: net.up, net });
        }
        Ok(())
    }

    /// Those of a domain that a dom0 before this one had. No tap of them is open here; a passt that is not given here is
    /// gone.
    ///
    /// # Errors
    /// The memory of a NIC cannot be opened.
    pub fn taken_over(
        owner: &Owner,
        config: &[Net],
        records: &[NicRecord],
        from: &Providers,
        mut passts: Vec<(DeviceId, Process)>,
    ) -> io::Result<Self> {
        let mut taken = Self::default();
        for (n, net) in config.iter().enumerate() {
            let Some(known) = records.iter().find(|nic| nic.id == net.id) else { continue };
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
                    let port = (owner.name.clone(), net.id.clone());
                    taken.plugged(from.switches.clone(), switch.clone(), port);
                    OpenWire::Elsewhere
                }
            };
            if matches!(net.link, NetLink::Macvtap(_)) {
                taken.macvtaps = Some(format!("vif{}.", owner.domid));
            }
            taken.nics.push(OpenNic {
                n,
                net: net.clone(),
                wire,
                pairs: known.pairs,
                state: driver_state(&owner.directory, n)?,
                limits: known.limits,
                up: known.up,
            });
        }
        Ok(taken)
    }

    /// What a dom0 that comes later must know of them: each NIC, and the process of each passt.
    pub fn records(&self) -> (Vec<NicRecord>, Vec<(DeviceId, ProcessId)>) {
        let nics = self.nics.iter().map(|nic| NicRecord {
            id: nic.net.id.clone(),
            pairs: nic.pairs,
            limits: nic.limits,
            up: nic.up,
        });
        let passts = self.nics.iter().filter_map(|nic| match &nic.wire {
            OpenWire::User { passt: Some(passt), .. } => {
                Some((nic.net.id.clone(), ProcessId::of(passt.pid())?))
            }
            _ => None,
        });
        (nics.collect(), passts.collect())
    }

    /// NICs whose passt is not there.
    pub fn without_passt(&self) -> Vec<DeviceId> {
        let without = self.nics.iter().filter(|nic| matches!(nic.wire, OpenWire::User { passt: None, .. }));
        without.map(|nic| nic.net.id.clone()).collect()
    }

    /// True if a tap of them is not open here.
    pub fn are_absent(&self) -> bool {
        self.nics.iter().any(|nic| nic.wire.is_absent())
    }

    fn find(&mut self, nic: &DeviceId) -> Option<&mut OpenNic> {
        self.nics.iter_mut().find(|open| open.net.id == *nic)
    }

    /// Number of queue pairs that a NIC has.
    pub fn pairs(&self, nic: &DeviceId) -> Option<u16> {
        self.nics.iter().find(|open| open.net.id == *nic).map(|open| open.pairs)
    }

    /// A NIC's limits, and whether its cable is plugged in.
    pub fn settings(&self, nic: &DeviceId) -> Option<(NicLimits, bool)> {
        self.nics.iter().find(|open| open.net.id == *nic).map(|open| (open.limits, open.up))
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
                return Poll::Ready(nic.net.id.clone());
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
        without.map(|nic| nic.net.id.clone()).collect()
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
    pub fn start(&mut self, identity: &Identity) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (mut nics, mut sockets) = (Vec::new(), Vec::new());
        for open in &mut self.nics {
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
            let (card, socket) = open.card(&mut fds)?;
            sockets.push((open.net.id.clone(), socket));
            nics.push(NetNic { card, wire });
        }
        let message = Message::Net(NetRequest::Start(NetStart { identity: identity.clone(), nics }));
        Ok(Start { message, fds: fds.into_vec(), sockets, lifeline: None, marks: None })
    }

    /// The switch that a NIC is at, what that is told of it, and the runner's end of its socket.
    fn at_switch(&self, nic: &DeviceId, fds: &mut Outgoing) -> io::Result<(SwitchName, NetCard, OwnedFd)> {
        let open = self.nics.iter().find(|open| open.net.id == *nic).ok_or(io::ErrorKind::NotFound)?;
        let NetLink::Switch(switch) = &open.net.link else { return Err(io::ErrorKind::NotFound.into()) };
        let (card, socket) = open.card(fds)?;
        Ok((switch.clone(), card, socket))
    }

    /// What a NIC on passt has: its MTU and the ports that lead to it.
    fn user(&self, nic: &DeviceId) -> Option<(u16, Vec<Forward>)> {
        match &self.nics.iter().find(|open| open.net.id == *nic)?.net {
            Net { mtu, link: NetLink::User(forwards), .. } => Some((*mtu, forwards.clone())),
            _ => None,
        }
    }
}

/// Another passt for a NIC. The one before it has ended then: both want the same ports.
///
/// # Errors
/// [`DeviceError`]; also if the NIC is on no passt.
pub async fn another_passt(
    owner: &Owner,
    nic: &DeviceId,
    nets: &RefCell<Nets>,
    from: &Providers,
) -> Result<(Process, OwnedFd), DeviceError> {
    let old = nets.borrow_mut().take_passt(nic);
    end(old.into_iter().collect()).await;
    let user = nets.borrow().user(nic);
    let no_such = || DeviceError::Io { act: "find a NIC's passt", source: io::ErrorKind::NotFound.into() };
    let (mtu, forwards) = user.ok_or_else(no_such)?;
    Ok(passt::start(&*from.supervisor, &owner.started_as, nic, mtu, &forwards).await?)
}

/// Opens the taps that a dom0 before this one had open, now that its backend is gone and they with it.
///
/// # Errors
/// [`DeviceError`]; also if one has another number of queues now.
pub async fn open_absent(owner: &Owner, nets: &RefCell<Nets>, from: &Providers) -> Result<(), DeviceError> {
    let absent = |nic: &OpenNic| nic.wire.is_absent().then(|| (nic.n, nic.net.clone(), nic.pairs));
    let missing: Vec<_> = nets.borrow().nics.iter().filter_map(absent).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let links = Links::open().map_err(|source| DeviceError::Io { act: "open rtnetlink", source })?;
    for (n, net, pairs) in missing {
        if matches!(net.link, NetLink::Macvtap(_)) {
            // It stays when nobody has it open. A new one has the same address.
            tap::remove_macvtaps(&tap::vif(owner.domid, n), &links).await;
        }
        // As many as it had, whatever the config leaves open.
        let net = Net { pairs, pairs_given: true, ..net };
        let wire = OpenWire::open(owner, n, &net, from, &links).await?;
        if let Some(nic) = nets.borrow_mut().find(&net.id) {
            nic.wire = wire;
        }
    }
    Ok(())
}

impl OpenNic {
    fn card(&self, fds: &mut Outgoing) -> io::Result<(NetCard, OwnedFd)> {
        let net = &self.net;
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

/// The memory of NIC `n` in the domain's run directory: what its driver has set, for as long as the domain runs. Made where
/// it is missing.
fn driver_state(directory: &Path, n: usize) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600);
    let file = options.open(directory.join(format!("nic{n}.state")))?;
    file.set_len(NIC_STATE_LEN)?;
    Ok(file)
}
