//! NICs: those that `domus-net` serves, ports of a switch, and vhost-user-net backends of others'.
//!
//! | file | what |
//! |---|---|
//! | [`config`], [`forward`] | what a config may say of a NIC, and of ports that lead to it |
//! | [`nic`] | a NIC: what is written down of it, what is open of it, what its backend is told |
//! | [`attach`] | what is at the other end of the cable |
//! | [`cable`] | what a cable is made of in the host's kernel, kept as it was made |
//! | [`tap`], [`steering`], [`passt`] | taps, the program that chooses among a tap's queues, passt |
//! | [`report`], [`plan`] | what there is to say of a NIC, and before it is made |
//!
//! What a driver has set is in a file in the domain's directory, which goes to every backend in turn; limits and cables
//! that an operator has changed are kept here.

pub mod attach;
pub mod cable;
pub mod config;
pub mod forward;
pub mod nic;
pub mod passt;
pub mod plan;
pub mod report;
pub mod steering;
pub mod tap;

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::task::{Context, Poll};

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use futures_util::future::{FutureExt, LocalBoxFuture, pending};
use shared_abi::control::{
    AddressRange, DeviceSpec, NetNic, NetRequest, NetStart, NetWire, NicLimits, NicRequest,
};
use shared_abi::{DeviceId, DomainName, NetworkName, Role, SwitchName};
use tokio::time::timeout;

use crate::device::error::DeviceError;
use crate::device::loss::{Loss, Mended};
use crate::device::net::attach::Attachment;
use crate::device::net::cable::{Amiss, Cable};
use crate::device::net::config::{Nic, NicLink};
use crate::device::net::nic::{NicRecord, OpenNic};
use crate::device::net::passt::{PASST_START, PasstError};
use crate::device::net::report::NicReport;
use crate::device::plan::Plan;
use crate::device::start::{Message, Start};
use crate::device::{Backend, Handover, Owner, Providers, Step, reconnect};
use crate::host::links::Links;
use crate::host::sockets;
use crate::network::managed::{Asks, Networks};
use crate::process::Process;
use crate::value::place::Place;

/// The NICs of a machine.
#[derive(Debug)]
pub struct Nics {
    /// The config file, for messages.
    file: PathBuf,
    nics: RefCell<Vec<OpenNic>>,
    /// Interfaces were made that stay until they are removed.
    macvtaps: Cell<Option<shared_abi::DomId>>,
    /// What is plugged in somewhere, to be taken out.
    switch_ports: RefCell<Vec<SwitchPort>>,
}

/// A NIC at a switch.
#[derive(Debug, PartialEq, Eq)]
struct SwitchPort {
    switch: SwitchName,
    port: (DomainName, DeviceId),
}

impl Nics {
    /// As they were written down; none is open.
    pub fn new(file: &Path, records: &[NicRecord]) -> Self {
        Self {
            file: file.into(),
            nics: RefCell::new(records.iter().map(OpenNic::new).collect()),
            macvtaps: Cell::default(),
            switch_ports: RefCell::default(),
        }
    }

    /// A dom0 before this one had them open; what is plugged into a switch still is.
    pub fn are_inherited(&self, owner: &Owner, from: &Providers) {
        for open in self.nics.borrow_mut().iter_mut() {
            open.was_opened = true;
            match &open.nic.link {
                NicLink::Switch(switch) => {
                    let port = (owner.name.clone(), open.nic.id.clone());
                    from.switches.resume(switch, port.clone());
                    self.keep_switch_port(switch.clone(), port);
                }
                NicLink::Macvtap(_) => self.macvtaps.set(Some(owner.domid)),
                NicLink::Network(network) => from.networks.claim(network, open.nic.mac),
                _ => {}
            }
        }
    }

    /// For a dom0 that comes later.
    pub fn records(&self) -> Vec<NicRecord> {
        self.nics.borrow().iter().map(OpenNic::record).collect()
    }

    /// The managed networks that they are on.
    pub fn networks(&self) -> Vec<NetworkName> {
        let network = |open: &OpenNic| match &open.nic.link {
            NicLink::Network(name) => Some(name.clone()),
            _ => None,
        };
        self.nics.borrow().iter().filter_map(network).collect()
    }

    /// A report on each of them, as far as no process is asked.
    pub fn reports(&self) -> Vec<NicReport> {
        self.nics.borrow().iter().map(NicReport::of).collect()
    }

    /// Does something with a NIC, if it is here.
    fn with<T>(&self, id: &DeviceId, act: impl FnOnce(&mut OpenNic) -> T) -> Option<T> {
        self.nics.borrow_mut().iter_mut().find(|open| open.nic.id == *id).map(act)
    }

    /// What is at the other end of a NIC's cable.
    ///
    /// # Errors
    /// One line: there is no such NIC.
    pub fn link(&self, nic: &DeviceId) -> Result<NicLink, String> {
        self.with(nic, |open| open.nic.link.clone()).ok_or_else(|| {
            let nics = self.nics.borrow();
            let ids = nics.iter().map(|open| open.nic.id.as_str()).collect::<Vec<_>>();
            let ids = if ids.is_empty() { "none".into() } else { ids.join(", ") };
            format!("there is no NIC \"{nic}\": the domain has {ids}")
        })
    }

    /// A NIC's limits.
    pub fn limits(&self, nic: &DeviceId) -> Option<NicLimits> {
        self.with(nic, |open| open.limits)
    }

    /// Keeps a NIC's new limits for the backends to come.
    pub fn keep_limits(&self, nic: &DeviceId, limits: NicLimits) {
        self.with(nic, |open| open.limits = limits);
    }

    /// Keeps whether a NIC's cable is plugged in.
    pub fn keep_link(&self, nic: &DeviceId, up: bool) {
        self.with(nic, |open| open.up = up);
    }

    /// The switches that its NICs are on.
    pub fn switches(&self) -> BTreeSet<SwitchName> {
        self.switch_ports.borrow().iter().map(|port| port.switch.clone()).collect()
    }

    fn keep_switch_port(&self, switch: SwitchName, port: (DomainName, DeviceId)) {
        let plug = SwitchPort { switch, port };
        let mut switch_ports = self.switch_ports.borrow_mut();
        if !switch_ports.contains(&plug) {
            switch_ports.push(plug);
        }
    }

    /// Opens the wire of a NIC for the first time.
    async fn open_first(
        &self,
        owner: &Owner,
        (n, nic): (usize, Nic),
        from: &Providers,
        links: &Links,
    ) -> Result<(), DeviceError> {
        if matches!(nic.link, NicLink::Macvtap(_)) {
            self.macvtaps.set(Some(owner.domid));
        }
        let wire = Attachment::open(owner, n, &nic, from, links).await?;
        self.with(&nic.id, |open| {
            (open.pairs, open.was_opened) = (wire.pairs(), true);
            open.spec.queues = nic.virtqueues(open.pairs);
            open.wire = wire;
        });
        self.pin(owner, (n, &nic), from).await?;
        self.watch(owner, (n, &nic), from, links).await;
        Ok(())
    }

    /// Has a NIC's network give it an address, and keeps which that is. A guest that may have any MAC address may be
    /// many; and what a config lists is the operator's to say: dnsmasq is told of it, if it is one.
    async fn pin(&self, owner: &Owner, (n, nic): (usize, &Nic), from: &Providers) -> Result<(), DeviceError> {
        let NicLink::Network(network) = &nic.link else { return Ok(()) };
        if nic.filter.any_mac || !self.with(&nic.id, |open| open.guarded).unwrap_or(false) {
            return Ok(());
        }
        let listed = nic.filter.addresses.as_deref();
        let wish = match listed {
            None => self.with(&nic.id, |open| open.pinned.as_ref()?.one()).flatten(),
            Some([AddressRange { address: IpAddr::V4(address), prefix: 32 }, rest @ ..])
                if rest.iter().all(|range| range.address.is_ipv6()) =>
            {
                Some(*address)
            }
            Some(_) => return Ok(()),
        };
        let asks = Asks { mac: nic.mac, name: owner.name.as_str(), wish };
        let given = from.networks.pin(network, asks).await;
        let place = owner.place(format_args!("nets[{n}].network"));
        let given = given.map_err(|error| place.refuse(chain(&error)))?;
        self.with(&nic.id, |open| open.pinned = Some(given).filter(|_| listed.is_none()));
        Ok(())
    }

    /// The same for a NIC that is served: its network may be another one than it was. True if it has other addresses
    /// than its backend knows.
    async fn pin_again(
        &self,
        owner: &Owner,
        (n, nic): (usize, &Nic),
        from: &Providers,
    ) -> Result<bool, DeviceError> {
        let before = self.with(&nic.id, |open| open.pinned.clone()).flatten();
        self.pin(owner, (n, nic), from).await?;
        let now = self.with(&nic.id, |open| open.pinned.clone()).flatten();
        // Where a dom0 before this one has told the backend, it was told what was written down.
        Ok(before.is_some() && now != before)
    }

    /// Watches what a NIC's wire is made of.
    async fn watch(&self, owner: &Owner, (n, nic): (usize, &Nic), from: &Providers, links: &Links) {
        let bridge = match &nic.link {
            NicLink::Network(name) => from.networks.bridge(name).await.ok(),
            _ => None,
        };
        let Some(mut cable) = Cable::of(owner, n, nic, bridge) else { return };
        let watch = cable.watch(&from.monitor);
        // What cannot be looked at now is when something changes.
        cable.index = links.find(&cable.tap).await.ok().flatten().map(|tap| tap.index);
        self.with(&nic.id, |open| open.cable = Some((cable, watch)));
    }

    /// Looks at what a NIC's wire is made of.
    async fn look(&self, nic: &DeviceId, links: &Links) -> io::Result<Option<Amiss>> {
        let found = self.with(nic, |open| {
            Some((open.cable.as_ref()?.0.clone(), open.nic.mtu, !open.wire.is_closed_tap()))
        });
        let Some((mut cable, mtu, is_open)) = found.flatten() else { return Ok(None) };
        let amiss = cable.look(mtu, is_open, links).await?;
        self.with(nic, |open| {
            if let Some((known, _)) = &mut open.cable {
                *known = cable;
            }
        });
        Ok(amiss)
    }

    /// Puts a NIC's wire right.
    async fn mend_wire(
        &self,
        nic: &DeviceId,
        owner: &Owner,
        from: &Providers,
    ) -> Result<Mended, DeviceError> {
        let links = open_links()?;
        let failed = |source| DeviceError::Io { act: "look at the wire", source };
        let amiss = self.look(nic, &links).await.map_err(failed)?;
        let found = |open: &mut OpenNic| Some((open.n, open.nic.clone(), open.cable.as_ref()?.0.clone()));
        let found = self.with(nic, found).flatten();
        let (Some(amiss), Some((n, card, cable))) = (amiss, found) else { return Ok(Mended::Done) };
        let place = owner.place(format_args!("nets[{n}]"));
        match amiss {
            Amiss::Port(_) => {
                // Before its guest can ask for an address.
                let has_others = self.pin_again(owner, (n, &card), from).await?;
                cable.join(&place, &card, &links).await?;
                Ok(if has_others { Mended::Restart(nic.clone()) } else { Mended::Done })
            }
            Amiss::Tap(_) => {
                cable.can_be_made(&place, &links).await?;
                // What is open here leads nowhere. The next process opens another, unless one has meanwhile.
                let closed = self.with(nic, |open| {
                    let is_same = open.cable.as_ref().is_some_and(|(now, _)| *now == cable);
                    if is_same {
                        (open.wire, open.cable) = (Attachment::closed(&open.nic.link), None);
                    }
                    is_same
                });
                Ok(if closed == Some(true) { Mended::Restart(nic.clone()) } else { Mended::Done })
            }
        }
    }

    /// Opens a tap that a dom0 before this one had open, now that its backend is gone and it with that.
    async fn open_again(
        &self,
        owner: &Owner,
        (n, nic, pairs): (usize, Nic, u16),
        from: &Providers,
        links: &Links,
    ) -> Result<(), DeviceError> {
        if matches!(nic.link, NicLink::Macvtap(_)) {
            // It stays when nobody has it open. A new one has the same address.
            tap::remove_macvtaps(&tap::vif(owner.domid, n), links).await;
        }
        // As many as it had, whatever the config leaves open.
        let nic = Nic { pairs, pairs_given: true, ..nic };
        let wire = Attachment::open(owner, n, &nic, from, links).await?;
        self.with(&nic.id, |open| open.wire = wire);
        self.pin(owner, (n, &nic), from).await?;
        self.watch(owner, (n, &nic), from, links).await;
        Ok(())
    }

    /// Starts another passt for a NIC. The one before it has ended then: both want the same ports. None for a NIC that
    /// is on no passt.
    async fn another_passt(
        &self,
        owner: &Owner,
        nic: &DeviceId,
        from: &Providers,
    ) -> Result<Option<(Process, OwnedFd)>, DeviceError> {
        if let Some(old) = self.take_passt(nic) {
            end(vec![old]).await;
        }
        let user = self.with(nic, |open| match &open.nic.link {
            NicLink::User(forwards) => Some((open.nic.mtu, forwards.clone())),
            _ => None,
        });
        let Some((mtu, forwards)) = user.flatten() else { return Ok(None) };
        Ok(Some(
            passt::start(&*from.supervisor, (&owner.started_as, owner.domid), nic, mtu, &forwards).await?,
        ))
    }

    /// The passt of a NIC, to be ended, whose socket is of no use any more.
    fn take_passt(&self, nic: &DeviceId) -> Option<Process> {
        self.with(nic, |open| match &mut open.wire {
            Attachment::User { passt, socket } => {
                *socket = None;
                passt.take()
            }
            Attachment::Tap { .. } | Attachment::Elsewhere => None,
        })?
    }

    /// Keeps a NIC's new passt, and the socket for the next backend, if that does not have it yet.
    fn keep_passt(&self, nic: &DeviceId, process: Process, connection: Option<OwnedFd>) {
        self.with(nic, |open| {
            if let Attachment::User { passt, socket } = &mut open.wire {
                (*passt, *socket) = (Some(process), connection);
            }
        });
    }

    fn ids(&self, which: impl Fn(&OpenNic) -> bool) -> Vec<DeviceId> {
        self.nics.borrow().iter().filter(|open| which(open)).map(|open| open.nic.id.clone()).collect()
    }

    /// Plugs a NIC into its switch, with a new socket, whose other end the runner is to have.
    async fn plug(
        &self,
        owner: &Owner,
        (n, nic, switch): (usize, &DeviceId, SwitchName),
        from: &Providers,
    ) -> Result<OwnedFd, DeviceError> {
        let mut fds = Outgoing::default();
        let failed = |source| DeviceError::Io { act: "make what a switch is given", source };
        let card = self.with(nic, |open| open.nic_message(owner, &mut fds).map_err(failed));
        let (card, socket) = card.ok_or_else(|| DeviceError::NotHere(nic.clone()))??;
        let port = (owner.name.clone(), nic.clone());
        self.keep_switch_port(switch.clone(), port.clone());
        let plugged = from.switches.plug(&switch, port, card, fds).await;
        plugged.map_err(|why| owner.place(format_args!("nets[{n}].switch")).refuse(why))?;
        Ok(socket)
    }
}

impl Backend for Nics {
    fn specs(&self) -> Vec<DeviceSpec> {
        self.nics.borrow().iter().map(|open| open.spec.clone()).collect()
    }

    fn plural(&self) -> &'static str {
        "NICs"
    }

    fn role(&self) -> Option<Role> {
        self.nics.borrow().iter().any(|open| open.nic.is_own()).then_some(Role::Net)
    }

    fn serves(&self, device: &DeviceId) -> bool {
        self.with(device, |open| open.nic.is_own()).unwrap_or(false)
    }

    /// A backend resets its tap when it is let go of, and must be gone before the next one sets it up. A tap that is
    /// not open here is opened when the process that has it is gone.
    fn handover(&self) -> Handover {
        match self.nics.borrow().iter().any(|open| open.was_opened && open.wire.is_closed_tap()) {
            true => Handover::Exclusive,
            false => Handover::AfterEnd,
        }
    }

    fn check<'a>(&'a self, networks: &'a Networks) -> Step<'a, ()> {
        async move {
            let nics: Vec<_> = self.nics.borrow().iter().map(|open| (open.n, open.nic.clone())).collect();
            if nics.is_empty() {
                return Ok(());
            }
            let links = open_links()?;
            for (n, nic) in nics {
                let place = Place::new(&self.file, format_args!("nets[{n}]"));
                attach::check(&place, &nic, &links, networks).await?;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn plan(&self, plan: &mut Plan) {
        plan::plan(&self.nics.borrow(), plan);
    }

    fn open<'a>(&'a self, owner: &'a Owner, from: &'a Providers) -> Step<'a, ()> {
        async move {
            let closed = |open: &OpenNic| match (open.was_opened, open.wire.is_closed_tap()) {
                (false, _) => Some((open.n, open.nic.clone(), None)),
                (true, true) => Some((open.n, open.nic.clone(), Some(open.pairs))),
                (true, false) => None,
            };
            let closed: Vec<_> = self.nics.borrow().iter().filter_map(closed).collect();
            if !closed.is_empty() {
                let links = open_links()?;
                for (n, nic, pairs) in closed {
                    match pairs {
                        None => self.open_first(owner, (n, nic), from, &links).await?,
                        Some(pairs) => self.open_again(owner, (n, nic, pairs), from, &links).await?,
                    }
                }
            }
            // Their socket has gone to a backend, which has ended now.
            for nic in self.ids(|open| matches!(open.wire, Attachment::User { socket: None, .. })) {
                if let Some((passt, socket)) = self.another_passt(owner, &nic, from).await? {
                    self.keep_passt(&nic, passt, Some(socket));
                }
            }
            Ok(())
        }
        .boxed_local()
    }

    fn start(&self, owner: &Owner) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (mut nics, mut sockets) = (Vec::new(), Vec::new());
        for open in self.nics.borrow_mut().iter_mut() {
            let wire = match &mut open.wire {
                Attachment::Tap { queues, steering } => {
                    let queues = queues.iter().map(|tap| tap.try_clone().map(|tap| fds.add(tap)));
                    let queues = queues.collect::<io::Result<_>>()?;
                    let steering = steering.as_ref().map(|table| table.try_clone()).transpose()?;
                    NetWire::Tap { queues, steering: steering.map(|table| fds.add(table)) }
                }
                Attachment::User { socket, .. } => {
                    NetWire::Stream { socket: socket.take().map(|socket| fds.add(socket)) }
                }
                Attachment::Elsewhere => continue,
            };
            let (card, socket) = open.nic_message(owner, &mut fds)?;
            sockets.push((open.nic.id.clone(), socket));
            nics.push(NetNic { card, wire });
        }
        let message = Message::new(&NetRequest::Start(NetStart { identity: owner.identity(), nics }))?;
        Ok(Start::new(message, fds.into_vec(), sockets))
    }

    fn beat(&self, _version: u32) -> Vec<Message> {
        let own = self.ids(|open| open.nic.is_own());
        let ask = |nic| Message::new(&NetRequest::Nic { nic, request: NicRequest::Statistics }).ok();
        own.into_iter().take(1).filter_map(ask).collect()
    }

    fn connect<'a>(
        &'a self,
        device: &'a DeviceId,
        owner: &'a Owner,
        from: &'a Providers,
    ) -> Step<'a, OwnedFd> {
        async move {
            let nothing = || DeviceError::NotHere(device.clone());
            let (n, link) = self.with(device, |open| (open.n, open.nic.link.clone())).ok_or_else(nothing)?;
            match link {
                NicLink::Switch(switch) => self.plug(owner, (n, device, switch), from).await,
                NicLink::VhostUser(path) => {
                    let place = owner.place(format_args!("nets[{n}].vhost_user_socket"));
                    sockets::foreign(&place, &path, true).await?.ok_or_else(nothing)
                }
                _ => Err(nothing()),
            }
        }
        .boxed_local()
    }

    fn lost(&self, device: &DeviceId) -> Loss {
        match self.with(device, |open| (open.nic.is_own(), matches!(open.nic.link, NicLink::Switch(_)))) {
            Some((true, _)) => Loss::Process(Role::Net),
            Some((_, true)) => Loss::Switch(device.clone()),
            _ => Loss::Connection(device.clone()),
        }
    }

    fn disconnected(&self, device: DeviceId) -> Loss {
        Loss::Passt(device)
    }

    fn poll_loss(&self, cx: &mut Context<'_>) -> Poll<Loss> {
        for open in self.nics.borrow().iter() {
            if let Attachment::User { passt: Some(passt), .. } = &open.wire
                && passt.poll_ended(cx).is_ready()
            {
                return Poll::Ready(Loss::Passt(open.nic.id.clone()));
            }
            if let Some((_, watch)) = &open.cable
                && watch.poll_changed(cx).is_ready()
            {
                return Poll::Ready(Loss::Wire(open.nic.id.clone()));
            }
        }
        Poll::Pending
    }

    fn bury<'a>(&'a self, loss: &'a Loss) -> LocalBoxFuture<'a, Option<String>> {
        async move {
            let nic = match loss {
                Loss::Passt(nic) => nic,
                // What was heard may be old.
                Loss::Wire(nic) => {
                    let links = Links::open().ok()?;
                    return match self.look(nic, &links).await {
                        Ok(amiss) => amiss.map(|(Amiss::Port(how) | Amiss::Tap(how))| how),
                        Err(error) => Some(format!("cannot be looked at: {error}")),
                    };
                }
                _ => return None,
            };
            let passt = self.take_passt(nic)?;
            let how = passt.ended().await;
            tokio::task::spawn_local(passt.reap());
            Some(how)
        }
        .boxed_local()
    }

    /// A passt that follows a short-lived one is looked at for a moment, so that one that cannot serve says why to dom0
    /// and not by way of the backend. A switch is started again by its own task.
    fn mend<'a>(
        &'a self,
        loss: &'a Loss,
        attempts: u32,
        owner: &'a Owner,
        from: &'a Providers,
    ) -> Step<'a, Mended> {
        async move {
            let nic = match loss {
                Loss::Passt(nic) => nic,
                Loss::Wire(nic) => return self.mend_wire(nic, owner, from).await,
                _ => return reconnect(self, loss, owner, from).await,
            };
            let nothing = || DeviceError::NoHelper(loss.to_string());
            let (passt, socket) = self.another_passt(owner, nic, from).await?.ok_or_else(nothing)?;
            if attempts > 0
                && let Ok(how) = timeout(PASST_START, passt.ended()).await
            {
                return Err(PasstError::Ended(how).into());
            }
            self.keep_passt(nic, passt, None);
            let mut fds = Outgoing::default();
            let request = NetRequest::Reconnect { nic: nic.clone(), socket: fds.add(socket) };
            Mended::tell(nic, &request, fds)
        }
        .boxed_local()
    }

    fn stirs<'a>(&'a self, loss: &'a Loss, from: &'a Providers) -> LocalBoxFuture<'a, ()> {
        async move {
            let Loss::Wire(nic) = loss else { return pending().await };
            let watch = |open: &mut OpenNic| Some(open.cable.as_ref()?.0.watch(&from.monitor));
            let Some(watch) = self.with(nic, watch).flatten() else { return pending().await };
            // It says at once that there may have been a change, which the attempt before this has seen.
            watch.changed().await;
            watch.changed().await;
        }
        .boxed_local()
    }

    fn may_be_renamed(&self) -> Result<(), String> {
        match self.ids(|open| matches!(open.nic.link, NicLink::Switch(_))).first() {
            None => Ok(()),
            Some(nic) => Err(format!("its NIC {nic} is on a switch, which knows it by its name")),
        }
    }

    fn adopt<'a>(&'a self, owner: &'a Owner, from: &'a Providers) -> LocalBoxFuture<'a, ()> {
        async move {
            let all: Vec<_> = self.nics.borrow().iter().map(|open| (open.n, open.nic.clone())).collect();
            if let Ok(links) = Links::open() {
                for (n, nic) in &all {
                    self.watch(owner, (*n, nic), from, &links).await;
                }
            }
            for nic in self.ids(|open| open.inherited.is_some()) {
                let known = self.with(&nic, |open| open.inherited.take()).flatten();
                if let Some(mut living) = known.and_then(Process::found) {
                    from.supervisor.adopt(&mut living).await;
                    self.with(&nic, |open| {
                        if let Attachment::User { passt, .. } = &mut open.wire {
                            *passt = Some(living);
                        }
                    });
                }
            }
        }
        .boxed_local()
    }

    fn missing(&self) -> Vec<Loss> {
        let without = self.ids(|open| matches!(open.wire, Attachment::User { passt: None, .. }));
        without.into_iter().map(Loss::Passt).collect()
    }

    /// Takes out what is plugged in, ends every passt, lets go of the taps and removes the macvtaps.
    fn close<'a>(&'a self, from: &'a Providers) -> LocalBoxFuture<'a, ()> {
        async move {
            for SwitchPort { switch, port } in self.switch_ports.take() {
                from.switches.unplug(&switch, port).await;
            }
            let mut passts = Vec::new();
            for open in self.nics.borrow_mut().iter_mut() {
                let closed = Attachment::closed(&open.nic.link);
                if let NicLink::Network(network) = &open.nic.link {
                    from.networks.unpin(network, open.nic.mac);
                }
                (open.cable, open.pinned) = (None, None);
                if let Attachment::User { passt: Some(passt), .. } = std::mem::replace(&mut open.wire, closed)
                {
                    passts.push(passt);
                }
            }
            end(passts).await;
            if let (Some(domid), Ok(links)) = (self.macvtaps.take(), Links::open()) {
                tap::remove_macvtaps(&format!("vif{domid}."), &links).await;
            }
        }
        .boxed_local()
    }

    fn leave(&self) {
        self.switch_ports.take();
        self.macvtaps.set(None);
        for open in self.nics.take() {
            if let Attachment::User { passt: Some(passt), .. } = open.wire {
                passt.leave();
            }
        }
    }
}

fn open_links() -> Result<Links, DeviceError> {
    Links::open().map_err(|source| DeviceError::Io { act: "open rtnetlink", source })
}

/// Kills processes and waits for their end.
async fn end(processes: Vec<Process>) {
    processes.iter().for_each(Process::kill);
    for process in processes {
        process.reap().await;
    }
}
