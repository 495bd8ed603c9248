//! Children that live and do not answer. Silence is a failure with a deadline.
//!
//! Every [`BEAT`] a child that owes no answer is asked something whose answer nobody waits for. One that owes an answer
//! for longer than [`SILENT`] is told of in `domus why`; one of the domain's own backends is dealt with as
//! `on_backend_hang` says.

use std::time::Duration;

use shared_abi::Role;
use shared_abi::control::RunnerRequest;

use crate::config::OnHang;
use crate::domain::machine::{Machine, Notice};

/// So often every child is asked for a sign of life.
pub const BEAT: Duration = Duration::from_secs(3);

/// A child that owes an answer for so many seconds is told of.
const SILENT: u64 = 5;

impl Machine {
    /// Children that have owed an answer for long, and for how many seconds.
    pub(super) fn silent(&self) -> impl Iterator<Item = (Role, u64)> {
        let runner = self.runner.iter().map(|runner| (Role::Runner, runner.silent_for()));
        let backends = self.backends.iter().map(|backend| (backend.role, backend.silent_for()));
        let silent = runner.chain(backends).filter_map(|(role, seconds)| Some((role, seconds?)));
        silent.filter(|(_, seconds)| *seconds >= SILENT)
    }

    /// Asks every child for a sign of life, and deals with those who have given none for too long.
    pub(super) fn beat(&mut self) {
        if let Some(link) = self.runner.as_mut().and_then(|runner| runner.link.as_mut()) {
            link.beat(&RunnerRequest::Status);
        }
        let mut overdue = false;
        for backend in &mut self.backends {
            let class = self.devices.in_role(backend.role);
            if let (Some(link), Some(request)) = (&mut backend.link, class.and_then(|class| class.beat())) {
                link.beat(request.request());
            }
            let Some(seconds) = backend.silent_for() else { continue };
            match self.on_hang {
                OnHang::RestartAfter(limit) if seconds >= limit.into() => backend.kill_hung(seconds),
                OnHang::Pause if seconds >= SILENT && !backend.is_told => {
                    (backend.is_told, overdue) = (true, true);
                }
                _ => {}
            }
        }
        if overdue {
            self.say("paused: on_backend_hang says so".into());
            self.notices.push(Notice::Trouble);
        }
    }
}
