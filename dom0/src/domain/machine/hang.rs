//! Children that live and do not answer. Silence is a failure with a deadline.
//!
//! Every [`BEAT`] a child that owes no answer is asked something whose answer nobody waits for. One that owes an answer
//! for longer than [`SILENT`] is told of in `domus why`; one of the domain's own backends is dealt with as
//! `on_backend_hang` says.

use std::time::Duration;

use domus_startup::control::chain;
use shared_abi::{Role, SwitchName};
use tokio::time::Instant;

use crate::config::OnHang;
use crate::domain::machine::backend::BackendProcess;
use crate::domain::machine::runner::Runner;
use crate::domain::machine::{Machine, Notice};
use crate::process::link::{LATE, SILENT};

/// So often every child is asked for a sign of life.
pub const BEAT: Duration = Duration::from_secs(3);

/// So often it is looked at them while one owes an answer.
pub const LATE_BEAT: Duration = Duration::from_secs(1);

impl Machine {
    /// Children that have owed an answer for long, and since when.
    pub(super) fn silent(&self) -> impl Iterator<Item = (Role, Instant)> {
        let runner = self.runner.iter().map(|runner| (Role::Runner, runner.silent_since()));
        let backends = self.backends.iter().map(|backend| (backend.role, backend.silent_since()));
        let silent = runner.chain(backends).filter_map(|(role, since)| Some((role, since?)));
        silent.filter(|(_, since)| since.elapsed() >= SILENT)
    }

    /// True if some child, or a switch, has not answered as soon as those that work do.
    pub(super) fn is_late(&self) -> bool {
        let runner = self.runner.iter().map(Runner::silent_since);
        let backends = self.backends.iter().map(BackendProcess::silent_since);
        let late = runner.chain(backends).flatten().any(|since| since.elapsed() >= LATE);
        late || self.late_switches().next().is_some()
    }

    /// Switches that its NICs are on and that have not, and since when.
    pub(super) fn late_switches(&self) -> impl Iterator<Item = (SwitchName, Instant)> {
        let switches = self.devices.nics.switches().into_iter();
        let owed = switches.filter_map(|switch| {
            let since = self.from.switches.silent_since(&switch)?;
            Some((switch, since))
        });
        owed.filter(|(_, since)| since.elapsed() >= LATE)
    }

    /// Asks every child for a sign of life, and deals with those who have given none for too long.
    pub(super) async fn beat(&mut self) {
        if let Some(counters) = self.runner.as_mut().and_then(Runner::beat) {
            self.vcpu_load.count(counters);
        }
        let mut overdue = false;
        for backend in &mut self.backends {
            let class = self.devices.in_role(backend.role);
            if let (Some(link), Some(class)) = (&mut backend.link, class) {
                let said = link.beat(&class.beat(link.version()));
                class.beaten(said);
            }
            let Some(silent) = backend.silent_since().map(|since| since.elapsed()) else { continue };
            match self.on_hang {
                OnHang::RestartAfter(limit) if silent.as_secs() >= limit.into() => {
                    backend.kill_hung(silent.as_secs());
                }
                OnHang::Pause if silent >= SILENT && !backend.is_told => {
                    (backend.is_told, overdue) = (true, true);
                }
                _ => {}
            }
        }
        self.tend().await;
        if overdue {
            self.say("paused: on_backend_hang says so".into());
            self.notices.push(Notice::Trouble);
        }
    }

    /// Tells the backends what has changed of the host.
    async fn tend(&mut self) {
        for backend in &mut self.backends {
            let Some(link) = backend.link.as_ref().filter(|link| !link.is_late()) else { continue };
            let class = self.devices.in_role(backend.role);
            let Some((message, fds)) = class.and_then(|class| class.tend(link.version())) else { continue };
            if let Err(error) = backend.ask(&message, fds).await {
                self.notices.push(Notice::Say(format!("{}: {}", backend.role, chain(&error))));
            }
        }
    }
}
