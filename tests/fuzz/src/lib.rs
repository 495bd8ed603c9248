//! What several targets need: a disk of `domus-block` that is served in this process, a guest, and a frontend that
//! keeps the rules.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use domus_block::device::BlockDevice;
use domus_block::disk::{Disk, Service};
use domus_block::faults::Faults;
use domus_block::raw::{Raw, RawEngine};
use domus_block::threads::Prepared;
use domus_block::throttle::{self, Gate};
use domus_driver::frontend::{F_VERSION_1, OWN, Terms, region, run, set_up};
use domus_driver::memory::Memory;
use domus_driver::ring::{Descriptor, Layout, Ring, put_descriptor};
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use shared_abi::control::{Cache, IoLimits};
use vhost::vhost_user::Frontend;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vu_server::Server;
use vu_server::server::ConnectionError;

/// Sectors of the disk.
pub const SECTORS: u64 = 128;
/// Bytes behind the last sector: no guest may see or change them.
pub const TAIL: [u8; 100] = [0x5a; 100];
/// Descriptors of a ring.
pub const SIZE: u16 = 64;
/// Bytes of guest memory, which starts at guest-physical 0.
pub const MEMORY: u64 = 0x1_0000;
/// Where the second of its two regions starts.
pub const SEAM: u64 = MEMORY / 2;
/// Where a ring's used ring is, from its start, where its descriptors are.
pub const USED: u64 = 0x600;
/// How far the rings are apart. The first one starts at guest-physical 0.
pub const RING: u64 = 0x900;

/// The proof that a message of [`start`] is answered.
pub const SERVED: &str = "a frontend that keeps the rules is served";

/// No request of ours takes so long.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Bytes around each region in the memory's file, which no guest's address leads to.
const GUARD: u64 = 4096;
const GUARDED: [u8; GUARD as usize] = [0xc3; GUARD as usize];

/// A disk and its threads, for as long as this process lives.
pub struct Served {
    server: Server<BlockDevice>,
    image: File,
}

/// What is under a disk: each is another way through the backend.
#[derive(Clone, Copy, Debug)]
pub enum Storage {
    /// Requests are answered at once.
    Memory,
    /// They go to the kernel, through buffers of the backend where the guest's are not aligned.
    Direct,
    /// Reads may be answered at once.
    Cached,
}

impl Served {
    /// A disk in which every sector begins with its number, with this many queues.
    pub fn new(storage: Storage, queues: u16) -> Self {
        let image = match storage {
            Storage::Memory | Storage::Direct => memory_file(0),
            Storage::Cached => {
                let mut unnamed = File::options();
                unnamed.read(true).write(true).custom_flags(OFlag::O_TMPFILE.bits());
                unnamed.open(std::env::temp_dir()).expect("a temporary file")
            }
        };
        (0..SECTORS)
            .for_each(|sector| image.write_all_at(&sector.to_le_bytes(), sector * 512).expect("a sector"));
        image.write_all_at(&TAIL, SECTORS * 512).expect("a tail");
        let (cache, flags) = match storage {
            Storage::Direct => (Cache::None, OFlag::O_DIRECT),
            Storage::Memory | Storage::Cached => (Cache::Writeback, OFlag::empty()),
        };
        let path = format!("/proc/self/fd/{}", image.as_raw_fd());
        let file = File::options().read(true).write(true).custom_flags(flags.bits()).open(path);
        let opened = Raw::open(file.expect("the same file"), false, true, cache, None).expect("an image");
        let gate = Gate::new(IoLimits::default(), throttle::shared(IoLimits::default()));
        let service = Service { serial: "fuzz".into(), cache, gate, faults: Faults::reported() };
        let disk = Disk::new(opened.bytes, opened.shape, service).expect("a disk");
        let raw = Arc::new(opened.raw);
        let engine = || RawEngine::new(raw.clone());
        let prepared = Prepared::new("fuzz", disk, queues, &[raw.as_fd()], engine).expect("rings");
        // What is in memory that only other VMMs have is looked at, too.
        Self { server: prepared.start().expect("threads").with_any_memory(), image }
    }

    /// A connection, and the thread that serves it until it ends.
    pub fn connect(&'static self) -> (UnixStream, JoinHandle<Result<(), ConnectionError>>) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        (ours, std::thread::spawn(move || self.server.serve(theirs)))
    }

    /// Nothing but sectors has been written.
    pub fn check_tail(&self) {
        let mut tail = [0; TAIL.len()];
        self.image.read_exact_at(&mut tail, SECTORS * 512).expect("the image is as long as it was");
        assert_eq!(tail, TAIL, "the bytes behind the last sector have changed");
        let len = self.image.metadata().expect("an image").len();
        assert_eq!(len, SECTORS * 512 + TAIL.len() as u64, "the image has another length");
    }
}

/// An empty memory file of `len` bytes.
pub fn memory_file(len: u64) -> File {
    let file = File::from(memfd_create(c"fuzz", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(len).expect("a memfd grows");
    file
}

/// A guest: its rings, and its memory of two regions that touch, with guards around both in their file.
pub struct Guest {
    memory: Memory,
    /// One for each queue.
    pub rings: Vec<Ring>,
}

/// Where the guards are in the file.
fn guards() -> impl Iterator<Item = u64> {
    [0, GUARD + SEAM, 2 * GUARD + MEMORY].into_iter()
}

impl Guest {
    /// With this many rings, which are empty.
    pub fn new(queues: u64) -> Self {
        let memory = Memory::sealed(MEMORY + 3 * GUARD).expect("memory for a guest");
        guards().for_each(|at| memory.write_bytes(&GUARDED, at));
        let ring = |queue| {
            let descriptors = Self::at(queue * RING);
            let (available, used) = (descriptors + 0x400, descriptors + USED);
            Ring::new(&memory, Layout { descriptors, available, used, size: SIZE }, false).expect("a ring")
        };
        Self { rings: (0..queues).map(ring).collect(), memory }
    }

    /// The two regions.
    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        [0, SEAM].map(|start| VhostUserMemoryRegionInfo {
            mmap_offset: Self::at(start),
            ..region(&self.memory, start, SEAM, OWN + start)
        })
    }

    fn at(address: u64) -> u64 {
        address + if address < SEAM { GUARD } else { 2 * GUARD }
    }

    /// Stores bytes, of which none or all are below [`SEAM`].
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.memory.write_bytes(bytes, Self::at(address));
    }

    /// All of it.
    pub fn read(&self) -> Vec<u8> {
        [0, SEAM].map(|start| self.memory.read_bytes(Self::at(start), SEAM as usize)).concat()
    }

    /// Stores one descriptor of a table.
    pub fn descriptor(&self, table: u64, index: u16, descriptor: Descriptor) {
        put_descriptor(&self.memory, Self::at(table), index, descriptor);
    }

    /// Waits until the device has used `count` chains of the first ring; false if it has not within `patience`.
    pub fn wait_used(&self, count: u16, patience: Duration) -> bool {
        let start = Instant::now();
        while self.rings[0].used_index() != count {
            if start.elapsed() > patience {
                return false;
            }
            std::thread::yield_now();
        }
        true
    }

    /// Nobody has written beside a region.
    pub fn check_guards(&self) {
        for at in guards() {
            let bytes = self.memory.read_bytes(at, GUARD as usize);
            assert_eq!(bytes, GUARDED, "the guard at {at:#x} of the memory's file has changed");
        }
    }

    /// Shares the memory, and starts all rings with what is in them.
    pub fn run(&self, frontend: &mut Frontend) {
        frontend.set_mem_table(&self.regions()).expect(SERVED);
        for (queue, ring) in self.rings.iter().enumerate() {
            // All rings are in the first region.
            set_up(frontend, queue, ring, OWN - GUARD, 0).expect(SERVED);
            run(frontend, queue, ring).expect(SERVED);
        }
    }
}

/// Settles `features`, as far as they are offered, shares the memory, and starts queue 0 with what is in its ring.
pub fn start(stream: UnixStream, features: u64, guest: &Guest) -> Frontend {
    let protocol = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
    let wanted = features | F_VERSION_1;
    let terms = Terms { queues: 1, needed: 0, wanted, protocol, acknowledged: true };
    let mut frontend = terms.settle(stream).expect(SERVED).frontend;
    guest.run(&mut frontend);
    frontend
}

/// What a driver that keeps the rules sees: sector 5, and nothing else.
pub fn reads_a_sector(stream: UnixStream) {
    let mut guest = Guest::new(1);
    let (header, data, status) = (0x1000, 0x2000, 0x1800);
    guest.write(header, &[0, 0, 0, 0, 0, 0, 0, 0, 5]);
    guest.write(status, &[0xaa]);
    guest.rings[0].set_chain(0, &[(header, 16, false), (data, 512, true), (status, 1, true)]);
    guest.rings[0].offer(0);
    let frontend = start(stream, 0, &guest);
    guest.rings[0].kick();
    assert!(guest.wait_used(1, PATIENCE), "the read is not answered");
    assert_eq!(frontend.get_vring_base(0).expect("the ring stops"), 1);
    let memory = guest.read();
    assert_eq!(memory[status as usize], 0, "the read has failed");
    guest.check_guards();
}
