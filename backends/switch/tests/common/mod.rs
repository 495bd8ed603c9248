//! Fixtures of this crate's tests: the real program, and the guests at its ports.

#![allow(dead_code, reason = "each test program uses its part")]

use std::os::unix::net::UnixStream;
use std::process::Command;

use domus_driver::control;
use domus_driver::frontend::{F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use domus_driver::net::Guest;
use domus_driver::process::{self, Running};
use domus_net::features;
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use domus_startup::memfd;
use shared_abi::control::{
    BackendReply, Drops, FromChild, NetCard, NicLimits, NicRequest, NicStatistics, SwitchEvent,
    SwitchRequest, SwitchStart,
};
use shared_abi::limits::NIC_STATE_LEN;

/// The user the program becomes.
pub const UID: u32 = 1_900_000_005;

/// What most drivers settle on.
pub const USUAL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | features::MRG_RXBUF;
/// And with all offloads.
pub const OFFLOADS: u64 =
    USUAL | features::CSUM | features::GUEST_CSUM | features::HOST_TSO4 | features::GUEST_TSO4;

/// A message of the program.
pub type Answer = FromChild<BackendReply, SwitchEvent>;

/// The real program.
pub struct Switch {
    pub process: Running,
    pub link: Link,
    _dir: tempfile::TempDir,
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
        let mut program = Command::new(env!("CARGO_BIN_EXE_domus-switch"));
        let path = dir.path().join("switch.sock");
        let (process, link) = control::start("domus-switch", &mut program, &path).unwrap();
        let switch = Self { process, link, _dir: dir };
        let start = SwitchStart { name: "lan".parse().unwrap(), uid: UID };
        assert_eq!(switch.ask(&SwitchRequest::Start(start)), Answer::Reply(BackendReply::Ready));
        switch
    }

    /// Context switches of all its threads so far.
    pub fn switches(&self) -> u64 {
        process::switches(self.process.pid()).unwrap()
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
        let request = SwitchRequest::Plug { domain: domain.parse().unwrap(), card };
        control::send(&self.link, &request, fds).unwrap();
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
        guest.rx().kick();
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
