//! The path of a NIC's queues through `domus-net`, from the rings to the wire and back: whatever is in the rings, the
//! frames and the commands, it ends, writes neither beside the guest's memory nor into buffers that were not lent,
//! sends nothing that the NIC's filter forbids or whose header breaks a rule, and answers every command with one of two
//! bytes.
#![no_main]

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use domus_driver::frontend::Terms;
use domus_driver::ring::Buffer;
use domus_fuzz::{Guest, PATIENCE, RING, SERVED, SIZE, USED};
use domus_net::device::NetDevice;
use domus_net::driver_state::{DriverState, Memory};
use domus_net::features::{MRG_RXBUF, header_len};
use domus_net::filter::{Filter, HEAD};
use domus_net::header::{self, LEN};
use domus_net::nic::Card;
use domus_net::prepared::{Cable, NicSpec, Prepared};
use domus_net::tap::Tap;
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use shared_abi::MacAddress;
use shared_abi::control::{AddressRange, NicFilter, NicLimits};
use shared_abi::limits::NIC_STATE_LEN;
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vu_server::Server;

const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x56];

/// Receive, transmit and control.
const QUEUES: u64 = 3;

/// Frames of the guest, commands, their answers, receive buffers: how many there are at most, where, and how far apart.
const SENT: (usize, u64, u64) = (8, 0x2000, 0x800);
const COMMANDS: (usize, u64, u64) = (8, 0x6000, 0x100);
const ANSWERS: u64 = 0x7000;
const BUFFERS: (usize, u64, u64) = (16, 0x8000, 0x800);
const UNTOUCHED: u8 = 0xaa;

/// A NIC with its threads, for as long as this process lives, and the other end of its cable.
struct Nic {
    server: Server<NetDevice>,
    far: OwnedFd,
    filter: Filter,
    /// Frames on its wire have no header.
    stream: bool,
}

impl Nic {
    fn new(stream: bool) -> Self {
        let kind = if stream { SockType::Stream } else { SockType::SeqPacket };
        let (near, far) =
            socketpair(AddressFamily::Unix, kind, None, SockFlag::SOCK_CLOEXEC).expect("a socket pair");
        let rules = NicFilter {
            any_mac: false,
            addresses: Some(vec![AddressRange { address: [10, 0, 0, 0].into(), prefix: 8 }]),
            tags: true,
            ..NicFilter::default()
        };
        let mac = MacAddress::new(MAC).expect("an address");
        let filter = Filter::new(mac, &rules);
        let state = domus_startup::memfd::sealed("state", NIC_STATE_LEN).expect("a state");
        // There is no tap that could be asked what it can.
        let memory = Memory { datagrams: Some(true), ..Memory::default() };
        DriverState::new(Some(state.try_clone().expect("a descriptor"))).save(&memory).expect("room");
        let cable = if stream {
            Cable::Stream(Some(near.into()))
        } else {
            Cable::Tap { queues: vec![Tap::in_place(near).expect("a socket")], steering: None }
        };
        let spec = NicSpec {
            name: "fuzz",
            card: Card { mac: Some(mac), mtu: Some(1500), pairs: 1, controlled: true, any_mac: false },
            filter: Some(filter.clone()),
            limits: NicLimits::default(),
            link: true,
            cable,
            state: Some(state.into()),
        };
        let prepared = Prepared::new(spec).expect("a NIC");
        let server =
            prepared.start(|| Box::new(|error| panic!("the wire is lost: {error}"))).expect("threads");
        Self { server, far, filter, stream }
    }

    /// What has come out at the other end of the cable is lawful.
    fn check_sent(&self, features: u64, pending: &mut Vec<u8>) {
        let mut bytes = vec![0; 80_000];
        while let Ok(count) = recv(self.far.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
            if !self.stream {
                let (virtio, frame) = bytes[..count].split_at(header_len(features));
                let mut header = [0; LEN];
                header[..virtio.len()].copy_from_slice(virtio);
                assert_eq!(header::check(header, frame.len() as u64, features), Ok(header));
                self.check_frame(&header, frame);
                continue;
            }
            pending.extend_from_slice(&bytes[..count]);
            while let Some((length, rest)) = pending.split_first_chunk::<4>() {
                let length = u32::from_be_bytes(*length) as usize;
                assert!((14..=header::MAX_FRAME as usize).contains(&length), "a frame of {length} bytes");
                let Some(frame) = rest.get(..length) else { break };
                self.check_frame(&[0; LEN], frame);
                pending.drain(..4 + length);
            }
        }
    }

    fn check_frame(&self, header: &[u8; LEN], frame: &[u8]) {
        assert_eq!(frame[6..12], MAC, "from another address");
        let head = &frame[..frame.len().min(HEAD)];
        assert_eq!(self.filter.check(header, head, frame.len() as u64), Ok(()), "{head:x?}");
    }

    /// A frame arrives, if there is room.
    fn arrive(&self, frame: &[u8], features: u64) {
        let before = if self.stream {
            (frame.len() as u32).to_be_bytes().to_vec()
        } else {
            vec![0; header_len(features)]
        };
        let bytes = [before, frame.to_vec()].concat();
        // A stream takes all or nothing of so little, as long as it is not full.
        if let Ok(count) = send(self.far.as_raw_fd(), &bytes, MsgFlags::MSG_DONTWAIT) {
            let rest = &bytes[count..];
            assert!(rest.is_empty() || send(self.far.as_raw_fd(), rest, MsgFlags::empty()) == Ok(rest.len()));
        }
    }
}

static NICS: LazyLock<[Nic; 2]> = LazyLock::new(|| [false, true].map(Nic::new));

#[derive(Arbitrary, Debug)]
struct Input {
    stream: bool,
    features: u64,
    sent: Vec<Sent>,
    commands: Vec<Command>,
    /// Lengths of receive buffers.
    buffers: Vec<u16>,
    /// Frames that arrive: length, and the first bytes.
    arriving: Vec<(u16, [u8; 16])>,
    /// Bytes changed in the rings before the device sees them.
    patches: Vec<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Sent {
    header: Option<[u8; 12]>,
    /// It is from the guest's own address.
    own: bool,
    frame: Vec<u8>,
    padding: u16,
    /// Where it is cut into two buffers.
    cut: u16,
    /// A third buffer.
    wild: Option<(u64, u32)>,
}

#[derive(Arbitrary, Debug)]
enum Command {
    Mode(u8, bool),
    Tables(Vec<[u8; 6]>, Vec<[u8; 6]>),
    Vlan(bool, u16),
    Offloads(u64),
    Any(Vec<u8>),
}

impl Command {
    fn bytes(&self) -> Vec<u8> {
        let mut bytes = match self {
            Self::Mode(mode, on) => vec![0, mode % 7, u8::from(*on)],
            Self::Tables(unicast, multicast) => {
                let table = |table: &Vec<[u8; 6]>| {
                    [&(table.len() as u32).to_le_bytes()[..], &table.concat()].concat()
                };
                [vec![1, 0], table(unicast), table(multicast)].concat()
            }
            Self::Vlan(add, vlan) => [&[2, u8::from(*add)][..], &vlan.to_le_bytes()].concat(),
            Self::Offloads(offloads) => [&[5, 0][..], &offloads.to_le_bytes()].concat(),
            Self::Any(bytes) => bytes.clone(),
        };
        bytes.truncate(COMMANDS.2 as usize);
        bytes
    }
}

/// Makes the chains of one ring available. Each has four places in the table.
fn offer(guest: &mut Guest, queue: usize, chains: &[Vec<Buffer>]) {
    let ring = &mut guest.rings[queue];
    for (head, chain) in (0..).step_by(4).zip(chains) {
        ring.set_chain(head, chain);
        ring.push(head);
    }
    ring.show();
}

fn used(memory: &[u8], queue: u64) -> usize {
    let at = (queue * RING + USED + 2) as usize;
    u16::from_le_bytes([memory[at], memory[at + 1]]).into()
}

/// A driver that begins anew: settles the features, shares the memory, starts all rings.
fn start(stream: UnixStream, features: u64, guest: &Guest) -> (Frontend, u64) {
    let protocol = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::RESET_DEVICE;
    let terms = Terms { queues: QUEUES, needed: 0, wanted: features, protocol, acknowledged: true };
    let mut settled = terms.settle(stream).expect(SERVED);
    settled.frontend.reset_device().expect(SERVED);
    settled.frontend.set_features(settled.features).expect(SERVED);
    guest.run(&mut settled.frontend);
    (settled.frontend, settled.features)
}

fuzz_target!(|input: Input| {
    let nic = &NICS[usize::from(input.stream)];
    let mut guest = Guest::new(QUEUES);
    let mut tame = input.patches.is_empty();

    let mut sent = Vec::new();
    for (slot, frame) in (0_u64..).zip(input.sent.iter().take(SENT.0)) {
        let mut bytes = frame.header.unwrap_or_default().to_vec();
        bytes.extend(frame.frame.iter().take(600));
        bytes.extend(vec![0; usize::from(frame.padding % 1000)]);
        if let (true, Some(source)) = (frame.own, bytes.get_mut(18..24)) {
            source.copy_from_slice(&MAC);
        }
        let at = SENT.1 + slot * SENT.2;
        guest.write(at, &bytes);
        let cut = u32::from(frame.cut).min(bytes.len() as u32);
        let mut chain = vec![(at, cut, false), (at + u64::from(cut), bytes.len() as u32 - cut, false)];
        chain.extend(frame.wild.map(|(addr, len)| (addr, len, false)));
        sent.push(chain);
    }
    offer(&mut guest, 1, &sent);

    let mut commands = Vec::new();
    for (slot, command) in (0_u64..).zip(input.commands.iter().take(COMMANDS.0)) {
        let (at, bytes) = (COMMANDS.1 + slot * COMMANDS.2, command.bytes());
        guest.write(at, &bytes);
        guest.write(ANSWERS + slot, &[UNTOUCHED]);
        commands.push(vec![(at, bytes.len() as u32, false), (ANSWERS + slot, 1, true)]);
    }
    offer(&mut guest, 2, &commands);

    let lengths = input.buffers.iter().take(BUFFERS.0).map(|length| u32::from(*length).min(BUFFERS.2 as u32));
    let buffers: Vec<_> =
        (0..).zip(lengths).map(|(slot, length)| vec![(BUFFERS.1 + slot * BUFFERS.2, length, true)]).collect();
    offer(&mut guest, 0, &buffers);

    for &(at, byte) in input.patches.iter().take(64) {
        guest.write(u64::from(at) % (QUEUES * RING), &[byte]);
    }
    let before = guest.read();

    let (ours, theirs) = UnixStream::pair().expect("a socket pair");
    let server = std::thread::spawn(move || nic.server.serve(theirs));
    let (frontend, features) = start(ours, input.features, &guest);
    for (length, first) in input.arriving.iter().take(16) {
        let mut frame = vec![0x11; usize::from(*length).clamp(14, 4000)];
        let many = first.len().min(frame.len());
        frame[..many].copy_from_slice(&first[..many]);
        nic.arrive(&frame, features);
    }
    // A ring that cannot be made sense of stands still; it gets a moment to do its worst.
    let patience = if tame { PATIENCE } else { Duration::from_millis(3) };
    let (end, mut pending) = (Instant::now() + patience, Vec::new());
    let answered = loop {
        nic.check_sent(features, &mut pending);
        let memory = guest.read();
        if used(&memory, 1) == sent.len() && used(&memory, 2) == commands.len() {
            break true;
        }
        if Instant::now() > end {
            break false;
        }
        std::thread::yield_now();
    };
    for queue in 0..QUEUES as usize {
        frontend.get_vring_base(queue).expect("every ring stops");
    }
    drop(frontend);
    server.join().expect("no panic").expect("the connection ends as it should");
    nic.check_sent(features, &mut pending);

    guest.check_guards();
    tame &= input.sent.iter().all(|frame| frame.wild.is_none());
    if !tame {
        return;
    }
    assert!(answered, "frames or commands are not given back");
    let after = guest.read();
    let mut changeable = vec![false; after.len()];
    for queue in 0..QUEUES {
        changeable[(queue * RING + USED) as usize..][..6 + 8 * usize::from(SIZE)].fill(true);
    }
    for &(addr, len, writable) in commands.iter().chain(&buffers).flatten() {
        changeable[addr as usize..][..len as usize].fill(writable);
    }
    let changed = (0..after.len()).find(|&at| before[at] != after[at] && !changeable[at]);
    assert_eq!(changed, None, "a byte that was not lent has changed");
    for slot in 0..commands.len() {
        assert!(after[ANSWERS as usize + slot] <= 1, "no answer");
    }
    let merges = features & MRG_RXBUF != 0;
    assert!(merges || used(&after, 0) <= buffers.len());
});
