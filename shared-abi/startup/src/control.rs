//! The child's side of the control socket: one controller at a time, and the next when it goes.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, poll};
use nix::sys::socket::sockopt::PeerCredentials;
use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, UnixAddr, accept4, bind, getsockopt, listen, socket,
};
use nix::unistd::{Uid, geteuid};
use serde::Serialize;
use serde::de::DeserializeOwned;
use shared_abi::control::FromChild;

use crate::fds::Fds;
use crate::link::{Link, LinkError};
use crate::lock;

/// How long the first controller may take, in milliseconds.
const FIRST_CONTROLLER_MS: u16 = 60_000;

/// How long to wait before accepting again where the host was short of descriptors or memory.
const SHORTAGE: Duration = Duration::from_millis(100);

/// Why a child could not take up its work.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The control socket could not be made.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket's path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// No controller could be accepted.
    #[error("cannot accept a controller")]
    Accept(#[source] io::Error),
    /// Whoever started this process has not connected.
    #[error("no controller has connected within {FIRST_CONTROLLER_MS} ms")]
    Nobody,
    /// The first message was not a proper start message.
    #[error("the first control message is refused")]
    Start(#[source] LinkError),
}

/// The listening control socket of a child, and its controller of the moment.
#[derive(Debug)]
pub struct Control {
    listener: OwnedFd,
    /// Controllers must have this uid: the one that started the process, before the sandbox changed it.
    controller: Uid,
    current: Arc<Mutex<Current>>,
}

/// The controller of the moment, and what the next one has to be told.
#[derive(Debug, Default)]
struct Current {
    link: Option<Arc<Link>>,
    /// Events that still hold, by what they are about.
    standing: BTreeMap<String, serde_json::Value>,
}

impl Current {
    fn tell<E: Serialize>(&self, event: &E) {
        if let Some(link) = &self.link {
            let _ = link.try_send(&FromChild::<(), &E>::Event(event));
        }
    }
}

/// Sends events to whichever controller is there. Cheap to clone, usable from every thread.
#[derive(Debug, Clone)]
pub struct Events(Arc<Mutex<Current>>);

impl Events {
    /// Sends an event and never waits: without a controller, or with one that does not read, it is dropped.
    pub fn send<E: Serialize>(&self, event: &E) {
        lock(&self.0).tell(event);
    }

    /// Sends an event that holds until [`Self::over`]: each later controller receives it too. A program uses a bounded
    /// number of values for `about`, and each holds one event.
    pub fn stand<E: Serialize>(&self, about: &str, event: &E) {
        let mut current = lock(&self.0);
        current.tell(event);
        // Every event is made of names and numbers, which JSON can hold.
        if let Ok(event) = serde_json::to_value(event) {
            current.standing.insert(about.to_owned(), event);
        }
    }

    /// The version that the controller of the moment speaks. None if there is none.
    pub fn version(&self) -> Option<u32> {
        lock(&self.0).link.as_ref().map(|link| link.version())
    }

    /// What was said `about` this holds no more.
    pub fn over(&self, about: &str) {
        lock(&self.0).standing.remove(about);
    }
}

impl Control {
    /// Binds the control socket at `path` and listens. A socket that a dead process left there is replaced.
    ///
    /// # Errors
    /// [`ControlError::Listen`].
    pub fn listen(path: &Path) -> Result<Self, ControlError> {
        let open = || -> nix::Result<OwnedFd> {
            let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
            match nix::unistd::unlink(path) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
            bind(listener.as_raw_fd(), &UnixAddr::new(path)?)?;
            listen(&listener, Backlog::new(1)?)?;
            Ok(listener)
        };
        let listener =
            open().map_err(|errno| ControlError::Listen { path: path.into(), source: errno.into() })?;
        Ok(Self { listener, controller: geteuid(), current: Arc::default() })
    }

    /// Waits for a connection of the right uid; others are hung up on.
    fn connected(&self) -> Result<Link, ControlError> {
        loop {
            let fd = match accept4(self.listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
                Ok(fd) => own(fd),
                Err(Errno::EINTR | Errno::ECONNABORTED) => continue,
                // The host is short of something just now: no reason for a guest to die.
                Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                    std::thread::sleep(SHORTAGE);
                    continue;
                }
                Err(errno) => return Err(ControlError::Accept(errno.into())),
            };
            let peer =
                getsockopt(&fd, PeerCredentials).map_err(|errno| ControlError::Accept(errno.into()))?;
            if peer.uid() == self.controller.as_raw() {
                return Ok(fd.into());
            }
        }
    }

    /// From now on this is the controller, and knows what holds.
    fn follow(&self, link: Link) -> Arc<Link> {
        let link = Arc::new(link);
        let mut current = lock(&self.current);
        current.link = Some(link.clone());
        current.standing.values().for_each(|event| current.tell(event));
        link
    }

    /// Accepts the first controller and receives the first request, which must be the start message.
    ///
    /// # Errors
    /// [`ControlError::Nobody`] if no controller connects within a minute; [`ControlError::Start`] if the request is no
    /// start message, or of a version that this program does not speak, and the controller has been told. Does not
    /// return if the controller hangs up: it has given this process up on purpose.
    pub fn accept_start<R: DeserializeOwned>(&self) -> Result<(R, Fds), ControlError> {
        // Whoever starts this process may die before it connects: then nobody would ever end it.
        let mut listener = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        if poll(&mut listener, FIRST_CONTROLLER_MS) == Ok(0) {
            return Err(ControlError::Nobody);
        }
        let given_up = |error| match error {
            LinkError::Closed => std::process::exit(1),
            error => ControlError::Start(error),
        };
        let link = self.follow(self.connected()?.greet().map_err(given_up)?);
        link.receive_request().map_err(|error| {
            if !matches!(error, LinkError::Closed) {
                self.refuse(chain(&error));
            }
            given_up(error)
        })
    }

    /// Receives a request that comes before the start message is answered. Malformed ones are answered with a failure.
    ///
    /// # Errors
    /// There is no controller. Does not return if the controller hangs up: it has given this process up, and knows it.
    pub fn receive<R: DeserializeOwned>(&self) -> Result<(R, Fds), ControlError> {
        let link = lock(&self.current).link.clone().ok_or(ControlError::Nobody)?;
        loop {
            match link.receive_request() {
                Ok(received) => return Ok(received),
                Err(LinkError::Closed | LinkError::Io(_)) => std::process::exit(1),
                Err(refused) => self.refuse(chain(&refused)),
            }
        }
    }

    /// Answers a request with a failure that is not the end.
    pub fn refuse(&self, why: String) {
        let _ = self.answer::<()>(Err(why));
    }

    /// Answers the start message, or another request that came before it was answered.
    pub fn reply<A: Serialize>(&self, reply: &A) {
        let _ = self.answer(Ok(reply));
    }

    /// Answers the start message with a failure: one line, with its causes.
    ///
    /// Does not return when the controller has been told: it reports the failure to whoever asked, and the same line
    /// on standard error would be a second report. Returns if there never was one.
    pub fn fail(&self, error: &(dyn std::error::Error + 'static)) {
        self.end_with::<()>(Err(chain(error)));
    }

    /// The same, with an answer that says more than a line does. For a controller of a [`version`](Self::version) that
    /// knows the answer.
    pub fn fail_with<A: Serialize>(&self, refusal: &A) {
        self.end_with(Ok(refusal));
    }

    fn end_with<A: Serialize>(&self, answer: Result<&A, String>) {
        let had_controller = lock(&self.current).link.is_some();
        // One that has hung up has given this process up, and wants to hear nothing of it.
        if self.answer(answer) || had_controller {
            std::process::exit(1);
        }
    }

    /// The version that the controller of the moment speaks. None if there is none.
    pub fn version(&self) -> Option<u32> {
        lock(&self.current).link.as_ref().map(|link| link.version())
    }

    /// True if there was a controller and it has been answered.
    fn answer<A: Serialize>(&self, answer: Result<&A, String>) -> bool {
        let link = lock(&self.current).link.clone();
        // A controller that has gone needs no answer.
        link.is_some_and(|link| match answer {
            Ok(reply) => link.send(&FromChild::<&A, ()>::Reply(reply), &[]).is_ok(),
            Err(text) => link.send(&FromChild::<(), ()>::Failed(text), &[]).is_ok(),
        })
    }

    /// A sender of events for other threads.
    pub fn events(&self) -> Events {
        Events(self.current.clone())
    }

    /// Serves requests for ever: of the controller that sent the start message, then of each next one.
    ///
    /// A request that is malformed is answered with a failure and does not end anything.
    ///
    /// # Errors
    /// [`ControlError::Accept`]: the listening socket itself has failed.
    pub fn serve<R, A>(&self, mut handle: impl FnMut(R, Fds) -> Result<A, String>) -> Result<(), ControlError>
    where
        R: DeserializeOwned,
        A: Serialize,
    {
        loop {
            let current = lock(&self.current).link.clone();
            let link = match current {
                Some(link) => link,
                None => match self.connected()?.greet() {
                    Ok(link) => self.follow(link),
                    Err(_) => continue,
                },
            };
            loop {
                let answer = match link.receive_request::<R>() {
                    Ok((request, fds)) => handle(request, fds),
                    Err(LinkError::Closed | LinkError::Io(_)) => break,
                    Err(refused) => Err(chain(&refused)),
                };
                let sent = match answer {
                    Ok(reply) => link.send(&FromChild::<A, ()>::Reply(reply), &[]),
                    Err(text) => link.send(&FromChild::<A, ()>::Failed(text), &[]),
                };
                if sent.is_err() {
                    break;
                }
            }
            lock(&self.current).link = None;
        }
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// An error and its causes in one line.
pub fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[expect(unsafe_code, reason = "takes ownership of a descriptor that accept4 has just returned")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: accept4 has just returned this descriptor to us; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::connect;
    use shared_abi::control::{
        BackendReply, BlockRequest, Hello, RunnerEvent, RunnerReply, RunnerRequest, Welcome,
    };

    use super::*;

    fn dial(path: &Path) -> Link {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()).unwrap();
        Link::from(fd)
    }

    #[test]
    fn the_next_controller_is_told_what_holds_and_served_when_the_first_has_gone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("runner.sock");
        let control = Control::listen(&path).unwrap();
        let child = std::thread::spawn(move || {
            let (first, _) = control.accept_start::<RunnerRequest>().unwrap();
            assert_eq!(first, RunnerRequest::Resume);
            control.reply(&RunnerReply::Ready);
            let events = control.events();
            for n in 0..3 {
                events.stand(&format!("d{n}"), &RunnerEvent::DeviceLost(format!("d{n}").parse().unwrap()));
            }
            events.over("d1");
            let mut served = 0;
            let _ = control.serve(|request: RunnerRequest, _| {
                served += 1;
                assert!(served < 4);
                if request == RunnerRequest::Pause { Ok(RunnerReply::Done) } else { Err("not now".into()) }
            });
        });
        let first = dial(&path).greeted().unwrap();
        first.send_request(&RunnerRequest::Resume, &[]).unwrap();
        type Answer = FromChild<RunnerReply, RunnerEvent>;
        assert_eq!(first.receive::<Answer>().unwrap().0, Answer::Reply(RunnerReply::Ready));
        for n in ["d0", "d1", "d2"] {
            let lost = RunnerEvent::DeviceLost(n.parse().unwrap());
            assert_eq!(first.receive::<Answer>().unwrap().0, Answer::Event(lost));
        }
        drop(first);
        // One that cannot talk to this program is told, and the next one is served.
        let stranger = dial(&path);
        stranger.send(&Hello { oldest: 70, newest: 71 }, &[]).unwrap();
        assert!(matches!(stranger.receive::<Welcome>().unwrap().0, Welcome::Refused(_)));
        let second = dial(&path).greeted().unwrap();
        for n in ["d0", "d2"] {
            let lost = RunnerEvent::DeviceLost(n.parse().unwrap());
            assert_eq!(second.receive::<Answer>().unwrap().0, Answer::Event(lost));
        }
        second.send_request(&RunnerRequest::Pause, &[]).unwrap();
        assert_eq!(second.receive::<Answer>().unwrap().0, Answer::Reply(RunnerReply::Done));
        second.send(&"nonsense", &[]).unwrap();
        assert!(matches!(second.receive::<Answer>().unwrap().0, Answer::Failed(_)));
        second.send_request(&RunnerRequest::Status, &[]).unwrap();
        assert_eq!(second.receive::<Answer>().unwrap().0, Answer::Failed("not now".into()));
        drop(second);
        assert!(!child.is_finished());
    }

    #[test]
    fn a_wrong_start_message_is_answered_with_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("block.sock");
        let control = Control::listen(&path).unwrap();
        let accepted = std::thread::spawn(move || control.accept_start::<BlockRequest>().is_err());
        let link = dial(&path).greeted().unwrap();
        link.send(&serde_json::json!({"version": 1, "request": {"start": {"disk": []}}}), &[]).unwrap();
        assert!(accepted.join().unwrap());
        match link.receive::<FromChild<BackendReply, ()>>().unwrap().0 {
            FromChild::Failed(text) => assert!(text.contains("disk"), "{text}"),
            other => panic!("{other:?}"),
        }
    }
}
