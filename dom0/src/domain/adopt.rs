//! A domain that a dom0 before this one has left goes on under this one.
//!
//! ```text
//!   record ─▶ processes that live, by pid and start time ─▶ greeted at their control sockets
//!          ─▶ the runner is asked how it is ─┬─ it runs: what is missing is started again, the last wish is repeated
//!                                            └─ it has stopped, or is gone: on_poweroff, on_reboot, on_crash
//! ```
//!
//! Nothing of a running guest is touched: its backends have their own connections to its runner. What dom0 alone has open for
//! backends to come (images, taps) is opened again when one is needed.

use std::time::Duration;

use domus_startup::control::chain;
use serde::de::DeserializeOwned;
use shared_abi::Role;
use shared_abi::control::{RunnerReply, RunnerRequest, RunnerStatus};

use crate::device::block::open::Disks;
use crate::device::devices::Devices;
use crate::device::net::attach::Nets;
use crate::domain::Domain;
use crate::domain::events::Kind;
use crate::domain::lifecycle::{Action, Event, Next, State};
use crate::domain::machine::attempt::Lost;
use crate::domain::machine::backend::Backend;
use crate::domain::machine::build::{Runner, console, owner, roles};
use crate::domain::record::Record;
use crate::host::proc::ProcessId;
use crate::process::Process;
use crate::process::link::{ANSWER, ChildError, ChildLink};

/// How something is lost that died while there was no dom0.
const MEANWHILE: &str = "ended while dom0 was away";

/// Within this time a process that lives greets a dom0 that comes back: it may be waiting for a backend.
const PATIENCE: Duration = Duration::from_secs(60);

impl Domain {
    /// Takes up the domain where the dom0 before this one stopped.
    pub(super) async fn adopt(&mut self, record: Record) {
        let mut found: Vec<(Role, Process)> = Vec::new();
        for process in &record.processes {
            found.extend(self.find(process.known).await.map(|living| (process.role, living)));
        }
        let mut passts = Vec::new();
        for (nic, known) in &record.passts {
            passts.extend(self.find(*known).await.map(|living| (nic.clone(), living)));
        }
        let owner = owner(&self.config, record.domid, &self.dir);
        let nets = Nets::taken_over(&owner, &self.config.nets, &record.nics, &self.commons.providers, passts);
        let nets = nets.unwrap_or_else(|error| {
            self.say(&format!("cannot open what its NICs keep: {error}"));
            Nets::default()
        });
        let disks =
            Disks::taken_over(&self.config.file, &self.config.disks, &record.disks, record.disk_limits);
        self.incarnation.domid = Some(record.domid);
        self.incarnation.kept = Some(Devices::new(disks, nets, console(&self.config, &self.dir)).into());
        let next = match record.state {
            State::Building | State::Dying(Next::Restart) if record.created => Next::Restart,
            State::Building | State::Dying(_) | State::Dead => Next::Dead,
            State::Preserved { .. } => return self.adopt_preserved(found, record.state).await,
            State::Running | State::Paused | State::Stopping(_) => {
                return self.adopt_running(found, record.state).await;
            }
        };
        self.say(match next {
            Next::Restart => "was being started again when dom0 ended: it is begun anew",
            Next::Dead => "was being built or removed when dom0 ended: it is removed",
        });
        for (role, process) in found {
            match role {
                Role::Runner => self.incarnation.runner = Some(Runner { process, link: None }),
                role => self.incarnation.backends.push(Backend::new(role, process)),
            }
        }
        self.enter(State::Dying(next), vec![Action::TearDown]);
    }

    /// A process that is written down, if it lives.
    async fn find(&self, known: ProcessId) -> Option<Process> {
        let mut process = Process::found(known)?;
        self.commons.providers.supervisor.adopt(&mut process).await;
        Some(process)
    }

    /// Only its console is there.
    async fn adopt_preserved(&mut self, found: Vec<(Role, Process)>, state: State) {
        for (role, process) in found.into_iter().filter(|(role, _)| *role == Role::Console) {
            self.adopt_backend(role, process).await;
        }
        self.enter(state, vec![]);
    }

    async fn adopt_running(&mut self, mut found: Vec<(Role, Process)>, state: State) {
        let runner = found.iter().position(|(role, _)| *role == Role::Runner);
        let runner = runner.map(|at| found.swap_remove(at).1);
        let status = match runner {
            Some(process) => match self.adopt_runner(process).await {
                Ok(status) => Some(status),
                Err((process, error)) => return self.abandon(process, found, &chain(&error)),
            },
            None => None,
        };
        for (role, process) in found {
            self.adopt_backend(role, process).await;
        }
        let Some(status) = status else {
            self.enter(state, vec![]);
            return self.runner_ended(MEANWHILE);
        };
        if let Some(reason) = status.stopped {
            self.ended(&reason);
            self.enter(state, vec![]);
            return self.feed(&Event::Stopped(reason));
        }
        // The last wish is repeated: it may not have reached the runner.
        let again = match state {
            State::Paused => Action::Pause,
            State::Stopping(_) => Action::PressPowerButton,
            _ => Action::Resume,
        };
        self.enter(state, vec![again]);
        let there = |role: &Role| self.incarnation.backends.iter().any(|backend| backend.role == *role);
        let missing: Vec<_> =
            roles(&self.config).into_iter().filter(|role| *role != Role::Runner && !there(role)).collect();
        for role in missing {
            self.lost(Lost::Own(role), MEANWHILE.into(), 0, Default::default());
        }
        for device in status.without_backend {
            self.device_lost(&device);
        }
        let without = self.incarnation.kept.as_ref().map(|kept| kept.nets.borrow().without_passt());
        for nic in without.unwrap_or_default() {
            self.passt_lost(nic, MEANWHILE.into());
        }
        self.learn_sizes().await;
        self.say("goes on under this dom0");
        self.happened(Kind::Adopted, None);
    }

    /// Greets the runner and asks how it is; the error comes with the process, which is not to be harmed.
    async fn adopt_runner(&mut self, process: Process) -> Result<RunnerStatus, (Process, ChildError)> {
        let link = self.greet(Role::Runner, &process).await;
        let mut link = match link {
            Ok(link) => link,
            Err(error) => return Err((process, error)),
        };
        let asked = async {
            link.send(&RunnerRequest::Status, &[]).await?;
            link.answer(&process, ANSWER, "said how it is").await
        };
        match asked.await {
            Ok(RunnerReply::Status(status)) => {
                self.incarnation.runner = Some(Runner { process, link: Some(link) });
                Ok(status)
            }
            Ok(other) => {
                let why = format!("answered with {other:?}");
                Err((process, ChildError::Failed { role: Role::Runner, why }))
            }
            Err(error) => Err((process, error)),
        }
    }

    /// Greets a backend. One that cannot be talked to ends, and another one takes its place.
    async fn adopt_backend(&mut self, role: Role, process: Process) {
        match self.greet(role, &process).await {
            Ok(link) => {
                let mut backend = Backend::new(role, process);
                backend.link = Some(link);
                self.incarnation.backends.push(backend);
            }
            Err(error) => {
                self.say(&chain(&error));
                process.kill();
                process.reap().await;
            }
        }
    }

    async fn greet<A: DeserializeOwned, E: DeserializeOwned>(
        &self,
        role: Role,
        process: &Process,
    ) -> Result<ChildLink<A, E>, ChildError> {
        ChildLink::find(role, &self.dir.controls(role), process, PATIENCE).await
    }

    /// Leaves all processes to themselves: the guest runs on, and the domain can be destroyed.
    fn abandon(&mut self, runner: Process, backends: Vec<(Role, Process)>, why: &str) {
        self.say(&format!("cannot be taken over: {why}: it runs on as it is; domus destroy removes it"));
        runner.leave();
        backends.into_iter().for_each(|(_, process)| process.leave());
        let kept = self.incarnation.kept.take();
        if let Some(kept) = kept {
            kept.nets.borrow_mut().leave();
        }
        self.state = State::Dead;
        self.abandoned = true;
    }
}
