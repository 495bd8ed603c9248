//! The other side of `domus-block --control`: what dom0 says to it.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use domus_driver::control;
use domus_driver::process::Running;
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use shared_abi::control::{
    BackendEvent, BackendReply, BlockDisk, BlockRequest, BlockStart, DiskStatistics, FromChild, Identity,
    IoLimits,
};
use shared_abi::ids::DomId;

pub type Answer = FromChild<BackendReply, BackendEvent>;

/// Starts the program and connects to its control socket.
pub fn controlled(dir: &Path) -> (Running, Link) {
    let mut program = Command::new(env!("CARGO_BIN_EXE_domus-block"));
    control::start("domus-block", program.stdin(Stdio::null()), &dir.join("block.sock")).unwrap()
}

/// A user that is not root, or whoever runs the test.
pub fn identity() -> Identity {
    let own = nix::unistd::geteuid();
    let uid = if own.is_root() { 64_999 } else { own.as_raw() };
    Identity { domain: "blocktest".parse().unwrap(), domid: DomId(7), uid }
}

/// A disk with a serial, and the frontend's end of its socket.
pub fn disk(
    fds: &mut Outgoing,
    id: &str,
    image: File,
    read_only: bool,
    queues: u16,
) -> (BlockDisk, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (image, socket) = (fds.add(image), fds.add(OwnedFd::from(theirs)));
    let serial = format!("serial-{id}");
    (BlockDisk { serial, read_only, queues, ..BlockDisk::raw(id.parse().unwrap(), image, socket) }, ours)
}

/// Starts disks; returns the answer.
pub fn send(link: &Link, disks: Vec<BlockDisk>, fds: Outgoing) -> Answer {
    send_limited(link, disks, fds, IoLimits::default()).0
}

/// Starts disks of a domain with limits; returns the answer, and the other end of the lifeline.
pub fn send_limited(
    link: &Link,
    disks: Vec<BlockDisk>,
    mut fds: Outgoing,
    limits: IoLimits,
) -> (Answer, OwnedFd) {
    let (reader, lifeline) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap();
    let lifeline = fds.add(lifeline);
    let limited_files = domus_driver::process::may_raise_limits();
    let start =
        BlockStart { identity: identity(), disks, locks: Vec::new(), limits, lifeline, limited_files };
    control::send(link, &BlockRequest::Start(Box::new(start)), fds).unwrap();
    (link.receive().unwrap().0, reader)
}

/// Asks something; returns the answer, and the events that came before it.
pub fn ask(link: &Link, request: &BlockRequest) -> (Answer, Vec<BackendEvent>) {
    control::ask(link, request, Outgoing::default()).unwrap()
}

/// What a disk has done.
pub fn statistics(link: &Link, id: &str) -> DiskStatistics {
    match ask(link, &BlockRequest::Statistics(id.parse().unwrap())).0 {
        FromChild::Reply(BackendReply::Disk(statistics)) => *statistics,
        other => panic!("{other:?}"),
    }
}
