//! Switches in user space: one process per switch name, which lives as long as the name has NICs.
//!
//! ```text
//!   first port ─▶ started ─▶ serves ─┬─ last port gone ─▶ ended
//!                    ▲               │
//!                    └── (pause) ◀───┴─ died: every runner sees the hang-up, and its domain plugs the port again
//! ```
//!
//! Each switch has a task of its own, so that no domain waits for another domain's request, and none longer than some
//! seconds. A switch belongs to the service: the domain of a `domus run` has no other domain to share a switch with.

mod served;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;

use domus_startup::fds::Outgoing;
use shared_abi::control::{BackendReply, NicRequest, SwitchRequest};
use shared_abi::{DeviceId, DomainName, SwitchName};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::host::run_dir::RunDir;
use crate::host::waits::waiting;
use crate::host::{orphans, proc};
use crate::network::switches::served::{Ask, PATIENCE, Served};
use crate::process::Supervisor;

/// A NIC at a switch.
type Port = (DomainName, DeviceId);

/// The switches of one dom0. Used by one thread.
pub struct Switches {
    run: RunDir,
    /// None in a command, which has no switch.
    supervisor: Option<Rc<dyn Supervisor>>,
    switches: RefCell<BTreeMap<SwitchName, Switch>>,
}

/// One of them.
struct Switch {
    ports: BTreeSet<Port>,
    asks: mpsc::UnboundedSender<Ask>,
    owes: Rc<Cell<Option<Instant>>>,
    task: JoinHandle<()>,
}

impl Switches {
    /// No switches yet. Without a supervisor there will be none.
    pub fn new(run: RunDir, supervisor: Option<Rc<dyn Supervisor>>) -> Self {
        Self { run, supervisor, switches: RefCell::default() }
    }

    /// Takes over the switches of the service before this one. [`Self::settle`] ends those that no domain has
    /// [resumed](Self::resume).
    pub fn begin(&self) {
        for dir in self.dirs() {
            if let Some(name) = dir.file_name().and_then(|name| name.to_str()?.parse::<SwitchName>().ok()) {
                self.switch(&name);
            }
        }
    }

    /// A NIC was plugged in by a service before this one, and is still.
    pub fn resume(&self, name: &SwitchName, port: Port) {
        if let Some(switch) = self.switches.borrow_mut().get_mut(name) {
            switch.ports.insert(port);
        }
    }

    /// Ends the switches that have no NIC.
    pub async fn settle(&self) {
        self.switches.borrow_mut().retain(|_, switch| !switch.ports.is_empty());
        let dirs: Vec<_> = self.dirs().collect();
        let ended = tokio::task::spawn_blocking(move || {
            for dir in dirs {
                let known = proc::read(&dir.join("switch.json"));
                orphans::end(&dir, known.as_slice());
            }
        });
        let _ = ended.await;
    }

    /// The directories that there are.
    fn dirs(&self) -> impl Iterator<Item = PathBuf> {
        fs::read_dir(self.dir()).into_iter().flatten().flatten().map(|entry| entry.path())
    }

    /// The switch of this name, made where it is missing. None in a command.
    fn switch(&self, name: &SwitchName) -> Option<()> {
        let supervisor = self.supervisor.clone()?;
        self.switches.borrow_mut().entry(name.clone()).or_insert_with(|| {
            let (asks, asked) = mpsc::unbounded_channel();
            let dir = self.dir().join(name.as_str());
            let owes = Rc::<Cell<_>>::default();
            let (name, run) = (name.clone(), self.run.clone());
            let served = Served { name, dir, run, supervisor, asked, owes: owes.clone() };
            Switch { ports: BTreeSet::new(), asks, owes, task: tokio::task::spawn_local(served.run()) }
        });
        Some(())
    }

    fn dir(&self) -> PathBuf {
        self.run.path().join("switches")
    }

    /// Plugs a NIC in; the switch is started for the first. It stays plugged in, whatever comes of this, until
    /// [`Self::unplug`].
    ///
    /// # Errors
    /// One line.
    pub async fn plug(
        &self,
        name: &SwitchName,
        port: Port,
        card: shared_abi::control::NetCard,
        fds: Outgoing,
    ) -> Result<(), String> {
        self.switch(name).ok_or_else(|| {
            format!(
                "\"{name}\" needs the dom0 service, whose domains share it: start that, and use domus create"
            )
        })?;
        self.resume(name, port.clone());
        let (domain, _) = port;
        match self.ask(name, SwitchRequest::Plug { domain, card }, fds).await? {
            BackendReply::Done => Ok(()),
            other => Err(format!("switch {name}: answered with {other:?}")),
        }
    }

    /// Since when a switch has owed an answer.
    pub fn silent_since(&self, name: &SwitchName) -> Option<Instant> {
        self.switches.borrow().get(name)?.owes.get()
    }

    /// Asks about a NIC that is plugged in.
    ///
    /// # Errors
    /// One line.
    pub async fn nic(
        &self,
        name: &SwitchName,
        (domain, nic): Port,
        request: NicRequest,
    ) -> Result<BackendReply, String> {
        self.ask(name, SwitchRequest::Nic { domain, nic, request }, Outgoing::default()).await
    }

    async fn ask(
        &self,
        name: &SwitchName,
        request: SwitchRequest,
        fds: Outgoing,
    ) -> Result<BackendReply, String> {
        let (answer, answered) = oneshot::channel();
        let ask = Ask { request, fds: fds.into_vec(), answer };
        let sent = self.switches.borrow().get(name).is_some_and(|switch| switch.asks.send(ask).is_ok());
        if !sent {
            return Err(format!("switch {name} is not there just now: see domus why"));
        }
        let _told = waiting(|| format!("switch {name} to answer"));
        match timeout(PATIENCE * 2, answered).await {
            Ok(Ok(answer)) => answer.map_err(|why| format!("switch {name}: {why}")),
            _ => Err(format!("switch {name} does not answer: it is being started, or stands still")),
        }
    }

    /// Takes a NIC out; with the last one the switch ends, and is gone when this returns.
    pub async fn unplug(&self, name: &SwitchName, port: Port) {
        let ended = {
            let mut switches = self.switches.borrow_mut();
            let Some(switch) = switches.get_mut(name) else { return };
            switch.ports.remove(&port);
            if switch.ports.is_empty() { switches.remove(name) } else { None }
        };
        match ended {
            Some(Switch { asks, task, .. }) => {
                // The task ends the process when nobody can ask it anything any more.
                drop(asks);
                let _ = task.await;
            }
            None => {
                let (domain, nic) = port;
                let _ = self.ask(name, SwitchRequest::Unplug { domain, nic }, Outgoing::default()).await;
            }
        }
    }
}
