//! vhost-user messages: whatever a frontend sends, in whatever order and with whatever descriptors, the server neither
//! panics nor hangs, and when the frontend has gone nothing of it is left: no descriptor is open, and the next one,
//! which keeps the rules, is served.
#![no_main]

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use domus_driver::frontend::{F_PROTOCOL, OWN};
use domus_fuzz::{Guest, MEMORY, Served, Storage, memory_file, reads_a_sector, start};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use nix::sys::eventfd::EventFd;
use nix::sys::signal::{SigHandler, Signal, signal};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};

static DISK: LazyLock<Served> = LazyLock::new(|| {
    // As in every Rust program; libFuzzer's main is none.
    // SAFETY: to ignore a signal runs no handler.
    unsafe { signal(Signal::SIGPIPE, SigHandler::SigIgn) }.expect("a signal can be ignored");
    Served::new(Storage::Memory, 2)
});

#[derive(Arbitrary, Debug)]
struct Input {
    /// Begin with a ring that runs.
    running: bool,
    messages: Vec<Message>,
}

#[derive(Arbitrary, Debug)]
struct Message {
    body: Body,
    acknowledge: bool,
    descriptors: Vec<Descriptor>,
}

#[derive(Arbitrary, Debug)]
enum Body {
    /// A request without a payload.
    Plain(u8),
    /// One with a number: features, a ring's eventfd.
    Number(u8, Number),
    /// One with a ring and a number.
    Ring(u8, u8, Number),
    /// `SET_VRING_ADDR`.
    Addresses { ring: u8, flags: u8, addresses: [Number; 4] },
    /// `SET_MEM_TABLE`.
    Table(Vec<Region>),
    /// `ADD_MEM_REG` or `REM_MEM_REG`.
    Slot { add: bool, region: Region },
    /// `GET_CONFIG` or `SET_CONFIG`.
    Config { get: bool, offset: u16, size: u16, bytes: Vec<u8> },
    /// `GET_INFLIGHT_FD` or `SET_INFLIGHT_FD`.
    Inflight { get: bool, size: Number, offset: Number, queues: u8, queue_size: u16 },
    /// Bytes with a header that need not fit them.
    Raw { request: u8, flags: u8, size: u16, bytes: Vec<u8> },
}

#[derive(Arbitrary, Debug)]
enum Number {
    Small(u8),
    /// An address of the frontend's within the memory, or beside it.
    Address(u16),
    /// Features that are offered.
    Features(u8),
    Any(u64),
}

impl Number {
    fn get(&self) -> u64 {
        match *self {
            Self::Small(small) => small.into(),
            Self::Address(offset) => OWN + u64::from(offset) * 4,
            // The ring's features, the device's first, and the protocol's by the same bits.
            Self::Features(bits) => {
                u64::from(bits & 3) << 28 | 1 << 32 | F_PROTOCOL | u64::from(bits) << 2 & 0x3ff
            }
            Self::Any(any) => any,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Region {
    /// One that can be mapped.
    Sound {
        page: u8,
        pages: u8,
    },
    Any([u64; 4]),
}

impl Region {
    fn bytes(&self) -> Vec<u8> {
        let numbers = match *self {
            Self::Sound { page, pages } => {
                let start = u64::from(page) * 4096;
                [start, u64::from(pages) * 4096, OWN + start, start % MEMORY]
            }
            Self::Any(numbers) => numbers,
        };
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }
}

#[derive(Arbitrary, Debug)]
enum Descriptor {
    Memory,
    Empty,
    Event { count: bool },
    Null,
    Zero,
    HungUp,
}

impl Descriptor {
    fn open(&self) -> OwnedFd {
        let event = |count| EventFd::from_value(count).expect("an eventfd").into();
        match self {
            Self::Memory => memory_file(MEMORY).into(),
            Self::Empty => memory_file(0).into(),
            Self::Event { count } => event(u32::from(*count)),
            Self::Null => File::options().read(true).write(true).open("/dev/null").expect("/dev/null").into(),
            Self::Zero => File::open("/dev/zero").expect("/dev/zero").into(),
            Self::HungUp => UnixStream::pair().expect("a socket pair").0.into(),
        }
    }
}

/// Requests without a payload: features, owner, queues, slots, reset.
const PLAIN: &[u32] = &[1, 3, 4, 15, 17, 34, 36];
/// Requests with a number: features, then the rings' descriptors, then the dirty log's.
const NUMBER: &[u32] = &[2, 16, 12, 13, 14, 7];
/// Requests with a ring and a number: size, base, enable.
const RING: &[u32] = &[8, 10, 11, 18];

fn pick(requests: &[u32], index: u8) -> u32 {
    requests[usize::from(index) % requests.len()]
}

impl Body {
    /// Request, flags beyond the version, length, payload.
    fn encode(&self) -> (u32, u32, u32, Vec<u8>) {
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let numbers = |numbers: &[&Number]| {
            numbers.iter().flat_map(|number| number.get().to_le_bytes()).collect::<Vec<u8>>()
        };
        let (request, payload) = match self {
            Self::Plain(index) => (pick(PLAIN, *index), Vec::new()),
            Self::Number(index, number) => (pick(NUMBER, *index), numbers(&[number])),
            Self::Ring(index, ring, number) => {
                (pick(RING, *index), words(&[u32::from(*ring) % 4, number.get() as u32]))
            }
            Self::Addresses { ring, flags, addresses } => {
                let head = words(&[u32::from(*ring) % 4, u32::from(*flags) & 1]);
                (9, [head, numbers(&addresses.each_ref())].concat())
            }
            Self::Table(regions) => {
                let regions = &regions[..regions.len().min(9)];
                let head = words(&[regions.len() as u32, 0]);
                (5, [head, regions.iter().flat_map(Region::bytes).collect()].concat())
            }
            Self::Slot { add, region } => (if *add { 37 } else { 38 }, [vec![0; 8], region.bytes()].concat()),
            Self::Config { get, offset, size, bytes } => {
                let head = words(&[u32::from(*offset) % 300, u32::from(*size) % 300, 0]);
                let mut payload = bytes.clone();
                payload.resize(usize::from(*size) % 300, 0);
                (if *get { 24 } else { 25 }, [head, payload].concat())
            }
            Self::Inflight { get, size, offset, queues, queue_size } => {
                let counts = [u16::from(*queues).to_le_bytes(), queue_size.to_le_bytes()].concat();
                (if *get { 31 } else { 32 }, [numbers(&[size, offset]), counts, vec![0; 4]].concat())
            }
            Self::Raw { request, flags, size, bytes } => {
                return (u32::from(*request), u32::from(*flags), u32::from(*size), bytes.clone());
            }
        };
        (request, 0, payload.len() as u32, payload)
    }
}

/// Sends one message; false if nobody listens any more.
fn send(stream: &mut UnixStream, message: &Message) -> bool {
    const VERSION: u32 = 1;
    const NEED_REPLY: u32 = 8;
    let (request, flags, size, payload) = message.body.encode();
    let flags = VERSION | flags | if message.acknowledge { NEED_REPLY } else { 0 };
    let head: Vec<u8> = [request, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
    let open: Vec<OwnedFd> = message.descriptors.iter().take(9).map(Descriptor::open).collect();
    let numbers: Vec<i32> = open.iter().map(|fd| fd.as_fd().as_raw_fd()).collect();
    let control = [ControlMessage::ScmRights(&numbers)];
    let control = if numbers.is_empty() { &[][..] } else { &control[..] };
    let parts = [IoSlice::new(&head), IoSlice::new(&payload)];
    // Answers are taken, so that the server is never kept from going on; the descriptors in them are closed by the
    // kernel.
    while stream.read(&mut [0; 4096]).is_ok_and(|read| read > 0) {}
    sendmsg::<UnixAddr>(stream.as_raw_fd(), &parts, control, MsgFlags::MSG_DONTWAIT, None).is_ok()
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc").count()
}

fuzz_target!(|input: Input| {
    let disk = &*DISK;
    let before = open_descriptors();
    let (mut stream, server) = disk.connect();
    if input.running {
        let guest = Guest::new(1);
        drop(start(stream.try_clone().expect("a descriptor"), 0, &guest));
    }
    stream.set_nonblocking(true).expect("a socket");
    for message in input.messages.iter().take(32) {
        if !send(&mut stream, message) {
            break;
        }
    }
    drop(stream);
    // Refused or not: it is over.
    let _ = server.join().expect("no panic");

    let (stream, server) = disk.connect();
    reads_a_sector(stream);
    server.join().expect("no panic").expect("the connection ends as it should");
    assert_eq!(open_descriptors(), before, "a descriptor of a frontend that has gone is open");
    disk.check_tail();
});
