//! What the tests of this crate are made of: a tap in a network namespace of its own, and a driver with its rings.

#![allow(dead_code, reason = "each test program uses its part")]

pub mod driver;
pub mod wire;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use domus_startup::Link;
use domus_startup::fds::Outgoing;
use domus_startup::memfd;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use shared_abi::control::{
    BackendEvent, BackendReply, FromChild, Identity, NetCard, NetNic, NetRequest, NetStart, NetWire,
};
use shared_abi::ids::DomId;
use shared_abi::limits::NIC_STATE_LEN;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A message of the child.
pub type Answer = FromChild<BackendReply, BackendEvent>;

/// The user the program becomes.
pub const UID: u32 = 1_900_000_004;

/// The real program with one NIC, started the way dom0 does.
pub struct Program {
    pub child: Child,
    pub link: Link,
    _dir: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn dial(path: &Path) -> Link {
    let until = Instant::now() + PATIENCE;
    loop {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        match connect(fd.as_raw_fd(), &UnixAddr::new(path).unwrap()) {
            Ok(()) => return fd.into(),
            Err(errno) if Instant::now() > until => panic!("{}: {errno}", path.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

/// Starts the program with `taps`, one NIC each; the streams are the frontends' ends.
pub fn start(taps: Vec<OwnedFd>) -> (Program, Answer, Vec<UnixStream>) {
    let dir = tempfile::tempdir().unwrap();
    let control = dir.path().join("net.sock");
    let child = Command::new(env!("CARGO_BIN_EXE_domus-net")).arg("--control").arg(&control).spawn().unwrap();
    let link = dial(&control);
    let mut fds = Outgoing::default();
    let (mut nics, mut streams) = (Vec::new(), Vec::new());
    for (index, tap) in taps.into_iter().enumerate() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let state = fds.add(memfd::sealed("state", NIC_STATE_LEN).unwrap());
        let id = format!("eth{index}").parse().unwrap();
        let mac = format!("52:54:00:00:00:{index:02x}").parse().unwrap();
        let card = NetCard::plain(id, mac, state, fds.add(theirs));
        nics.push(NetNic { card, wire: NetWire::Tap { queues: vec![fds.add(tap)], steering: None } });
        streams.push(ours);
    }
    let identity = Identity { domain: "t".parse().unwrap(), domid: DomId(1), uid: UID };
    let fds = fds.into_vec();
    let request = NetRequest::Start(NetStart { identity, nics });
    link.send_request(&request, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
    drop(fds);
    let (answer, _) = link.receive::<Answer>().unwrap();
    (Program { child, link, _dir: dir }, answer, streams)
}

/// Context switches of all threads so far: what wakes a thread adds to it.
pub fn switches(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let of = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).unwrap();
        let counts = status.lines().filter(|line| line.contains("ctxt_switches"));
        counts.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum::<u64>()
    };
    tasks.map(|task| of(task.unwrap())).sum()
}

/// Private memory in KiB.
pub fn private_memory(pid: u32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let lines = rollup.lines().filter(|line| line.starts_with("Private_"));
    lines.map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()).sum()
}
