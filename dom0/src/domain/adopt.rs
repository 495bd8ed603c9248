//! A domain that a dom0 before this one has left goes on under this one.
//!
//! ```text
//!   record ─▶ processes that live, by pid and start time ─▶ greeted at their control sockets
//!          ─▶ the runner is asked how it is ─┬─ it runs: what is missing is started again, the last wish is repeated
//!                                            └─ it has stopped, or is gone: on_poweroff, on_reboot, on_crash
//! ```
//!
//! Nothing of a running guest is touched: its backends have their own connections to its runner. What dom0 alone has
//! open for backends to come (images, taps) is opened again when one is needed.

use domus_startup::control::chain;

use crate::domain::events::Kind;
use crate::domain::lifecycle::{Action, Event, Life, Next, State};
use crate::domain::machine::{Found, MEANWHILE};
use crate::domain::record::Record;
use crate::domain::task::Domain;

/// Its runner lives and cannot be talked to.
#[derive(Debug)]
pub(super) struct Abandoned;

impl Domain {
    /// Takes up the domain where the dom0 before this one stopped.
    ///
    /// # Errors
    /// The processes are left to themselves: the guest runs on, and the domain can be destroyed.
    pub(super) async fn adopt(&mut self, record: Record) -> Result<(), Abandoned> {
        let found = self.machine.find(&record.machine.processes).await;
        let next = match record.state {
            State::Building | State::Dying(Next::Restart) if record.created => Next::Restart,
            State::Building | State::Dying(_) | State::Dead => Next::Dead,
            State::Preserved { .. } => {
                self.machine.greet_console(found).await;
                return Ok(());
            }
            State::Running | State::Paused | State::Stopping(_) => {
                return self.adopt_running(found, record.state).await;
            }
        };
        self.say(match next {
            Next::Restart => "was being started again when dom0 ended: it is begun anew",
            Next::Dead => "was being built or removed when dom0 ended: it is removed",
        });
        self.machine.take(found);
        self.life = Life::resumed(State::Dying(next), [Action::TearDown]);
        self.announce_state(record.state);
        Ok(())
    }

    async fn adopt_running(&mut self, found: Found, state: State) -> Result<(), Abandoned> {
        let status = match self.machine.greet(found).await {
            Ok(status) => status,
            // The wish is in the inbox.
            Err(_) if self.machine.is_destroyed() => return Ok(()),
            Err(error) => {
                let why = chain(&error);
                self.say(&format!(
                    "cannot be taken over: {why}: it runs on as it is; domus destroy removes it"
                ));
                return Err(Abandoned);
            }
        };
        let Some(status) = status else {
            self.runner_ended(MEANWHILE);
            return Ok(());
        };
        if let Some(reason) = status.stopped {
            self.stopped(&reason);
            self.step_with(&Event::Stopped(reason));
            return Ok(());
        }
        // The last wish is repeated: it may not have reached the runner.
        let again = match state {
            State::Paused => Action::Pause,
            State::Stopping(_) => Action::PressPowerButton,
            _ => Action::Resume,
        };
        self.life = Life::resumed(state, [again]);
        self.machine.go_on(&status.without_backend);
        self.say("goes on under this dom0");
        self.emit(Kind::Adopted, None);
        Ok(())
    }
}
