//! One of Domus' processes, started by its contract: `--control PATH`, one controller, a start message, `Ready`.

use std::collections::VecDeque;
use std::fmt::Debug;
use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use domus_driver::control;
use domus_driver::process::{Running, tied};
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_abi::control::FromChild;

use super::resource_usage::ResourceUsage;

/// How long a process may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process with its control socket. Killed on drop.
#[derive(Debug)]
pub struct Child<A, E> {
    process: Running,
    link: Link,
    events: VecDeque<E>,
    answers: VecDeque<Result<A, String>>,
    log: PathBuf,
}

impl<A: DeserializeOwned, E: DeserializeOwned + Debug> Child<A, E> {
    /// Starts `program` from the folder `programs`, with its control socket in `folder`, and sends `start`.
    /// The result is what it answers.
    pub fn start<R: Serialize>(
        programs: &Path,
        program: &'static str,
        folder: &Path,
        start: &R,
        fds: Outgoing,
    ) -> Result<(Self, A)> {
        let path = folder.join(format!("{program}.sock"));
        let log = folder.join(format!("{program}.log"));
        let mut command = tied(programs.join(program));
        command.stderr(File::create(&log).context("cannot make a log file")?);
        let (process, link) = control::start(program, &mut command, &path)?;
        let mut child = Self { process, link, events: VecDeque::new(), answers: VecDeque::new(), log };
        let answer = child.ask(start, fds)?;
        Ok((child, answer))
    }

    /// Sends a request and waits for its answer.
    pub fn ask<R: Serialize>(&mut self, request: &R, fds: Outgoing) -> Result<A> {
        control::send(&self.link, request, fds)?;
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.answers.pop_front() {
                return answer.map_err(|why| anyhow::anyhow!("{}: {why}", self.process.name()));
            }
            if !self.receive(end)? {
                bail!("{} does not answer", self.process.name());
            }
        }
    }

    /// The next event, waited for up to `limit`.
    pub fn event(&mut self, limit: Duration) -> Result<Option<E>> {
        let end = Instant::now() + limit;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if !self.receive(end)? {
                return Ok(None);
            }
        }
    }

    /// Takes one message in, if one comes until `end`.
    fn receive(&mut self, end: Instant) -> Result<bool> {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut ready = [PollFd::new(self.link.as_fd(), PollFlags::POLLIN)];
        if poll(&mut ready, timeout)? == 0 {
            return Ok(false);
        }
        let received = match self.link.receive::<FromChild<A, E>>() {
            Ok((received, _)) => received,
            Err(error) => {
                let status = self.process.wait(Duration::from_secs(5))?;
                let (name, last) = (self.process.name(), &self.events);
                bail!("{name}: {error} (exit {status:?}, unread events {last:?})");
            }
        };
        match received {
            FromChild::Reply(answer) => self.answers.push_back(Ok(answer)),
            FromChild::Failed(why) => self.answers.push_back(Err(why)),
            FromChild::Event(event) => self.events.push_back(event),
        }
        Ok(true)
    }

    /// What it has taken of the host so far.
    pub fn resource_usage(&self) -> Result<ResourceUsage> {
        ResourceUsage::of(self.process.name(), self.process.pid(), &self.log)
    }

    /// The process itself.
    pub fn process(&mut self) -> &mut Running {
        &mut self.process
    }
}

impl<A, E> Drop for Child<A, E> {
    /// Shows what the process has written to stderr: the harness prints it if the test has failed.
    fn drop(&mut self) {
        let log = std::fs::read(&self.log).unwrap_or_default();
        for line in String::from_utf8_lossy(&log[log.len().saturating_sub(4096)..]).lines() {
            println!("{}: {line}", self.process.name());
        }
    }
}
