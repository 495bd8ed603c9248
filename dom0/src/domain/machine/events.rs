//! What a domain's task waits for, all at once.

use std::future::poll_fn;
use std::time::Duration;

use futures_util::future::{OptionFuture, select_all};
use shared_abi::DeviceId;
use shared_abi::control::{BackendEvent, RunnerEvent};
use tokio::time::sleep_until;

use crate::domain::error::StartError;
use crate::domain::machine::attempt::Revived;
use crate::domain::machine::backend::Backend;
use crate::domain::machine::build::{Incarnation, Runner};
use crate::domain::{Command, Domain};
use crate::process::link::ChildError;

/// What has happened.
pub(in crate::domain) enum Happening {
    Command(Option<Command>),
    Runner(Result<RunnerEvent, ChildError>),
    RunnerEnded(String),
    Backend(usize, BackendHappening),
    /// The passt of a NIC has ended.
    PasstEnded(DeviceId),
    Revived(usize, Result<Revived, StartError>),
    /// A loss has lasted as long as a policy allows.
    Overdue,
}

/// What has happened to a backend.
pub(in crate::domain) enum BackendHappening {
    Event(BackendEvent),
    LinkLost,
    Ended(String),
}

impl Domain {
    /// Waits until something happens. Cancel safe.
    pub(in crate::domain) async fn happening(&mut self) -> Happening {
        let overdue: OptionFuture<_> = self.next_policy().map(sleep_until).into();
        let Self { commands, incarnation, .. } = self;
        let Incarnation { runner, backends, reviving, kept, .. } = incarnation;
        let runner: OptionFuture<_> = runner.as_mut().map(watch_runner).into();
        let backends: OptionFuture<_> = match backends.is_empty() {
            true => None,
            false => Some(select_all(backends.iter_mut().map(|backend| Box::pin(watch_backend(backend))))),
        }
        .into();
        let reviving: OptionFuture<_> = match reviving.is_empty() {
            true => None,
            false => Some(select_all(reviving.iter_mut().map(|one| one.attempt.as_mut()))),
        }
        .into();
        let passts: OptionFuture<_> =
            kept.as_ref().map(|kept| poll_fn(|cx| kept.nets.borrow().poll_passts(cx))).into();
        tokio::select! {
            command = commands.recv() => Happening::Command(command),
            Some(happening) = runner => happening,
            Some((happening, n, _)) = backends => Happening::Backend(n, happening),
            Some((result, n, _)) = reviving => Happening::Revived(n, result),
            Some(nic) = passts => Happening::PasstEnded(nic),
            Some(()) = overdue => Happening::Overdue,
        }
    }
}

async fn watch_runner(Runner { process, link }: &mut Runner) -> Happening {
    let Some(link) = link else { return Happening::RunnerEnded(process.ended().await) };
    tokio::select! {
        // What it said last comes before its end.
        biased;
        event = link.event() => match event {
            Err(ChildError::Link { source: domus_startup::LinkError::Closed, .. }) => {
                let patience = tokio::time::sleep(Duration::from_secs(1));
                tokio::select! {
                    how = process.ended() => Happening::RunnerEnded(how),
                    () = patience => Happening::Runner(event),
                }
            }
            event => Happening::Runner(event),
        },
        how = process.ended() => Happening::RunnerEnded(how),
    }
}

async fn watch_backend(backend: &mut Backend) -> BackendHappening {
    let Backend { process, link, .. } = backend;
    let Some(link) = link else { return BackendHappening::Ended(process.ended().await) };
    tokio::select! {
        biased;
        event = link.event() => match event {
            Ok(event) => BackendHappening::Event(event),
            Err(_) => BackendHappening::LinkLost,
        },
        how = process.ended() => BackendHappening::Ended(how),
    }
}
