//! The runner of a machine, and what it is asked.

use std::os::fd::OwnedFd;
use std::time::Duration;

use shared_abi::control::{RunnerEvent, RunnerReply, RunnerRequest, VcpuCounters};
use shared_abi::{DeviceId, Role};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::process::Process;
use crate::process::link::{ANSWER, ChildError, ChildLink, unexpected};

/// A runner with its link.
#[derive(Debug)]
pub struct Runner {
    /// Its process.
    pub process: Process,
    /// Its control socket, once connected.
    pub link: Option<ChildLink<RunnerReply, RunnerEvent>>,
    /// True when an operator destroys the domain.
    destroyed: watch::Receiver<bool>,
}

impl Runner {
    /// A process that has been started.
    pub fn new(process: Process, destroyed: watch::Receiver<bool>) -> Self {
        Self { process, link: None, destroyed }
    }

    /// True while it owes an answer that was given up.
    pub fn is_late(&self) -> bool {
        self.link.as_ref().is_some_and(ChildLink::is_late)
    }

    /// What its last sign of life told of its vCPUs, if it told anything, and asks for the next.
    pub fn beat(&mut self) -> Option<VcpuCounters> {
        let link = self.link.as_mut()?;
        // One of a release before has no counters.
        let ask = if link.version() < 3 { RunnerRequest::Status } else { RunnerRequest::Counters };
        link.beat(&[ask]).into_iter().find_map(|(_, reply)| match reply {
            RunnerReply::Counters(counters) => Some(counters),
            _ => None,
        })
    }

    /// Tells it that nothing of these devices' lost backends is at work any more. One of a release before learns that
    /// when the next backend comes.
    pub async fn tell_gone(&mut self, devices: Vec<DeviceId>) {
        if self.link.as_ref().is_some_and(|link| link.version() >= 3) {
            // One that does not answer is found out by its next sign of life.
            let _ = self.done(&RunnerRequest::Gone(devices), "taken note of a lost backend").await;
        }
    }

    /// Its answer. Does not keep an operator waiting who destroys the domain.
    ///
    /// # Errors
    /// It refuses, has ended, or is silent for longer than `patience`; `done` is what it had to have done by then.
    pub async fn ask(
        &mut self,
        request: &RunnerRequest,
        fds: Vec<OwnedFd>,
        patience: Duration,
        done: &'static str,
    ) -> Result<RunnerReply, ChildError> {
        let Self { process, link, destroyed } = self;
        let link = link.as_mut().ok_or_else(|| ChildError::not_connected(Role::Runner))?;
        link.ask(process, request, fds, (patience, done), destroyed).await
    }

    /// Since when it has owed an answer.
    pub fn silent_since(&self) -> Option<Instant> {
        self.link.as_ref()?.silent_since()
    }

    /// Has it do what it answers with "done".
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn done(&mut self, request: &RunnerRequest, done: &'static str) -> Result<(), ChildError> {
        self.done_with(request, Vec::new(), ANSWER, done).await
    }

    /// The same, with descriptors and patience of its own.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn done_with(
        &mut self,
        request: &RunnerRequest,
        fds: Vec<OwnedFd>,
        patience: Duration,
        done: &'static str,
    ) -> Result<(), ChildError> {
        match self.ask(request, fds, patience, done).await? {
            RunnerReply::Done | RunnerReply::Ready => Ok(()),
            other => Err(unexpected(Role::Runner, &other)),
        }
    }
}
