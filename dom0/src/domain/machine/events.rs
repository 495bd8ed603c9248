//! The machine's event loop: waits for all children and timers, and handles one event.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use futures_util::future::{OptionFuture, select_all};
use shared_abi::control::{BackendEvent, RunnerEvent};
use tokio::time::{Instant, sleep_until};

use crate::device::loss::Loss;
use crate::domain::error::StartError;
use crate::domain::machine::attempt::Repaired;
use crate::domain::machine::backend::BackendProcess;
use crate::domain::machine::hang::{BEAT, LATE_BEAT};
use crate::domain::machine::runner::Runner;
use crate::domain::machine::{Machine, Notice};
use crate::process::link::ChildError;

/// What has happened to a machine.
#[derive(Debug)]
pub struct MachineEvent(Happened);

#[derive(Debug)]
enum Happened {
    Runner(Result<RunnerEvent, ChildError>),
    RunnerEnded(String),
    /// To the backend at this place; the places are as they were when it was waited for.
    Backend(usize, BackendHappened),
    /// A helper of a device has ended.
    HelperEnded(Loss),
    /// The attempt at this place has ended.
    Attempted(usize, Result<Repaired, StartError>),
    /// A loss has lasted as long as a policy allows.
    Overdue,
    /// A backend has come whose disks must be measured.
    Unmeasured,
    /// It is time for a sign of life.
    Beat,
}

#[derive(Debug)]
enum BackendHappened {
    Event(BackendEvent),
    LinkLost,
    Ended(String),
}

impl Machine {
    /// Waits until something happens, for [`Self::handle`], which must be called before anything else. Cancel safe.
    pub async fn next(&mut self) -> MachineEvent {
        if self.losses.unmeasured {
            return MachineEvent(Happened::Unmeasured);
        }
        let overdue: OptionFuture<_> = self.next_policy().map(sleep_until).into();
        let Self { runner, backends, losses, devices, next_beat, .. } = self;
        let runner: OptionFuture<_> = runner.as_mut().map(watch_runner).into();
        let backends: OptionFuture<_> = match backends.is_empty() {
            true => None,
            false => Some(select_all(backends.iter_mut().map(|backend| Box::pin(watch_backend(backend))))),
        }
        .into();
        let attempts: OptionFuture<_> = match losses.open.is_empty() {
            true => None,
            false => Some(select_all(losses.open.iter_mut().map(|repair| repair.attempt.as_mut()))),
        }
        .into();
        let classes = devices.all();
        let helpers = poll_fn(|cx| {
            let lost = classes.iter().map(|class| class.poll_loss(cx)).find(Poll::is_ready);
            lost.unwrap_or(Poll::Pending)
        });
        MachineEvent(tokio::select! {
            Some(happened) = runner => happened,
            Some((happened, n, _)) = backends => Happened::Backend(n, happened),
            Some((result, n, _)) = attempts => Happened::Attempted(n, result),
            loss = helpers => Happened::HelperEnded(loss),
            Some(()) = overdue => Happened::Overdue,
            () = sleep_until(*next_beat) => Happened::Beat,
        })
    }

    /// Does what has to be done then; what the domain must know is in [`Self::notices`].
    pub async fn handle(&mut self, MachineEvent(happened): MachineEvent) {
        match happened {
            Happened::Runner(Ok(RunnerEvent::Stopped(reason))) => self.notices.push(Notice::Stopped(reason)),
            Happened::Runner(Ok(RunnerEvent::DeviceLost(device))) => self.device_lost(&device),
            // Its end, if that is the cause, is seen by its pidfd.
            Happened::Runner(Err(_)) => {
                if let Some(runner) = &mut self.runner {
                    runner.link = None;
                    runner.process.kill();
                }
            }
            Happened::RunnerEnded(how) => self.notices.push(Notice::RunnerEnded(how)),
            Happened::Backend(n, happened) => self.backend_happened(n, happened),
            Happened::HelperEnded(loss) => self.helper_ended(loss).await,
            Happened::Attempted(n, result) => self.attempted(n, result).await,
            Happened::Overdue => self.pause_for_the_lost(),
            Happened::Unmeasured => self.measure().await,
            Happened::Beat => {
                let pause = if self.is_late() { LATE_BEAT } else { BEAT };
                self.next_beat = Instant::now() + pause;
                self.beat().await;
            }
        }
    }

    fn backend_happened(&mut self, n: usize, happened: BackendHappened) {
        let backend = &mut self.backends[n];
        match happened {
            BackendHappened::Event(event) => {
                let role = backend.role;
                self.backend_event(role, event);
            }
            // It does not know what it says, or says too much: another one takes its place.
            BackendHappened::LinkLost => {
                backend.link = None;
                backend.process.kill();
            }
            BackendHappened::Ended(how) => self.backend_ended(n, &how),
        }
    }
}

async fn watch_runner(Runner { process, link, .. }: &mut Runner) -> Happened {
    let Some(link) = link else { return Happened::RunnerEnded(process.ended().await) };
    tokio::select! {
        // What it said last comes before its end.
        biased;
        event = link.event() => match event {
            Err(ChildError::Link { source: domus_startup::LinkError::Closed, .. }) => {
                let patience = tokio::time::sleep(Duration::from_secs(1));
                tokio::select! {
                    how = process.ended() => Happened::RunnerEnded(how),
                    () = patience => Happened::Runner(event),
                }
            }
            event => Happened::Runner(event),
        },
        how = process.ended() => Happened::RunnerEnded(how),
    }
}

async fn watch_backend(backend: &mut BackendProcess) -> BackendHappened {
    let BackendProcess { process, link, .. } = backend;
    let Some(link) = link else { return BackendHappened::Ended(process.ended().await) };
    tokio::select! {
        biased;
        event = link.event() => match event {
            Ok(event) => BackendHappened::Event(event),
            Err(_) => BackendHappened::LinkLost,
        },
        how = process.ended() => BackendHappened::Ended(how),
    }
}
