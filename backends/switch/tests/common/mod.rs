//! What the tests of this crate are made of: the real program, and the guests at its ports, whose driver is that of
//! `domus-net`'s tests.

#![allow(dead_code, reason = "each test program uses its part")]

#[path = "../../../net/tests/common/driver.rs"]
pub mod driver;

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use domus_net::features;
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use domus_startup::memfd;
use driver::{EVENT_IDX, Guest, INDIRECT, VERSION_1};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use shared_abi::control::{
    BackendReply, Drops, FromChild, NetCard, NicLimits, NicRequest, NicStatistics, SwitchEvent,
    SwitchRequest, SwitchStart,
};
use shared_abi::limits::NIC_STATE_LEN;

/// How long a test waits for what must come.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The user the program becomes.
pub const UID: u32 = 1_900_000_005;

/// What most drivers settle on.
pub const USUAL: u64 = VERSION_1 | EVENT_IDX | INDIRECT | features::MRG_RXBUF;
/// And with all offloads.
pub const OFFLOADS: u64 =
    USUAL | features::CSUM | features::GUEST_CSUM | features::HOST_TSO4 | features::GUEST_TSO4;

/// A header that says nothing.
pub const PLAIN: [u8; 10] = [0; 10];

/// A message of the program.
pub type Answer = FromChild<BackendReply, SwitchEvent>;

/// The real program.
pub struct Switch {
    pub child: Child,
    pub link: Link,
    _dir: tempfile::TempDir,
}

impl Drop for Switch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn dial(path: &Path) -> Link {
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

/// The MAC address of the NIC at this port.
pub fn mac(port: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, port]
}

/// The card of the NIC at this port; its descriptors are put in by [`Switch::plug_card`].
pub fn card(port: u8) -> NetCard {
    let zero = shared_abi::control::FdIndex(0);
    NetCard::plain("eth0".parse().unwrap(), shared_abi::MacAddress::new(mac(port)).unwrap(), zero, zero)
}

impl Switch {
    /// Starts it the way dom0 does.
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let control = dir.path().join("switch.sock");
        let child =
            Command::new(env!("CARGO_BIN_EXE_domus-switch")).arg("--control").arg(&control).spawn().unwrap();
        let link = dial(&control).greeted().unwrap();
        let switch = Self { child, link, _dir: dir };
        let start = SwitchStart { name: "lan".parse().unwrap(), uid: UID };
        assert_eq!(switch.ask(&SwitchRequest::Start(start)), Answer::Reply(BackendReply::Ready));
        switch
    }

    /// Asks for something; returns the answer.
    pub fn ask(&self, request: &SwitchRequest) -> Answer {
        self.link.send_request(request, &[]).unwrap();
        self.link.receive::<Answer>().unwrap().0
    }

    /// Plugs a NIC in; returns the answer, and the frontend's end of its socket.
    pub fn plug_card(&self, domain: &str, mut card: NetCard) -> (Answer, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut fds = Outgoing::default();
        card.state = fds.add(memfd::sealed("state", NIC_STATE_LEN).unwrap());
        card.socket = fds.add(theirs);
        let fds = fds.into_vec();
        let request = SwitchRequest::Plug { domain: domain.parse().unwrap(), card };
        self.link.send_request(&request, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>()).unwrap();
        (self.link.receive::<Answer>().unwrap().0, ours)
    }

    /// Plugs the NIC of this port in.
    pub fn plug(&self, port: u8) -> UnixStream {
        let (answer, stream) = self.plug_card(&format!("d{port}"), card(port));
        assert_eq!(answer, Answer::Reply(BackendReply::Done));
        stream
    }

    /// A guest at this port, with 128 receive buffers of 1536 bytes, running.
    pub fn guest(&self, port: u8, wanted: u64) -> Guest {
        self.run(port, Guest::new(self.plug(port), wanted), 128)
    }

    /// Lets the guest at this port run with so many receive buffers of 1536 bytes; returns when its rings do.
    pub fn run(&self, port: u8, guest: Guest, buffers: u16) -> Guest {
        let mut guest = guest.run();
        guest.offer_buffers(buffers, 1536);
        guest.rx.kick();
        self.settle(port, &mut guest);
        guest
    }

    /// Waits until everything that a frontend has said has been obeyed.
    pub fn settle(&self, port: u8, guest: &mut Guest) {
        // An answer from the connection's thread, then one from the data thread.
        guest.config(1);
        assert_eq!(
            self.nic(port, NicRequest::Limit(NicLimits::default())),
            Answer::Reply(BackendReply::Done)
        );
    }

    /// Asks something about the NIC at this port.
    pub fn nic(&self, port: u8, request: NicRequest) -> Answer {
        let domain = format!("d{port}").parse().unwrap();
        self.ask(&SwitchRequest::Nic { domain, nic: "eth0".parse().unwrap(), request })
    }

    /// What the NIC at this port has done.
    pub fn statistics(&self, port: u8) -> NicStatistics {
        match self.nic(port, NicRequest::Statistics) {
            Answer::Reply(BackendReply::Nic(statistics)) => *statistics,
            other => panic!("{other:?}"),
        }
    }
}

/// How many frames were lost for this reason.
pub fn lost(drops: &[Drops], reason: shared_abi::control::DropReason) -> u64 {
    drops.iter().find(|drops| drops.reason == reason).map_or(0, |drops| drops.packets)
}

/// A frame of `length` bytes, all different from those of another `seed`.
pub fn frame(to: [u8; 6], from: [u8; 6], seed: u8, length: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &[0x88, 0xb5]].concat();
    frame.extend((frame.len()..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

/// Everybody.
pub const ALL: [u8; 6] = [0xff; 6];

/// A TCP segment over IPv4 of `payload` bytes with its checksum left open, and the header that says so: with segments
/// of 1448 bytes if it is large.
pub fn tcp(to: [u8; 6], from: [u8; 6], payload: usize) -> ([u8; 10], Vec<u8>) {
    let total = (40 + payload) as u16;
    let [a, b] = total.to_be_bytes();
    let ip = [0x45, 0, a, b, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
    let [c, d] = sum(&ip[12..], 6 + u32::from(total - 20)).to_be_bytes();
    let tcp = [0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, c, d, 0, 0];
    let mut frame = [&to[..], &from, &[8, 0], &ip, &tcp].concat();
    let checksum = (!sum(&ip, 0)).to_be_bytes();
    frame[24..26].copy_from_slice(&checksum);
    frame.extend((0..payload).map(|at| (at % 251) as u8));
    let (kind, size) = if payload > 1448 { (1, 1448_u16.to_le_bytes()) } else { (0, [0; 2]) };
    ([1, kind, 54, 0, size[0], size[1], 34, 0, 16, 0], frame)
}

/// Whether the checksums of a frame that [`tcp`] has made are filled in and right.
pub fn tcp_is_complete(frame: &[u8]) -> bool {
    let length = u32::from(u16::from_be_bytes([frame[16], frame[17]])) - 20;
    let segment = &frame[34..34 + length as usize];
    sum(&frame[14..34], 0) == 0xffff && sum(segment, u32::from(sum(&frame[26..34], 6 + length))) == 0xffff
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum = bytes.chunks(2).map(word).sum::<u32>() + start;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
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
