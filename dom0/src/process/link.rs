//! dom0's end of a child's control socket.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use domus_startup::{EventLimit, Link, LinkError};
use nix::errno::Errno;
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, getsockopt, socket};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_abi::Role;
use shared_abi::control::FromChild;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch as signal;
use tokio::time::{Instant, sleep, timeout_at};

use crate::host::waits::waiting;
use crate::host::{slow, watch};
use crate::process::Process;
use crate::value::text::one_line;

/// Within this time a started process listens and is ready. Far above what any needs: unpacking a kernel takes half a
/// minute where the host itself is emulated.
pub const PATIENCE: Duration = Duration::from_secs(300);

/// Within this time a process that serves answers a request. The slowest is a runner that pauses: it gives each device
/// its time.
pub const ANSWER: Duration = Duration::from_secs(15);

/// Within this time it answers a question that nobody depends on.
pub const QUESTION: Duration = Duration::from_secs(2);

/// One that owes an answer for so long is slow.
pub const LATE: Duration = Duration::from_millis(500);

/// One that owes an answer for so long is silent: an operator is told of it, and who wants something done is told so at
/// once.
pub const SILENT: Duration = Duration::from_secs(5);

/// Messages that a child may send within an hour without being asked. One that works sends a few.
const MAX_UNASKED: u32 = 512;
const HOUR: Duration = Duration::from_secs(3600);

/// The error for an answer that is none to its request.
pub fn unexpected(role: Role, answer: &impl std::fmt::Debug) -> ChildError {
    ChildError::Failed { role, why: one_line(&format!("answered with {answer:?}")) }
}

/// Why a child does not do what it should. The text follows the child's name: "runner exited …".
#[derive(Debug, thiserror::Error)]
pub enum ChildError {
    /// It refused or failed, in its own words.
    #[error("{role}: {why}")]
    Failed {
        /// Which child.
        role: Role,
        /// One line of its own.
        why: String,
    },
    /// It is gone.
    #[error("{} {how} before it had {before}", role.program())]
    Ended {
        /// Which child.
        role: Role,
        /// How it ended.
        how: String,
        /// What it had to do.
        before: &'static str,
    },
    /// It does not answer.
    #[error("{} has not {done} within {seconds} s", role.program())]
    Silent {
        /// Which child.
        role: Role,
        /// How long it was waited for.
        seconds: u64,
        /// What it had to do.
        done: &'static str,
    },
    /// The control socket fails.
    #[error("cannot talk to {}", role.program())]
    Link {
        /// Which child.
        role: Role,
        /// Why.
        source: LinkError,
    },
}

impl ChildError {
    /// Whoever asks has no link to it.
    pub fn not_connected(role: Role) -> Self {
        Self::Failed { role, why: "is not connected".into() }
    }
}

/// A connected child that answers with `A` and reports `E`.
#[derive(Debug)]
pub struct ChildLink<A, E> {
    role: Role,
    link: AsyncFd<Link>,
    /// Events that came while an answer was awaited.
    early: VecDeque<E>,
    /// The requests that it has not answered.
    owed: VecDeque<Owed>,
    /// What it has answered to those of the last beat, and to which.
    beaten: Vec<(usize, A)>,
    /// Messages that it sends without being asked.
    unasked: EventLimit,
}

/// A request that was sent and not answered.
#[derive(Debug, Clone, Copy)]
struct Owed {
    since: Instant,
    /// Which of a beat's it is.
    beat: Option<usize>,
}

fn dial(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
    connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    Ok(fd)
}

/// Waits until the child says which version it speaks with this dom0.
async fn welcomed(link: &mut AsyncFd<Link>) -> Result<(), LinkError> {
    loop {
        let mut guard = link.readable_mut().await.map_err(LinkError::Io)?;
        match guard.get_inner_mut().welcome() {
            Err(LinkError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
            other => return other,
        }
    }
}

impl<A: DeserializeOwned, E: DeserializeOwned> ChildLink<A, E> {
    /// Connects to the control socket at `path` as soon as the process listens, and agrees with it on a version.
    ///
    /// # Errors
    /// [`ChildError::Ended`] if the process ends first, [`ChildError::Silent`] if it takes too long.
    pub async fn connect(role: Role, path: &Path, process: &Process) -> Result<Self, ChildError> {
        let deadline = Instant::now() + PATIENCE;
        let fail = |source| ChildError::Link { role, source };
        let _told = waiting(|| format!("{} to make its control socket, and to answer there", role.program()));
        let fd = loop {
            match dial(path) {
                Ok(fd) => break fd,
                // Not bound yet, bound and not listening yet.
                Err(Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN) => {}
                Err(errno) => return Err(fail(LinkError::Io(errno.into()))),
            }
            if Instant::now() >= deadline {
                return Err(ChildError::Silent {
                    role,
                    seconds: PATIENCE.as_secs(),
                    done: "made its control socket",
                });
            }
            tokio::select! {
                () = sleep(Duration::from_micros(500)) => {}
                how = process.ended() => return Err(ChildError::Ended { role, how, before: "made its control socket" }),
            }
        };
        Self::greet(role, fd, process, (deadline, PATIENCE)).await
    }

    /// Connects to a process that another dom0 has started and that listens at one of these paths, or at none.
    ///
    /// # Errors
    /// [`ChildError`]; also if it does not answer within `patience`.
    pub async fn find(
        role: Role,
        paths: &[PathBuf],
        process: &Process,
        patience: Duration,
    ) -> Result<Self, ChildError> {
        let deadline = Instant::now() + patience;
        let _told = waiting(|| format!("{} to answer dom0's greeting", role.program()));
        for path in paths {
            let fd = loop {
                match dial(path) {
                    Ok(fd) => break Some(fd),
                    // Somebody else is before this dom0: one that is dying.
                    Err(Errno::EAGAIN) if Instant::now() < deadline => sleep(Duration::from_millis(1)).await,
                    Err(_) => break None,
                }
            };
            // The kernel knows who listens.
            let own = |fd: &OwnedFd| {
                getsockopt(fd, PeerCredentials).is_ok_and(|peer| peer.pid() == process.pid().as_raw())
            };
            if let Some(fd) = fd.filter(own) {
                return Self::greet(role, fd, process, (deadline, patience)).await;
            }
        }
        Err(ChildError::Failed { role, why: "does not listen at its control socket any more".into() })
    }

    async fn greet(
        role: Role,
        fd: OwnedFd,
        process: &Process,
        (deadline, patience): (Instant, Duration),
    ) -> Result<Self, ChildError> {
        let fail = |source| ChildError::Link { role, source };
        let mut link = watch::link(Link::from(fd)).map_err(|error| fail(LinkError::Io(error)))?;
        link.get_ref().hello().map_err(fail)?;
        let silent =
            ChildError::Silent { role, seconds: patience.as_secs(), done: "answered dom0's greeting" };
        tokio::select! {
            biased;
            welcome = timeout_at(deadline, welcomed(&mut link)) => match welcome {
                Err(_) => return Err(silent),
                Ok(Err(LinkError::Refused(why))) => {
                    return Err(ChildError::Failed { role, why: one_line(&why) });
                }
                Ok(Err(LinkError::Closed)) => {
                    let how = timeout_at(deadline, process.ended()).await.map_err(|_| silent)?;
                    return Err(ChildError::Ended { role, how, before: "answered dom0's greeting" });
                }
                Ok(welcome) => welcome.map_err(fail)?,
            },
            how = process.ended() => {
                return Err(ChildError::Ended { role, how, before: "answered dom0's greeting" });
            }
        }
        Ok(Self {
            role,
            link,
            early: VecDeque::new(),
            owed: VecDeque::new(),
            beaten: Vec::new(),
            unasked: EventLimit::new(MAX_UNASKED, HOUR),
        })
    }

    /// Sends a request with its descriptors. Cancel safe: it is sent or it is not.
    ///
    /// # Errors
    /// [`ChildError::Link`]; [`ChildError::Silent`] if the child does not read what it was sent before.
    pub async fn send<R: Serialize>(&self, request: &R, fds: &[OwnedFd]) -> Result<(), ChildError> {
        let silent = ChildError::Silent {
            role: self.role,
            seconds: ANSWER.as_secs(),
            done: "read its control socket",
        };
        tokio::time::timeout(ANSWER, self.send_now(request, fds)).await.unwrap_or(Err(silent))
    }

    async fn send_now<R: Serialize>(&self, request: &R, fds: &[OwnedFd]) -> Result<(), ChildError> {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        loop {
            let mut guard = self.link.writable().await.map_err(|error| self.broken(LinkError::Io(error)))?;
            match self.link.get_ref().send_request(request, &fds) {
                Err(LinkError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                other => return other.map_err(|error| self.broken(error)),
            }
        }
    }

    /// True while it owes an answer for so long that it will hardly be quicker with the next.
    pub fn is_late(&self) -> bool {
        self.silent_since().is_some_and(|since| since.elapsed() >= LATE)
    }

    /// Since when it has owed its oldest answer.
    pub fn silent_since(&self) -> Option<Instant> {
        self.owed.front().map(|owed| owed.since)
    }

    /// Refuses to ask it anything once it has owed an answer for so long.
    fn expect_silent_for_less_than(&self, longest: Duration) -> Result<(), ChildError> {
        match self.silent_since().map(|since| since.elapsed()) {
            Some(silent) if silent >= longest => {
                let (role, seconds) = (self.role, silent.as_secs());
                Err(ChildError::Silent { role, seconds, done: "answered" })
            }
            _ => Ok(()),
        }
    }

    /// The version of the messages that it was agreed on.
    pub fn version(&self) -> u32 {
        self.link.get_ref().version()
    }

    /// Sends requests whose answers nobody waits for, if it owes none: they show that the child lives. Returns what it
    /// has answered to those of the last beat, and to which. Does not wait.
    pub fn beat<R: Serialize>(&mut self, requests: &[R]) -> Vec<(usize, A)> {
        let said = std::mem::take(&mut self.beaten);
        if self.owed.is_empty() {
            for (n, request) in requests.iter().enumerate() {
                // A socket that takes nothing is full of what the child has not read.
                if self.link.get_ref().send_request(request, &[]).is_ok() {
                    self.owed.push_back(Owed { since: Instant::now(), beat: Some(n) });
                }
            }
        }
        said
    }

    /// It has answered the oldest request that it owes an answer to. False if it owes none.
    fn has_answered(&mut self, answer: Option<A>) -> bool {
        let Some(owed) = self.owed.pop_front() else { return false };
        self.beaten.extend(owed.beat.zip(answer));
        true
    }

    /// Its answer to a request, for whoever can do nothing without it. `destroyed` is true when an operator destroys
    /// the domain, who is not kept waiting; `done` is what the child has to have done within `patience`.
    ///
    /// # Errors
    /// What the child said, that it ended, that it is or has been silent, or that the domain is being destroyed.
    pub async fn ask<R: Serialize>(
        &mut self,
        process: &Process,
        request: &R,
        fds: Vec<OwnedFd>,
        (patience, done): (Duration, &'static str),
        destroyed: &mut signal::Receiver<bool>,
    ) -> Result<A, ChildError> {
        let role = self.role;
        self.expect_silent_for_less_than(SILENT)?;
        let exchange = async {
            let sent = self.send(request, &fds).await;
            // A lifeline among them must have no other end than the process's; an image's last may wait for storage.
            slow::close(fds);
            sent?;
            self.answer(process, patience, done).await
        };
        tokio::select! {
            biased;
            Ok(_) = destroyed.wait_for(|destroyed| *destroyed) => {
                Err(ChildError::Failed { role, why: "the domain is being destroyed".into() })
            }
            answer = exchange => answer,
        }
    }

    /// Its answer to a question, for whoever can do without one: refused at once while it owes another answer, and
    /// given up soon, so that those who ask hold up nobody who wants something done.
    ///
    /// # Errors
    /// As [`Self::ask`].
    pub async fn question<R: Serialize>(
        &mut self,
        process: &Process,
        request: &R,
        destroyed: &mut signal::Receiver<bool>,
    ) -> Result<A, ChildError> {
        self.expect_silent_for_less_than(LATE)?;
        self.ask(process, request, Vec::new(), (QUESTION, "answered"), destroyed).await
    }

    fn broken(&self, source: LinkError) -> ChildError {
        ChildError::Link { role: self.role, source }
    }

    /// Counts a message that nobody asked for.
    fn count_unasked(&mut self) -> Result<(), ChildError> {
        let flood = || ChildError::Failed { role: self.role, why: "floods its control socket".into() };
        self.unasked.admit(Instant::now().into_std()).map(drop).ok_or_else(flood)
    }

    async fn receive(&self) -> Result<FromChild<A, E>, LinkError> {
        loop {
            // A socket that is always readable never makes a task wait; dom0's other tasks and timers want to run too.
            tokio::task::coop::consume_budget().await;
            let mut guard = self.link.readable().await.map_err(LinkError::Io)?;
            match self.link.get_ref().receive() {
                Err(LinkError::Io(error)) if error.kind() == io::ErrorKind::WouldBlock => guard.clear_ready(),
                // No child sends descriptors; those of one that does are closed here.
                other => return other.map(|(message, _fds)| message),
            }
        }
    }

    /// Forgets the events that came while an answer was awaited and that `these` are.
    pub fn forget(&mut self, these: impl Fn(&E) -> bool) {
        self.early.retain(|event| !these(event));
    }

    /// The next event. Cancel safe.
    ///
    /// # Errors
    /// [`ChildError::Link`], with [`LinkError::Closed`] when the child has closed its end; [`ChildError::Failed`] for
    /// a child that floods its socket, which is not to be listened to any more.
    pub async fn event(&mut self) -> Result<E, ChildError> {
        if let Some(event) = self.early.pop_front() {
            return Ok(event);
        }
        loop {
            // An answer that comes after its deadline is nobody's any more.
            let was_owed = match self.receive().await.map_err(|error| self.broken(error))? {
                FromChild::Event(event) => {
                    self.count_unasked()?;
                    return Ok(event);
                }
                FromChild::Reply(answer) => self.has_answered(Some(answer)),
                FromChild::Failed(_) => self.has_answered(None),
            };
            if !was_owed {
                self.count_unasked()?;
            }
        }
    }

    /// Waits for the answer to the request sent last. Events are kept for [`Self::event`].
    ///
    /// # Errors
    /// What the child said, that it ended, or that it takes longer than `patience`.
    pub async fn answer(
        &mut self,
        process: &Process,
        patience: Duration,
        done: &'static str,
    ) -> Result<A, ChildError> {
        let role = self.role;
        let deadline = Instant::now() + patience;
        let silent = || ChildError::Silent { role, seconds: patience.as_secs(), done };
        let _told = waiting(|| format!("{} to have {done}", role.program()));
        let mut ended = None;
        // Theirs come first. Counted before it is waited for: who gives up waiting leaves it owed.
        let mut older = self.owed.len();
        self.owed.push_back(Owed { since: Instant::now(), beat: None });
        loop {
            let received = tokio::select! {
                // What a dying child has said comes before the fact that it is dead.
                biased;
                received = timeout_at(deadline, self.receive()) => {
                    received.map_err(|_| silent())?
                }
                how = process.ended(), if ended.is_none() => {
                    ended = Some(how);
                    continue;
                }
            };
            match received {
                Ok(FromChild::Reply(answer)) if older > 0 => {
                    older -= 1;
                    self.has_answered(Some(answer));
                }
                Ok(FromChild::Failed(_)) if older > 0 => {
                    older -= 1;
                    self.has_answered(None);
                }
                Ok(FromChild::Reply(answer)) => {
                    self.owed.pop_front();
                    return Ok(answer);
                }
                Ok(FromChild::Failed(why)) => {
                    self.owed.pop_front();
                    return Err(ChildError::Failed { role, why: one_line(&why) });
                }
                Ok(FromChild::Event(event)) => {
                    self.count_unasked()?;
                    self.early.push_back(event);
                }
                Err(LinkError::Closed) => {
                    let how = match ended {
                        Some(how) => how,
                        None => timeout_at(deadline, process.ended()).await.map_err(|_| silent())?,
                    };
                    return Err(ChildError::Ended { role, how, before: done });
                }
                Err(error) => return Err(self.broken(error)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use domus_startup::Control;
    use shared_abi::control::{RunnerEvent, RunnerReply, RunnerRequest, StopReason};

    use super::*;
    use crate::process::Direct;
    use crate::process::{Launch, Supervisor};

    type Runner = ChildLink<RunnerReply, RunnerEvent>;

    /// A process that lives; who answers at the socket is a thread of the test.
    async fn living(dir: &Path) -> Process {
        let script = "#!/bin/sh\nexec /bin/sleep 1000\n";
        std::fs::write(dir.join("domu-runner"), script).unwrap();
        std::fs::set_permissions(
            dir.join("domu-runner"),
            std::os::unix::fs::PermissionsExt::from_mode(0o755),
        )
        .unwrap();
        let direct = Direct::new(Some(dir.into()), true);
        let launch =
            Launch { whom: "test", role: Role::Runner, control: Path::new("x"), program: None, limits: None };
        direct.start(launch).await.unwrap()
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_answer_that_comes_too_late_is_not_taken_for_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runner.sock");
        let process = living(dir.path()).await;
        let control = Control::listen(&path).unwrap();
        std::thread::spawn(move || {
            let (_, _) = control.accept_start::<RunnerRequest>().unwrap();
            let events = control.events();
            std::thread::sleep(Duration::from_millis(300));
            control.reply(&RunnerReply::Ready);
            events.send(&RunnerEvent::Stopped(StopReason::PowerOff));
            let _ = control.serve(|_: RunnerRequest, _| Ok(RunnerReply::Done));
        });
        let mut link = Runner::connect(Role::Runner, &path, &process).await.unwrap();
        link.send(&RunnerRequest::Resume, &[]).await.unwrap();
        let error = link.answer(&process, Duration::from_millis(50), "become ready").await.unwrap_err();
        assert!(matches!(error, ChildError::Silent { .. }), "{error}");
        assert!(link.silent_since().is_some());
        link.send(&RunnerRequest::Pause, &[]).await.unwrap();
        assert_eq!(link.answer(&process, PATIENCE, "paused").await.unwrap(), RunnerReply::Done);
        assert_eq!(link.event().await.unwrap(), RunnerEvent::Stopped(StopReason::PowerOff));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_child_that_dies_before_it_listens_is_told_by_how_it_ended() {
        let dir = tempfile::tempdir().unwrap();
        let process = living(dir.path()).await;
        process.kill();
        let error = Runner::connect(Role::Runner, &dir.path().join("no.sock"), &process).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "domu-runner was killed by SIGKILL before it had made its control socket"
        );
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_wrong_message_after_many_events_ends_the_talk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runner.sock");
        let process = living(dir.path()).await;
        let control = Control::listen(&path).unwrap();
        std::thread::spawn(move || {
            let (_, _) = control.accept_start::<RunnerRequest>().unwrap();
            for n in 0..MAX_UNASKED {
                // Waits for a dom0 that reads.
                control.events().send(&RunnerEvent::DeviceLost(format!("d{n}").parse().unwrap()));
            }
            std::thread::sleep(Duration::from_millis(100));
            control.reply(&"nonsense");
            let _ = control.serve(|_: RunnerRequest, _| Ok(RunnerReply::Done));
        });
        let mut link = Runner::connect(Role::Runner, &path, &process).await.unwrap();
        link.send(&RunnerRequest::Resume, &[]).await.unwrap();
        let error = link.answer(&process, PATIENCE, "become ready").await.unwrap_err();
        assert!(matches!(error, ChildError::Link { .. }), "{error}");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_child_that_floods_its_socket_is_given_up_and_meanwhile_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runner.sock");
        let process = living(dir.path()).await;
        let control = Control::listen(&path).unwrap();
        std::thread::spawn(move || {
            let (_, _) = control.accept_start::<RunnerRequest>().unwrap();
            loop {
                control.events().send(&RunnerEvent::DeviceLost("disk0".parse().unwrap()));
            }
        });
        let mut link = Runner::connect(Role::Runner, &path, &process).await.unwrap();
        link.send(&RunnerRequest::Resume, &[]).await.unwrap();
        let turns = std::rc::Rc::new(std::cell::Cell::new(0));
        let counted = turns.clone();
        let local = tokio::task::LocalSet::new();
        local.spawn_local(async move {
            loop {
                counted.set(counted.get() + 1);
                tokio::task::yield_now().await;
            }
        });
        let flooded = local.run_until(async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            turns.set(0);
            link.answer(&process, PATIENCE, "become ready").await
        });
        let error = flooded.await.unwrap_err().to_string();
        assert!(error.contains("floods its control socket"), "{error}");
        assert!(turns.get() >= 2, "another task had {} turns", turns.get());
        // What came early is still told; then it is known for what it is.
        let error = loop {
            match link.event().await {
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, ChildError::Failed { .. }), "{error}");
    }
}
