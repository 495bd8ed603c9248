//! Networks that dom0 manages: defined in files, started and stopped, used by NICs by name.
//!
//! ```text
//! /etc/domus/networks/NAME.json    the definition
//! /run/domus/networks/NAME/        while it runs: network.json (the definition at its start), leases, dnsmasq.json
//! ```
//!
//! A network belongs to the dom0 service. A `domus run` uses a running network and starts none. A dom0 service that
//! replaces a killed one takes its networks over.

mod definition;
mod dnsmasq;
mod error;
mod keeper;
mod made;
mod pins;
mod rules;
mod running;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use shared_abi::{MacAddress, NetworkName};
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::time::timeout;

pub use definition::{Forward, Network, NetworkFile, parse};
pub use dnsmasq::{Lease, leases};
pub use keeper::{Change, Fault};
pub use pins::{Addresses, Asks};
pub use running::Means;

use crate::host::links::Links;
use crate::host::{files, slow};
use crate::network::managed::pins::Pins;
use crate::network::managed::running::Running;
use crate::value::place::ConfigError;

/// The service is ready within this time, whether the networks that start by themselves are or not.
const BEGIN: Duration = Duration::from_secs(5);

pub use error::NetworkError;

/// A network as it is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// What it is, or was when it was started.
    pub network: Rc<Network>,
    /// It runs.
    pub runs: bool,
    /// What is amiss with it.
    pub faults: Vec<Fault>,
}

/// The networks of one dom0. Used by one thread. What is done to one network waits for what is done to that one, and
/// for no other.
pub struct Networks {
    /// Where they are defined.
    defined: PathBuf,
    /// Where those that run keep their state.
    run: PathBuf,
    /// What starts and keeps them; none in a command, which starts no network.
    means: Option<Means>,
    running: RefCell<BTreeMap<NetworkName, Entry>>,
    locks: RefCell<BTreeMap<NetworkName, Arc<Mutex<()>>>>,
}

/// A network that is there.
enum Entry {
    /// It is being started.
    Starts(Rc<Network>),
    /// It runs.
    Runs(Rc<Running>),
    /// It is being stopped.
    Stops(Rc<Network>),
}

impl Entry {
    fn network(&self) -> &Rc<Network> {
        match self {
            Self::Starts(network) | Self::Stops(network) => network,
            Self::Runs(running) => &running.network,
        }
    }
}

impl Networks {
    /// The networks of the service.
    pub fn of_service(config_dir: &Path, run_dir: &Path, means: Means) -> Self {
        Self::new(config_dir, run_dir, Some(means))
    }

    /// The networks that a service runs, for somebody who is none.
    pub fn of_others(config_dir: &Path, run_dir: &Path) -> Self {
        Self::new(config_dir, run_dir, None)
    }

    fn new(config_dir: &Path, run_dir: &Path, means: Option<Means>) -> Self {
        let (defined, run) = (config_dir.join("networks"), run_dir.join("networks"));
        Self { defined, run, means, running: RefCell::default(), locks: RefCell::default() }
    }

    /// Waits for whatever is done to a network, and has others wait.
    async fn alone(&self, name: &NetworkName) -> OwnedMutexGuard<()> {
        let lock = {
            let mut locks = self.locks.borrow_mut();
            locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            locks.entry(name.clone()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// The network, if it runs.
    fn running(&self, name: &NetworkName) -> Option<Rc<Running>> {
        match self.running.borrow().get(name) {
            Some(Entry::Runs(running)) => Some(running.clone()),
            _ => None,
        }
    }

    fn file(&self, name: &NetworkName) -> PathBuf {
        self.defined.join(format!("{name}.json"))
    }

    /// Reads a definition, which may lie on somebody's storage.
    async fn load(&self, file: &Path) -> Result<Network, NetworkError> {
        let loaded = slow::with(file, |file| {
            // A pipe would keep whoever opens it.
            if file.metadata().is_ok_and(|meta| !meta.is_file()) {
                let problem = "is no regular file: name a network's definition so";
                return Err(ConfigError::new(file, "", problem).into());
            }
            let (text, _) = domus_api::read_config(file).map_err(ConfigError::from)?;
            Ok(definition::parse(file, &text)?)
        });
        loaded.await.map_err(|slow| ConfigError::new(file, "", slow))?
    }

    /// The network of this name, as it is defined.
    ///
    /// # Errors
    /// [`NetworkError::NoSuch`], or that its file is refused.
    pub async fn defined(&self, name: &NetworkName) -> Result<Network, NetworkError> {
        let file = self.file(name);
        let is_there = slow::with(&file, |file| file.symlink_metadata().is_ok()).await;
        if is_there == Ok(false) {
            return Err(NetworkError::NoSuch(name.to_string()));
        }
        self.load(&file).await
    }

    /// Defines a network, or another one in its place; one that runs goes on as it was started.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn define(&self, file: &Path, text: &str) -> Result<NetworkName, NetworkError> {
        let network = definition::parse(file, text)?;
        let file = self.file(&network.name);
        let io = |source| NetworkError::Io {
            network: network.name.clone(),
            act: format!("write {}", file.display()),
            source,
        };
        let (text, aside) = (text.to_owned(), self.defined.join(format!(".{}.json", network.name)));
        let written = slow::with(&file, move |file| {
            if let Some(folder) = file.parent() {
                DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
            }
            fs::write(&aside, text)?;
            fs::File::open(&aside)?.sync_all()?;
            fs::rename(&aside, file)
        });
        written.await.unwrap_or_else(|slow| Err(io::Error::other(slow))).map_err(io)?;
        Ok(network.name)
    }

    /// Forgets a network that does not run.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn undefine(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let _alone = self.alone(name).await;
        if self.running.borrow().contains_key(name) {
            return Err(NetworkError::Runs(name.clone()));
        }
        let removed = slow::with(&self.file(name), |file| fs::remove_file(file)).await;
        match removed.unwrap_or_else(|slow| Err(io::Error::other(slow))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                Err(NetworkError::NoSuch(name.to_string()))
            }
            other => other.map_err(|source| NetworkError::Io {
                network: name.clone(),
                act: "remove its definition".into(),
                source,
            }),
        }
    }

    /// Starts a network; one that runs is repaired where that is needed. The start goes on to its end even if the
    /// caller gives up, so that a domain destroyed while it is built leaves no half-made network.
    ///
    /// # Errors
    /// [`NetworkError`]; a failed start leaves nothing behind.
    pub async fn start(self: &Rc<Self>, name: &NetworkName) -> Result<(), NetworkError> {
        let (networks, own) = (self.clone(), name.clone());
        let started = tokio::task::spawn_local(async move { networks.start_now(&own).await }).await;
        started.unwrap_or_else(|error| {
            let (network, act) = (name.clone(), "be started".to_owned());
            Err(NetworkError::Io { network, act, source: io::Error::other(error) })
        })
    }

    async fn start_now(&self, name: &NetworkName) -> Result<(), NetworkError> {
        let _alone = self.alone(name).await;
        if let Some(running) = self.running(name) {
            return running.repair().await;
        }
        let network = Rc::new(self.defined(name).await?);
        self.room_for(&network)?;
        self.bring_up(network).await
    }

    /// Whether a network can be beside those that are there.
    fn room_for(&self, network: &Network) -> Result<(), NetworkError> {
        let running = self.running.borrow();
        let mut others = running.values().map(Entry::network);
        if let Some(other) = others.clone().find(|other| other.bridge == network.bridge) {
            crate::log::stderr::line(format_args!("network {}: {} has the bridge", network.name, other.name));
            return Err(NetworkError::BridgeTaken(network.name.clone(), network.bridge.clone()));
        }
        match others.find(|other| other.overlaps(network)) {
            Some(other) => Err(NetworkError::Overlaps(network.name.clone(), other.name.clone())),
            None => Ok(()),
        }
    }

    /// Makes a network, which is one of those that are there from the first moment.
    async fn bring_up(&self, network: Rc<Network>) -> Result<(), NetworkError> {
        let name = network.name.clone();
        self.running.borrow_mut().insert(name.clone(), Entry::Starts(network.clone()));
        let made = self.make(network).await;
        let mut running = self.running.borrow_mut();
        match made {
            Ok(made) => {
                running.insert(name, Entry::Runs(Rc::new(made)));
                Ok(())
            }
            Err(error) => {
                running.remove(&name);
                Err(error)
            }
        }
    }

    async fn make(&self, network: Rc<Network>) -> Result<Running, NetworkError> {
        let means = self.means.clone().ok_or_else(|| NetworkError::NoService(network.name.clone()))?;
        let dir = self.run.join(network.name.as_str());
        let file = NetworkFile::from(&*network);
        let written = DirBuilder::new().recursive(true).mode(0o755).create(&dir).and_then(|()| {
            let text = serde_json::to_string(&file)?;
            fs::write(dir.join("network.json"), text)
        });
        written.map_err(|source| NetworkError::Io {
            network: network.name.clone(),
            act: format!("write to {}", dir.display()),
            source,
        })?;
        Running::start(network, dir, means).await
    }

    /// Stops a network and removes what it was made of. Without `anyway` none that has NICs on it.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn stop(&self, name: &NetworkName, anyway: bool) -> Result<(), NetworkError> {
        let _alone = self.alone(name).await;
        let Some(one) = self.running(name) else {
            return Err(match self.defined(name).await {
                Err(error @ NetworkError::NoSuch(_)) => error,
                _ => NetworkError::NotRunning(name.clone()),
            });
        };
        if !anyway {
            let ports = ports(&one.network.bridge).await;
            if !ports.is_empty() {
                return Err(NetworkError::InUse(name.clone(), ports.join(", ")));
            }
        }
        self.take_down(one).await;
        Ok(())
    }

    async fn take_down(&self, one: Rc<Running>) {
        let network = one.network.clone();
        let name = &network.name;
        self.running.borrow_mut().insert(name.clone(), Entry::Stops(network.clone()));
        one.stop().await;
        if let Some(means) = &self.means {
            means.supervisor.release_other(&format!("network {name}")).await;
        }
        self.running.borrow_mut().remove(name);
    }

    /// Stops all networks.
    pub async fn stop_all(&self) {
        let all: Vec<_> = self.running.borrow().keys().cloned().collect();
        join_all(all.iter().map(|name| async {
            let _alone = self.alone(name).await;
            if let Some(one) = self.running(name) {
                self.take_down(one).await;
            }
        }))
        .await;
    }

    /// All networks that are defined or run.
    pub async fn list(&self) -> Vec<Shown> {
        let mut all: BTreeMap<NetworkName, Shown> = BTreeMap::new();
        let files = slow::with(&self.defined, |folder| files::json_files(folder, usize::MAX))
            .await
            .unwrap_or_default();
        for loaded in join_all(files.iter().map(|file| self.load(file))).await {
            match loaded {
                Ok(network) => {
                    let (name, network) = (network.name.clone(), Rc::new(network));
                    all.insert(name, Shown { network, runs: false, faults: Vec::new() });
                }
                Err(error) => crate::log::stderr::line(format_args!("{error}")),
            }
        }
        for (name, entry) in &*self.running.borrow() {
            if let Entry::Runs(one) = entry {
                let shown = Shown { network: one.network.clone(), runs: true, faults: one.faults() };
                all.insert(name.clone(), shown);
            }
        }
        all.into_values().collect()
    }

    /// What is amiss with a network that runs.
    pub fn faults(&self, name: &NetworkName) -> Vec<Fault> {
        self.running(name).map_or_else(Vec::new, |one| one.faults())
    }

    /// The leases of a running network.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn leases(&self, name: &NetworkName) -> Result<Vec<Lease>, NetworkError> {
        match self.running(name) {
            Some(one) => Ok(one.leases().await),
            None => {
                self.defined(name).await?;
                Err(NetworkError::NotRunning(name.clone()))
            }
        }
    }

    /// What the guest of a NIC on a network may call itself, from now on until [`Self::unpin`].
    ///
    /// # Errors
    /// [`NetworkError`]: it does not run, or has no address left.
    pub async fn pin(&self, name: &NetworkName, asks: Asks<'_>) -> Result<Addresses, NetworkError> {
        if self.means.is_some() {
            // Its bridge is there before it runs.
            let _alone = self.alone(name).await;
            let one = self.running(name).ok_or_else(|| NetworkError::NotRunning(name.clone()))?;
            return one.pin(asks).await;
        }
        // A command gives no addresses, but knows which are others'.
        let file = self.run.join(name.as_str()).join("network.json");
        let network = self.load(&file).await.map_err(|_| NetworkError::NotRunning(name.clone()))?;
        let fixed = network.hosts.iter().find(|host| host.mac == asks.mac);
        Ok(pins::addresses(&network, fixed.map(|host| host.ip), network.mac()?))
    }

    /// The NIC is gone.
    pub fn unpin(&self, name: &NetworkName, mac: MacAddress) {
        self.change_pins(name, |pins| pins.release(mac));
    }

    /// The NIC is a domain's that a dom0 before this one has made. Those that none has are forgotten by
    /// [`Self::settle`].
    pub fn claim(&self, name: &NetworkName, mac: MacAddress) {
        self.change_pins(name, |pins| pins.claim(mac));
    }

    /// All domains that a dom0 before this one has left have claimed their NICs.
    pub fn settle(&self) {
        let all: Vec<_> = self.running.borrow().keys().cloned().collect();
        all.iter().for_each(|name| self.change_pins(name, Pins::settle));
    }

    fn change_pins(&self, name: &NetworkName, change: impl FnOnce(&mut Pins)) {
        if let Some(one) = self.running(name)
            && let Err(error) = one.change_pins(change)
        {
            crate::log::stderr::line(format_args!("{}", domus_startup::control::chain(&error)));
        }
    }

    /// Looks whether a NIC could be put on the network, without an effect.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn check(&self, name: &NetworkName) -> Result<(), NetworkError> {
        if self.run.join(name.as_str()).join("network.json").exists() {
            return Ok(());
        }
        match self.defined(name).await? {
            network if network.autostart => Ok(()),
            _ => Err(NetworkError::NotRunning(name.clone())),
        }
    }

    /// The bridge of a network, which is started for it if its definition allows.
    ///
    /// # Errors
    /// [`NetworkError`].
    pub async fn bridge(self: &Rc<Self>, name: &NetworkName) -> Result<String, NetworkError> {
        if let Some(one) = self.running(name) {
            return Ok(one.network.bridge.clone());
        }
        if self.means.is_none() {
            // What a service has started is written down; one that was killed leaves it too, and the bridge with it.
            let file = self.run.join(name.as_str()).join("network.json");
            return match file.exists() {
                true => Ok(self.load(&file).await?.bridge),
                false => Err(NetworkError::NoService(name.clone())),
            };
        }
        let network = self.defined(name).await?;
        if !network.autostart {
            return Err(NetworkError::NotRunning(name.clone()));
        }
        self.start(name).await?;
        Ok(network.bridge)
    }

    /// Takes over what a service that was killed has left, and starts what is to be started without being asked for.
    /// Failures are said: the service runs all the same.
    pub async fn begin(self: &Rc<Self>) {
        let left = fs::read_dir(&self.run).into_iter().flatten().flatten();
        join_all(left.map(|entry| async move {
            let taken = async {
                let network = self.load(&entry.path().join("network.json")).await?;
                let _alone = self.alone(&network.name).await;
                self.bring_up(Rc::new(network)).await
            };
            match taken.await {
                Ok(()) => {
                    crate::log::stderr::line(format_args!(
                        "network {}: goes on under this dom0",
                        entry.file_name().display()
                    ));
                }
                Err(error) => {
                    crate::log::stderr::line(format_args!("{}", domus_startup::control::chain(&error)));
                    // What was made is removed, and with it the record of what it was.
                    let _ = fs::remove_dir_all(entry.path());
                }
            }
        }))
        .await;
        let networks = self.clone();
        let started = tokio::task::spawn_local(async move { networks.start_wanted().await });
        // A definition on storage that does not answer holds up nobody but its network.
        let _ = timeout(BEGIN, started).await;
    }

    /// Starts those that are to be started without being asked for.
    async fn start_wanted(self: &Rc<Self>) {
        let all = self.list().await;
        let wanted = all.into_iter().filter(|shown| shown.network.autostart && !shown.runs);
        join_all(wanted.map(|shown| async move {
            if let Err(error) = self.start(&shown.network.name).await {
                crate::log::stderr::line(format_args!("{}", domus_startup::control::chain(&error)));
            }
        }))
        .await;
    }
}

/// The names of a bridge's ports.
async fn ports(bridge: &str) -> Vec<String> {
    let look = async {
        let links = Links::open()?;
        let Some(bridge) = links.find(bridge).await? else { return Ok(Vec::new()) };
        let all = links.named("").await?;
        let ports = all.into_iter().filter(|link| link.bridge == Some(bridge.index));
        Ok::<_, io::Error>(ports.map(|link| link.name).collect())
    };
    look.await.unwrap_or_default()
}
