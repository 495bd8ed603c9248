//! Fixtures of this crate's tests: a tap in a network namespace of its own, and the real program.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod wire;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use domus_driver::control;
use domus_driver::process::{self, Running};
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use domus_startup::memfd;
use shared_abi::control::{
    BackendEvent, BackendReply, FromChild, Identity, NetCard, NetNic, NetRequest, NetStart, NetWire,
    NicRequest, NicStatistics,
};
use shared_abi::ids::DomId;
use shared_abi::limits::NIC_STATE_LEN;

/// A message of the child.
pub type Answer = FromChild<BackendReply, BackendEvent>;

/// The user the program becomes.
pub const UID: u32 = 1_900_000_004;

/// The real program with its NICs, started the way dom0 does.
pub struct Program {
    pub process: Running,
    pub link: Link,
    _dir: tempfile::TempDir,
}

/// The other end of a NIC's cable.
pub enum End {
    /// A tap's queues.
    Tap(Vec<OwnedFd>),
    /// A tap's queues, and a table by which it spreads frames.
    Steered(Vec<OwnedFd>, OwnedFd),
    /// A stream socket, connected or not.
    Stream(Option<UnixStream>),
}

/// A NIC for the program.
pub struct Plug {
    pub end: End,
    /// What its driver has set.
    pub state: File,
    /// What is to be another way than in [`NetCard::plain`] with any source address.
    pub change: Box<dyn Fn(&mut NetCard)>,
}

impl Plug {
    pub fn new(end: End) -> Self {
        Self { end, state: memfd::sealed("state", NIC_STATE_LEN).unwrap(), change: Box::new(|_| {}) }
    }

    pub fn with(end: End, change: impl Fn(&mut NetCard) + 'static) -> Self {
        Self { change: Box::new(change), ..Self::new(end) }
    }
}

/// Starts the program with `taps`, one NIC each; the streams are the frontends' ends.
pub fn start(taps: Vec<OwnedFd>) -> (Program, Answer, Vec<UnixStream>) {
    start_nics(taps.into_iter().map(|tap| Plug::new(End::Tap(vec![tap]))).collect())
}

/// Starts the program with these NICs; the streams are the frontends' ends.
pub fn start_nics(plugs: Vec<Plug>) -> (Program, Answer, Vec<UnixStream>) {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_domus-net"));
    let (process, link) = control::start("domus-net", &mut program, &dir.path().join("net.sock")).unwrap();
    let mut fds = Outgoing::default();
    let (mut nics, mut streams) = (Vec::new(), Vec::new());
    for (index, plug) in plugs.into_iter().enumerate() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let id = format!("eth{index}").parse().unwrap();
        let mac = format!("52:54:00:00:00:{index:02x}").parse().unwrap();
        let mut card = NetCard::plain(id, mac, fds.add(plug.state), fds.add(theirs));
        card.filter.any_mac = true;
        let wire = match plug.end {
            End::Tap(queues) => {
                card.pairs = queues.len() as u16;
                NetWire::Tap {
                    queues: queues.into_iter().map(|queue| fds.add(queue)).collect(),
                    steering: None,
                }
            }
            End::Steered(queues, table) => {
                card.pairs = queues.len() as u16;
                let queues = queues.into_iter().map(|queue| fds.add(queue)).collect();
                NetWire::Tap { queues, steering: Some(fds.add(table)) }
            }
            End::Stream(socket) => NetWire::Stream { socket: socket.map(|socket| fds.add(socket)) },
        };
        (plug.change)(&mut card);
        nics.push(NetNic { card, wire });
        streams.push(ours);
    }
    let identity = Identity { domain: "t".parse().unwrap(), domid: DomId(1), uid: UID };
    control::send(&link, &NetRequest::Start(NetStart { identity, nics }), fds).unwrap();
    let (answer, _) = link.receive::<Answer>().unwrap();
    (Program { process, link, _dir: dir }, answer, streams)
}

impl Program {
    /// Context switches of all its threads so far.
    pub fn switches(&self) -> u64 {
        process::switches(self.process.pid()).unwrap()
    }

    /// Asks something about NIC eth0, and waits for the answer.
    pub fn ask(&self, request: NicRequest) -> Answer {
        let request = NetRequest::Nic { nic: "eth0".parse().unwrap(), request };
        self.link.send_request(&request, &[]).unwrap();
        self.link.receive::<Answer>().unwrap().0
    }

    /// Has something done to NIC eth0.
    pub fn order(&self, request: NicRequest) {
        assert_eq!(self.ask(request), Answer::Reply(BackendReply::Done));
    }

    /// What NIC eth0 has done.
    pub fn statistics(&self) -> NicStatistics {
        match self.ask(NicRequest::Statistics) {
            Answer::Reply(BackendReply::Nic(statistics)) => *statistics,
            other => panic!("{other:?}"),
        }
    }

    /// Gives NIC eth0 a new connection.
    pub fn reconnect(&self, socket: UnixStream) -> Answer {
        let mut fds = Outgoing::default();
        let request = NetRequest::Reconnect { nic: "eth0".parse().unwrap(), socket: fds.add(socket) };
        control::send(&self.link, &request, fds).unwrap();
        self.link.receive::<Answer>().unwrap().0
    }
}
