//! What an operator asks of a running domain's machine itself: its runner does it.

use domus_startup::control::chain;
use shared_abi::control::{RunnerReply, RunnerRequest};

use crate::domain::Domain;
use crate::process::link::ANSWER;

impl Domain {
    /// Has the runner do what it answers with "done". `act` is what is attempted, for a refusal: "reset".
    ///
    /// # Errors
    /// One line.
    pub async fn machine(&mut self, request: &RunnerRequest, act: &str) -> Result<(), String> {
        self.has_machine(act)?;
        match self.talk(request, ANSWER, "done what it was asked").await {
            Ok(Some(RunnerReply::Done)) => Ok(()),
            Ok(Some(other)) => Err(format!("cannot {act}: the runner answered with {other:?}")),
            Ok(None) => Err(format!("cannot {act}: the runner is gone")),
            Err(error) => Err(format!("cannot {act}: {}", chain(&error))),
        }
    }

    /// Refuses what needs a machine whose vCPUs can run.
    pub(in crate::domain) fn has_machine(&self, act: &str) -> Result<(), String> {
        match self.state.has_machine() {
            true => Ok(()),
            false => Err(format!("cannot {act}: the domain {}", self.state)),
        }
    }
}
