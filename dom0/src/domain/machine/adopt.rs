//! The machine that a dom0 before this one has left: its processes are found and greeted, and nothing of them is
//! touched.
//!
//! Backends have their own connections to the runner. What dom0 alone has open for backends to come (images, taps) is
//! opened again when one is needed.

use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use futures_util::future::join_all;
use serde::de::DeserializeOwned;
use shared_abi::control::{RunnerReply, RunnerRequest, RunnerStatus};
use shared_abi::{DeviceId, Role};

use crate::device::loss::Loss;
use crate::domain::directory;
use crate::domain::machine::Machine;
use crate::domain::machine::backend::BackendProcess;
use crate::domain::machine::runner::Runner;
use crate::domain::record::ProcessRecord;
use crate::process::Process;
use crate::process::link::{ChildError, ChildLink, unexpected};

/// How something is lost that died while there was no dom0.
pub const MEANWHILE: &str = "ended while dom0 was away";

/// Within this time a runner that lives greets a dom0 that comes back: it may be waiting for a backend.
const PATIENCE: Duration = Duration::from_secs(60);

/// Within this time a backend does, which waits for nobody there.
const BACKENDS: Duration = Duration::from_secs(10);

/// Processes of a machine that live, and that nobody has greeted yet.
#[derive(Debug)]
pub struct Found(Vec<(Role, Process)>);

impl Machine {
    /// Finds the processes that were written down, and the devices' helpers.
    pub async fn find(&self, processes: &[ProcessRecord]) -> Found {
        let mut found = Vec::new();
        for ProcessRecord { role, known } in processes {
            if let Some(mut process) = Process::found(*known) {
                self.from.supervisor.adopt(&mut process).await;
                found.push((*role, process));
            }
        }
        for class in self.devices.all() {
            class.adopt(&self.owner, &self.from).await;
        }
        Found(found)
    }

    /// Takes them as they are, to be ended.
    pub fn take(&mut self, Found(found): Found) {
        for (role, process) in found {
            match role == Role::Runner {
                true => self.runner = Some(Runner::new(process, self.destroyed.clone())),
                false => self.backends.push(BackendProcess::new(role, process, self.destroyed.clone())),
            }
        }
    }

    /// Greets the console, all that is left of a machine that has stopped.
    pub async fn greet_console(&mut self, Found(found): Found) {
        self.greet_backends(found.into_iter().filter(|(role, _)| *role == Role::Console).collect()).await;
    }

    /// Greets all of them. Returns what the runner says of itself, none if it is gone.
    ///
    /// # Errors
    /// The runner lives and cannot be talked to: nothing of the machine is harmed, and nothing can be done with it. If
    /// the domain [is destroyed](Self::is_destroyed) meanwhile, all of it is here to be ended.
    pub async fn greet(&mut self, Found(mut found): Found) -> Result<Option<RunnerStatus>, ChildError> {
        let runner = found.iter().position(|(role, _)| *role == Role::Runner);
        let runner = runner.map(|at| found.swap_remove(at).1);
        let status = match runner {
            None => None,
            Some(process) => match self.greet_runner(process).await {
                Ok(status) => Some(status),
                Err((runner, error)) if self.is_destroyed() => {
                    found.push((Role::Runner, runner));
                    self.take(Found(found));
                    return Err(error);
                }
                Err((runner, error)) => {
                    runner.leave();
                    found.into_iter().for_each(|(_, process)| process.leave());
                    self.devices.all().iter().for_each(|class| class.leave());
                    return Err(error);
                }
            },
        };
        self.greet_backends(found).await;
        Ok(status)
    }

    /// An operator destroys the domain.
    pub fn is_destroyed(&self) -> bool {
        *self.destroyed.borrow()
    }

    /// Begins to have everything again that has gone meanwhile: `without_backend` is what the runner says.
    pub fn go_on(&mut self, without_backend: &[DeviceId]) {
        let there = |role: &Role| self.backends.iter().any(|backend| backend.role == *role);
        let missing: Vec<_> = self.devices.roles().filter(|role| !there(role)).collect();
        for role in missing {
            self.lost(Loss::Process(role), MEANWHILE.into(), 0, Rc::default());
        }
        for device in without_backend {
            self.device_lost(device);
        }
        let helpers: Vec<_> = self.devices.all().iter().flat_map(|class| class.missing()).collect();
        for loss in helpers {
            self.helper_lost(loss, MEANWHILE.into());
        }
        self.losses.unmeasured = true;
    }

    /// Greets the runner and asks how it is; the error comes with the process, which is not to be harmed.
    async fn greet_runner(&mut self, process: Process) -> Result<RunnerStatus, (Process, ChildError)> {
        let mut link = match self.find_link(Role::Runner, &process, PATIENCE).await {
            Ok(link) => link,
            Err(error) => return Err((process, error)),
        };
        let mut destroyed = self.destroyed.clone();
        let asked = link.ask(
            &process,
            &RunnerRequest::Status,
            Vec::new(),
            (PATIENCE, "said how it is"),
            &mut destroyed,
        );
        match asked.await {
            Ok(RunnerReply::Status(status)) => {
                let mut runner = Runner::new(process, self.destroyed.clone());
                runner.link = Some(link);
                self.runner = Some(runner);
                Ok(status)
            }
            Ok(other) => Err((process, unexpected(Role::Runner, &other))),
            Err(error) => Err((process, error)),
        }
    }

    /// Greets backends, all at once. One that cannot be talked to ends, and another one takes its place.
    async fn greet_backends(&mut self, found: Vec<(Role, Process)>) {
        let greeted = found.into_iter().map(|(role, process)| {
            let machine = &*self;
            async move {
                let link = machine.find_link(role, &process, BACKENDS).await;
                (role, process, link)
            }
        });
        for (role, process, link) in join_all(greeted).await {
            match link {
                Ok(link) => {
                    let mut backend = BackendProcess::new(role, process, self.destroyed.clone());
                    backend.link = Some(link);
                    self.backends.push(backend);
                }
                Err(error) => {
                    self.say(chain(&error));
                    process.kill();
                    tokio::task::spawn_local(process.reap());
                }
            }
        }
    }

    async fn find_link<A: DeserializeOwned, E: DeserializeOwned>(
        &self,
        role: Role,
        process: &Process,
        patience: Duration,
    ) -> Result<ChildLink<A, E>, ChildError> {
        let controls = directory::controls(&self.owner.directory, role);
        let mut destroyed = self.destroyed.clone();
        tokio::select! {
            biased;
            Ok(_) = destroyed.wait_for(|destroyed| *destroyed) => {
                Err(ChildError::Failed { role, why: "the domain is being destroyed".into() })
            }
            found = ChildLink::find(role, &controls, process, patience) => found,
        }
    }
}
