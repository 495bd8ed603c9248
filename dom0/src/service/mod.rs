//! All domains of one dom0: their names, their tasks, and the operations on them.

pub mod autostart;
pub mod notify;
pub mod replace;

use std::cell::{Cell, RefCell};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::LocalBoxFuture;
use nix::fcntl::Flock;
use shared_abi::{DomId, DomainName};
use tokio::sync::Notify;

use crate::config::{self, DomainConfig};
use crate::device::net::tap;
use crate::domain::directory::DomainDir;
use crate::domain::environment::Environment;
use crate::domain::error::StartError;
use crate::domain::lifecycle::{Event, Life, State};
use crate::domain::record::{Record, Source};
use crate::domain::{Domain, Handle, View};
use crate::host::links::Links;
use crate::host::run_dir::{RunDir, RunDirError};
use crate::host::{memory, orphans};
use crate::network::managed::Networks;
use crate::value::place::ConfigError;

/// Why an operator's wish was not fulfilled.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// There is no such domain.
    #[error("there is no domain \"{0}\": see domus list")]
    NoSuchDomain(String),
    /// The domain's state does not allow it, or its runner has refused.
    #[error("{name}: {why}")]
    Refused {
        /// Which domain.
        name: DomainName,
        /// One line.
        why: String,
    },
    /// It was left by a dom0 that was killed, and all that can be done is to destroy it.
    #[error("{0}: was left by a dom0 before this one, and could not be taken over: it can only be destroyed")]
    LeftOver(DomainName),
}

/// The domains of one dom0. Used by one thread.
pub struct Dom0 {
    env: Rc<Environment>,
    /// Each with its own name, which may change.
    domains: RefCell<Vec<Rc<Handle>>>,
    stopping: Cell<bool>,
    /// Somebody wants the installed program in this one's place.
    replacement: Notify,
}

impl Dom0 {
    /// A dom0 without domains.
    pub fn new(env: Environment) -> Rc<Self> {
        Rc::new(Self {
            env: Rc::new(env),
            domains: RefCell::default(),
            stopping: Cell::new(false),
            replacement: Notify::new(),
        })
    }

    /// Its run directory.
    pub fn run_dir(&self) -> &RunDir {
        &self.env.run
    }

    /// Has [`Self::succeeded`] return.
    pub fn succeed(&self) {
        self.replacement.notify_one();
    }

    /// Waits until the installed program is to take this one's place.
    pub async fn succeeded(&self) {
        self.replacement.notified().await;
    }

    /// What its domains have in common.
    pub fn env(&self) -> &Environment {
        &self.env
    }

    /// Its networks.
    pub fn networks(&self) -> &Rc<Networks> {
        &self.env.providers.networks
    }

    /// Takes the run directory for a service: no other dom0 service runs there while the result lives.
    ///
    /// # Errors
    /// [`RunDirError::Taken`], which names the other.
    pub fn lock(&self) -> Result<Flock<std::fs::File>, RunDirError> {
        self.env.run.lock()
    }

    /// Builds and starts a domain; returns when its vCPUs run. Must be called in a `LocalSet`.
    ///
    /// # Errors
    /// [`StartError`]; nothing of it is left.
    pub async fn create(self: &Rc<Self>, config: DomainConfig) -> Result<DomId, StartError> {
        self.create_with(config, Life::new()).await
    }

    /// The same for a domain that is to run on this host: if it cannot be started now, that is tried until it can be.
    ///
    /// # Errors
    /// [`StartError`]: its first attempt has failed, or its name is taken and there is none.
    pub async fn keep(self: &Rc<Self>, config: DomainConfig) -> Result<DomId, StartError> {
        self.create_with(config, Life::lasting()).await
    }

    async fn create_with(self: &Rc<Self>, config: DomainConfig, life: Life) -> Result<DomId, StartError> {
        let name = config.name.clone();
        // One that is to run whatever comes is not refused for what others have: it ran so before.
        if !life.lasts() {
            memory::check_sum(&config.place("memory"), config.memory, self.promised())?;
        }
        if let Some(other) = self.name_in_use(&name) {
            let problem = format!(
                "\"{name}\" is what the processes of \"{other}\" are still called, which was renamed: reboot or destroy it, or \
                 change the name"
            );
            return Err(ConfigError::new(&config.file, "name", problem).into());
        }
        let dir = self.env.run.claim(&name).map_err(|error| match error {
            error @ (RunDirError::NameTaken { .. } | RunDirError::LeftOver(_)) => {
                ConfigError::new(&config.file, "name", error).into()
            }
            other => StartError::RunDir(other),
        })?;
        if self.stopping.get() {
            return Err(StartError::Cancelled);
        }
        let (handle, inbox, view) = Handle::new(name, &config, dir.path());
        let (domain, created) = Domain::new((config, life), dir, self.env.clone(), inbox, view);
        self.begin(domain, handle);
        created.await.unwrap_or(Err(StartError::Cancelled))
    }

    /// Takes over the switches and domains of the service before this one, and ends the processes that it did not
    /// record. Must be called in a `LocalSet`, by the service that holds the [lock](Self::lock), before anything is
    /// created.
    pub async fn adopt(self: &Rc<Self>) {
        self.env.providers.switches.begin();
        // All at once: each may wait for what a dom0 before this one has left dying.
        let looks: Vec<_> = self
            .env
            .run
            .names()
            .map(|name| {
                let run = self.env.run.clone();
                let own = name.clone();
                (name, tokio::task::spawn_blocking(move || left_of(&run, &own)))
            })
            .collect();
        for (name, look) in looks {
            let (dir, record) = match look.await.unwrap_or_else(|error| Err(error.to_string())) {
                Ok(Some(left)) => left,
                Ok(None) => continue,
                Err(why) => {
                    crate::log::stderr::line(format_args!(
                        "{name}: cannot be taken over: what is written down of it: {why}: it runs on as it is; domus \
                         destroy removes it"
                    ));
                    continue;
                }
            };
            let Some(record) = record else { continue };
            let Source { file, directory, text } = &record.source;
            let config = match config::parse(file, directory, text) {
                Ok(config) => config,
                Err(error) => {
                    crate::log::stderr::line(format_args!(
                        "{name}: cannot be taken over: {error}: it runs on as it is; domus destroy removes it"
                    ));
                    dir.leave();
                    continue;
                }
            };
            // Its directory's name is the domain's, whatever the text says.
            let (handle, inbox, view) = Handle::new(name.clone(), &config, dir.path());
            let domain = Domain::inherited((name, config), dir, self.env.clone(), inbox, view, record);
            self.begin(domain, handle);
        }
        self.env.providers.switches.settle().await;
    }

    /// The RAM of all its domains in bytes; 0 where it may be more than the host's.
    pub fn promised(&self) -> u64 {
        let domains = self.domains.borrow();
        let memory = domains.iter().map(|handle| handle.view.borrow().memory);
        if self.env.overcommit { 0 } else { memory.fold(0, u64::saturating_add) }
    }

    /// The domain, of another name, whose processes have this one.
    fn name_in_use(&self, name: &DomainName) -> Option<DomainName> {
        self.domains.borrow().iter().find_map(|handle| {
            let view = handle.view.borrow();
            (view.name != *name && view.started_as == *name).then(|| view.name.clone())
        })
    }

    /// Gives a domain another name while it runs.
    ///
    /// # Errors
    /// [`AskError`]; it has its old name then.
    pub async fn rename(&self, name: &str, to: DomainName) -> Result<(), AskError> {
        let now = self.find(name)?.name();
        if now == to {
            return Ok(());
        }
        if self.name_in_use(&to).is_some_and(|other| other != now) || self.by_name(&to).is_some() {
            let why = format!("cannot be renamed: the name \"{to}\" is taken");
            return Err(AskError::Refused { name: now, why });
        }
        self.call(name, move |domain| async move { domain.rename(to) }.boxed_local()).await
    }

    /// Has a domain's task run until nothing of it is left.
    fn begin(self: &Rc<Self>, domain: Domain, handle: Handle) {
        let (registry, handle) = (self.clone(), Rc::new(handle));
        self.domains.borrow_mut().push(handle.clone());
        tokio::task::spawn_local(domain.run(move || {
            registry.domains.borrow_mut().retain(|other| !Rc::ptr_eq(other, &handle));
        }));
    }

    fn by_name(&self, name: &DomainName) -> Option<Rc<Handle>> {
        self.domains.borrow().iter().find(|handle| handle.view.borrow().name == *name).cloned()
    }

    /// Waits until no domain is on its way from one state to the next, for `patience` at most: a good moment to leave
    /// them.
    pub async fn quiet(&self, patience: Duration) {
        self.stopping.set(true);
        let moving = |view: &View| matches!(view.state, State::Building | State::Dying(_));
        let settled = async {
            while self.domains.borrow().iter().any(|handle| moving(&handle.view.borrow())) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let _ = tokio::time::timeout(patience, settled).await;
    }

    /// The domain of this name.
    ///
    /// # Errors
    /// [`AskError::NoSuchDomain`], [`AskError::LeftOver`].
    pub fn find(&self, name: &str) -> Result<Rc<Handle>, AskError> {
        let none = || AskError::NoSuchDomain(name.chars().take(64).collect());
        let found = match name.parse::<u32>() {
            // As with xl, a number names a domain too; no name is a number.
            Ok(domid) => {
                self.domains.borrow().iter().find(|handle| handle.view.borrow().domid.0 == domid).cloned()
            }
            _ => {
                let name: DomainName = name.parse().map_err(|_| none())?;
                let found = self.by_name(&name);
                if found.is_none() && self.leftovers().iter().any(|(left, _)| *left == name) {
                    return Err(AskError::LeftOver(name));
                }
                found
            }
        };
        found.ok_or_else(none)
    }

    /// What there is to see of every domain, by number.
    pub fn list(&self) -> Vec<View> {
        let domains = self.domains.borrow();
        let mut list: Vec<_> = domains.iter().map(|handle| handle.view.borrow().clone()).collect();
        list.sort_by_key(|view| view.domid);
        list
    }

    /// Puts an operator's wish to a domain and waits until it is done.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(&self, name: &str, event: Event) -> Result<(), AskError> {
        let handle = match self.find(name) {
            Err(AskError::LeftOver(name)) if event == Event::Destroy => {
                let refused =
                    |error: RunDirError| AskError::Refused { name: name.clone(), why: error.to_string() };
                let (run, left) = (self.env.run.clone(), name.clone());
                // On a thread of its own: it waits for the processes' end.
                let domid = self.leftovers().into_iter().find(|(left, _)| *left == name);
                let removed = tokio::task::spawn_blocking(move || run.remove_leftover(&left)).await;
                // A macvtap is no process's, and stays.
                if let (Some((_, Some(domid))), Ok(links)) = (domid, Links::open()) {
                    tap::remove_macvtaps(&format!("vif{domid}."), &links).await;
                }
                removed.map_or(Ok(()), |removed| removed.map(drop).map_err(refused))?;
                self.env.providers.supervisor.release(&name);
                return Ok(());
            }
            other => other?,
        };
        let is_destroy = event == Event::Destroy;
        match handle.ask(event).await {
            // It went away by itself meanwhile.
            None if is_destroy => Ok(()),
            done => told(&handle, done),
        }
    }

    /// Has a domain's task do something with its domain, and waits for what comes of it: see [`Handle::call`].
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn call<T: 'static>(
        &self,
        name: &str,
        verb: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Result<T, AskError> {
        let handle = self.find(name)?;
        told(&handle, handle.call(verb).await)
    }

    /// The same for what changes nothing: see [`Handle::question`].
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn question<T: 'static>(
        &self,
        name: &str,
        question: impl for<'a> FnOnce(&'a mut Domain) -> LocalBoxFuture<'a, Result<T, String>> + 'static,
    ) -> Result<T, AskError> {
        let handle = self.find(name)?;
        told(&handle, handle.question(question).await)
    }

    /// Waits until the machine that `name` has now has stopped, and says how.
    ///
    /// # Errors
    /// [`AskError::NoSuchDomain`].
    pub async fn wait(&self, name: &str) -> Result<View, AskError> {
        let handle = self.find(name)?;
        let mut view = handle.view.clone();
        let first = view.borrow().domid;
        let mut last = view.borrow().clone();
        loop {
            {
                let now = view.borrow_and_update();
                if now.domid != first || matches!(now.state, State::Preserved { .. } | State::Dead) {
                    return Ok(now.clone());
                }
                last.clone_from(&now);
            }
            if view.changed().await.is_err() {
                return Ok(View { state: State::Dead, ..last });
            }
        }
    }

    /// Shuts every domain down, for `grace` at most, and then destroys what is left. No domain can be created any more.
    pub async fn retire(&self, grace: Duration) {
        self.stopping.set(true);
        let names: Vec<_> = self.list().into_iter().map(|view| view.name).collect();
        let retired = names.iter().map(|name| async move {
            let off = async {
                self.ask(name.as_str(), Event::Retire).await?;
                self.wait(name.as_str()).await
            };
            let _ = tokio::time::timeout(grace, off).await;
            let _ = self.ask(name.as_str(), Event::Destroy).await;
        });
        futures_util::future::join_all(retired).await;
    }

    /// Destroys every domain now.
    pub async fn destroy_all(&self) {
        self.retire(Duration::ZERO).await;
    }

    /// Domains that a killed dom0 has left.
    pub fn leftovers(&self) -> Vec<(DomainName, Option<DomId>)> {
        self.env.run.leftovers(|name| self.by_name(name).is_some())
    }

    /// Where the console of a domain is.
    ///
    /// # Errors
    /// [`AskError`].
    pub fn console(&self, name: &str) -> Result<(Box<Path>, DomId), AskError> {
        let handle = self.find(name)?;
        let view = handle.view.borrow();
        Ok((view.console.as_path().into(), view.domid))
    }
}

/// What a dom0 before this one has left of a domain; processes that it did not record are ended. Blocks.
fn left_of(run: &RunDir, name: &DomainName) -> Result<Option<(DomainDir, Option<Record>)>, String> {
    let left = run.take_over(name)?;
    if let Some((dir, record)) = &left {
        let known: Vec<_> = record.iter().flat_map(Record::known).collect();
        orphans::end(dir.path(), &known);
    }
    Ok(left)
}

/// What a domain's task has told.
fn told<T>(handle: &Handle, done: Option<Result<T, String>>) -> Result<T, AskError> {
    let done = done.ok_or_else(|| AskError::NoSuchDomain(handle.name().to_string()))?;
    done.map_err(|why| AskError::Refused { name: handle.name(), why })
}
