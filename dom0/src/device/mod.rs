//! The devices of a domain, by class: what a config says of one, what its guest sees, what dom0 keeps open of it, and
//! what its backend is told.
//!
//! A class is one folder behind one trait, [`Backend`]. [`classes::Devices`] is the table of them.

pub mod block;
pub mod classes;
pub mod console;
pub mod error;
pub mod external;
pub mod loss;
pub mod net;
pub mod plan;
pub mod slots;
pub mod spec;
pub mod start;

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::future::{FutureExt, LocalBoxFuture, pending, ready};
use shared_abi::control::{BackendReply, DeviceSpec, Identity};
use shared_abi::{DeviceId, DomId, DomainName, Role};

use crate::device::error::DeviceError;
use crate::device::loss::{Loss, Mended};
use crate::device::plan::Plan;
use crate::device::start::{Message, Start};
use crate::host::kernels::Kernels;
use crate::host::monitor::Monitor;
use crate::host::slow::StorageFile;
use crate::network::managed::Networks;
use crate::network::switches::Switches;
use crate::process::Supervisor;
use crate::process::identity::uid;
use crate::value::place::Place;
use crate::value::trouble::Trouble;

/// What one step of a [`Backend`] comes to.
pub type Step<'a, T> = LocalBoxFuture<'a, Result<T, DeviceError>>;

/// All devices of one class in one machine, and what stands behind them.
///
/// The machine calls [`Self::prepare`] and [`Self::open`] once each, then [`Self::start`] as often as a process is
/// started for them, and [`Self::close`] or [`Self::leave`] at last. An adopted one begins with [`Self::adopt`]. A step
/// may be dropped at any `.await`: what it had made by then is kept here, and [`Self::close`] removes it. No step waits
/// on a guest.
pub trait Backend: fmt::Debug {
    /// What the guest sees, in the order of the config. The number of a NIC's queues is known after [`Self::open`].
    fn specs(&self) -> Vec<DeviceSpec>;

    /// What an operator calls several of them.
    fn plural(&self) -> &'static str {
        "devices"
    }

    /// The role of the process that serves them, if one of the domain's own does.
    fn role(&self) -> Option<Role> {
        None
    }

    /// The process in [`Self::role`] serves this device.
    fn serves(&self, _device: &DeviceId) -> bool {
        false
    }

    /// How another process may take the place of the one that serves them.
    fn handover(&self) -> Handover {
        Handover::AfterEnd
    }

    /// Looks for what only the host can tell: files, bridges, sockets. Opens and closes, changes nothing.
    fn check<'a>(&'a self, _networks: &'a Networks) -> Step<'a, ()> {
        ready(Ok(())).boxed_local()
    }

    /// Writes down what starting them would take.
    fn plan(&self, plan: &mut Plan);

    /// Refuses what can be refused before any process is started.
    fn prepare<'a>(&'a self, networks: &'a Networks) -> Step<'a, ()> {
        self.check(networks)
    }

    /// Opens what the next process is given and is not open: all of it for the first one. The process before it has
    /// ended where [`Self::handover`] is [`Handover::Exclusive`].
    fn open<'a>(&'a self, _owner: &'a Owner, _from: &'a Providers) -> Step<'a, ()> {
        ready(Ok(())).boxed_local()
    }

    /// What the next process is told, with copies of the descriptors that are open here. Does not wait.
    ///
    /// # Errors
    /// No descriptors left, or something is not open.
    fn start(&self, _owner: &Owner) -> io::Result<Start> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Questions that the process answers at once and that change nothing, to see that it lives. It speaks messages of
    /// this version.
    fn beat(&self, _version: u32) -> Vec<Message> {
        Vec::new()
    }

    /// What its process is to be told since something of the host has changed. Asked with each beat; does not wait.
    fn tend(&self, _version: u32) -> Option<(Message, Vec<OwnedFd>)> {
        None
    }

    /// What it has said to the last of these, and to which.
    fn beaten(&self, _said: Vec<(usize, BackendReply)>) {}

    /// What is amiss with devices that are served.
    fn troubles(&self) -> Vec<Trouble> {
        Vec::new()
    }

    /// A new connection for a device that no process of the domain's own serves.
    fn connect<'a>(
        &'a self,
        device: &'a DeviceId,
        _owner: &'a Owner,
        _from: &'a Providers,
    ) -> Step<'a, OwnedFd> {
        ready(Err(DeviceError::NotHere(device.clone()))).boxed_local()
    }

    /// What is lost when the runner has lost its connection to this device.
    fn lost(&self, device: &DeviceId) -> Loss {
        match self.role().filter(|_| self.serves(device)) {
            Some(role) => Loss::Process(role),
            None => Loss::Connection(device.clone()),
        }
    }

    /// What is lost when the process says that this device has lost what is behind it.
    fn disconnected(&self, device: DeviceId) -> Loss {
        Loss::Connection(device)
    }

    /// Ready when a helper of one of the devices has ended.
    fn poll_loss(&self, _cx: &mut Context<'_>) -> Poll<Loss> {
        Poll::Pending
    }

    /// Lets go of a helper that has ended; the text says how. None if it is gone already.
    fn bury<'a>(&'a self, _loss: &'a Loss) -> LocalBoxFuture<'a, Option<String>> {
        ready(None).boxed_local()
    }

    /// One attempt to have something again that is no process of the domain's own, after so many others. Unless a class
    /// has helpers it is a connection.
    fn mend<'a>(
        &'a self,
        loss: &'a Loss,
        _attempts: u32,
        owner: &'a Owner,
        from: &'a Providers,
    ) -> Step<'a, Mended> {
        reconnect(self, loss, owner, from)
    }

    /// Ready when an attempt may succeed that has failed before, and sooner than it would be made by itself.
    fn stirs<'a>(&'a self, _loss: &'a Loss, _from: &'a Providers) -> LocalBoxFuture<'a, ()> {
        pending().boxed_local()
    }

    /// How long the guest runs on without it, if not for ever.
    fn patience(&self, _loss: &Loss) -> Option<Duration> {
        None
    }

    /// It has been lost for so long: what that means for the requests that wait for it.
    fn give_up(&self, _loss: &Loss, _after: Duration) {}

    /// Why the domain cannot have another name just now.
    ///
    /// # Errors
    /// One line.
    fn may_be_renamed(&self) -> Result<(), String> {
        Ok(())
    }

    /// Finds the helpers that a dom0 before this one has started.
    fn adopt<'a>(&'a self, _owner: &'a Owner, _from: &'a Providers) -> LocalBoxFuture<'a, ()> {
        ready(()).boxed_local()
    }

    /// The helpers that ought to be there and are not, after [`Self::adopt`].
    fn missing(&self) -> Vec<Loss> {
        Vec::new()
    }

    /// The files of storage that are open, to be closed where nobody waits for it; none is of use after that.
    fn release(&self) -> Vec<StorageFile> {
        Vec::new()
    }

    /// The machine ends: ends helpers, removes what was made.
    fn close<'a>(&'a self, _from: &'a Providers) -> LocalBoxFuture<'a, ()> {
        ready(()).boxed_local()
    }

    /// dom0 lets go of the domain as it is, for another dom0.
    fn leave(&self) {}
}

/// A new connection for the device that a loss is about.
pub fn reconnect<'a, B: Backend + ?Sized>(
    class: &'a B,
    loss: &'a Loss,
    owner: &'a Owner,
    from: &'a Providers,
) -> Step<'a, Mended> {
    async move {
        let device = loss.device().ok_or_else(|| DeviceError::NoHelper(loss.to_string()))?;
        Ok(Mended::Attach(device.clone(), class.connect(device, owner, from).await?))
    }
    .boxed_local()
}

/// How a process may take the place of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handover {
    /// Both can be at the same data: the new one serves before the old one ends.
    Overlap,
    /// The new one is told what to serve while the old one is there, and attached when that has ended.
    AfterEnd,
    /// The old one must have ended before the new one is told what to serve.
    Exclusive,
}

/// The domain that a device belongs to.
#[derive(Debug, Clone)]
pub struct Owner {
    /// The config file, for messages.
    pub file: PathBuf,
    /// Its name.
    pub name: DomainName,
    /// The name that its processes were started under, and that the supervisor knows them by.
    pub started_as: DomainName,
    /// Its number.
    pub domid: DomId,
    /// Its run directory.
    pub directory: PathBuf,
}

impl Owner {
    /// The value at a JSON path of its config.
    pub fn place(&self, at: impl fmt::Display) -> Place<'_> {
        Place::new(&self.file, at)
    }

    /// Whom its processes become.
    pub fn identity(&self) -> Identity {
        Identity { domain: self.name.clone(), domid: self.domid, uid: uid(self.domid) }
    }
}

/// What gives devices processes and connections, for all domains of one dom0.
#[derive(Clone)]
pub struct Providers {
    /// Starts processes.
    pub supervisor: Rc<dyn Supervisor>,
    /// The networks that NICs name.
    pub networks: Rc<Networks>,
    /// The switches that NICs share.
    pub switches: Rc<Switches>,
    /// Hears of changes of the host's links.
    pub monitor: Monitor,
    /// What kernels unpack to.
    pub kernels: Rc<Kernels>,
}

impl fmt::Debug for Providers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Providers")
    }
}
