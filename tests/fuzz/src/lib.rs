//! What several targets need: a disk of `domus-block` that is served in this process, and a frontend that keeps the rules.

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
use nix::fcntl::OFlag;
use nix::sys::memfd::{MFdFlags, memfd_create};
use shared_abi::control::{Cache, IoLimits};
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::EventFd;
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
/// What the frontend adds to a guest-physical address to make it its own.
pub const OWN: u64 = 0x7f00_0000_0000;
/// `VHOST_USER_F_PROTOCOL_FEATURES`.
pub const F_PROTOCOL: u64 = 1 << 30;
/// Where a ring's parts are, of guest-physical addresses.
pub const DESCRIPTORS: u64 = 0;
/// See [`DESCRIPTORS`].
pub const AVAILABLE: u64 = 0x400;
/// See [`DESCRIPTORS`].
pub const USED: u64 = 0x600;

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
        Self { server: prepared.start().expect("threads"), image }
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

/// A guest's memory: two regions that touch, with guards around both in their file.
pub struct Guest(File);

impl Default for Guest {
    fn default() -> Self {
        let file = memory_file(MEMORY + 3 * GUARD);
        guards().for_each(|at| file.write_all_at(&GUARDED, at).expect("a guard"));
        Self(file)
    }
}

/// Where the guards are in the file.
fn guards() -> impl Iterator<Item = u64> {
    [0, GUARD + SEAM, 2 * GUARD + MEMORY].into_iter()
}

impl Guest {
    /// The two regions.
    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        [(0, GUARD), (SEAM, GUARD * 2)].map(|(start, guards)| VhostUserMemoryRegionInfo {
            guest_phys_addr: start,
            memory_size: SEAM,
            userspace_addr: OWN + start,
            mmap_offset: start + guards,
            mmap_handle: self.0.as_raw_fd(),
        })
    }

    fn at(address: u64) -> u64 {
        address + if address < SEAM { GUARD } else { 2 * GUARD }
    }

    /// Stores bytes, of which none or all are below [`SEAM`].
    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.0.write_all_at(bytes, Self::at(address)).expect("guest memory");
    }

    /// All of it.
    pub fn read(&self) -> Vec<u8> {
        let mut bytes = vec![0; MEMORY as usize];
        let (lower, upper) = bytes.split_at_mut(SEAM as usize);
        self.0.read_exact_at(lower, Self::at(0)).expect("guest memory");
        self.0.read_exact_at(upper, Self::at(SEAM)).expect("guest memory");
        bytes
    }

    /// Stores one descriptor of a table.
    pub fn descriptor(&self, table: u64, index: u16, (addr, len, flags, next): (u64, u32, u16, u16)) {
        let mut bytes = addr.to_le_bytes().to_vec();
        bytes.extend(len.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        bytes.extend(next.to_le_bytes());
        self.write(table + u64::from(index) * 16, &bytes);
    }

    /// Makes the chains with these heads available, as the first of a fresh ring.
    pub fn offer(&self, heads: &[u16]) {
        for (slot, head) in (0..).zip(heads) {
            self.write(AVAILABLE + 4 + slot * 2, &head.to_le_bytes());
        }
        self.write(AVAILABLE + 2, &(heads.len() as u16).to_le_bytes());
    }

    /// Waits until the device has used `count` chains of a fresh ring; false if it has not within `patience`.
    pub fn wait_used(&self, count: u16, patience: Duration) -> bool {
        let start = Instant::now();
        let mut used = [0; 2];
        loop {
            self.0.read_exact_at(&mut used, Self::at(USED + 2)).expect("guest memory");
            if u16::from_le_bytes(used) == count {
                return true;
            }
            if start.elapsed() > patience {
                return false;
            }
            std::thread::yield_now();
        }
    }

    /// Nobody has written beside a region.
    pub fn check_guards(&self) {
        for at in guards() {
            let mut bytes = GUARDED;
            self.0.read_exact_at(&mut bytes, at).expect("a guard");
            assert_eq!(bytes, GUARDED, "the guard at {at:#x} of the memory's file has changed");
        }
    }
}

/// Settles `features`, as far as they are offered, shares the memory, and starts queue 0 with what is in its ring.
pub fn start(stream: UnixStream, features: u64, guest: &Guest) -> (Frontend, EventFd) {
    let protocol = VhostUserProtocolFeatures::REPLY_ACK | VhostUserProtocolFeatures::CONFIG;
    let (kick, call) = (EventFd::new(0).expect("an eventfd"), EventFd::new(0).expect("an eventfd"));
    let mut frontend = Frontend::from_stream(stream, 1);
    let mut negotiate = || {
        frontend.set_owner()?;
        let offered = frontend.get_features()?;
        frontend.get_protocol_features()?;
        frontend.set_protocol_features(protocol)?;
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        frontend.set_features((features | F_PROTOCOL | vu_server::F_VERSION_1) & offered)?;
        frontend.set_mem_table(&guest.regions())?;
        frontend.set_vring_num(0, SIZE)?;
        frontend.set_vring_base(0, 0)?;
        let addresses = VringConfigData {
            queue_max_size: SIZE,
            queue_size: SIZE,
            flags: 0,
            desc_table_addr: OWN + DESCRIPTORS,
            used_ring_addr: OWN + USED,
            avail_ring_addr: OWN + AVAILABLE,
            log_addr: None,
        };
        frontend.set_vring_addr(0, &addresses)?;
        frontend.set_vring_call(0, &call)?;
        frontend.set_vring_kick(0, &kick)?;
        frontend.set_vring_enable(0, true)
    };
    negotiate().expect("a frontend that keeps the rules is served");
    (frontend, kick)
}

/// What a driver that keeps the rules sees: sector 5, and nothing else.
pub fn reads_a_sector(stream: UnixStream) {
    let guest = Guest::default();
    let (header, data, status) = (0x1000, 0x2000, 0x1800);
    guest.write(header, &[0, 0, 0, 0, 0, 0, 0, 0, 5]);
    guest.write(status, &[0xaa]);
    guest.descriptor(DESCRIPTORS, 0, (header, 16, 1, 1));
    guest.descriptor(DESCRIPTORS, 1, (data, 512, 3, 2));
    guest.descriptor(DESCRIPTORS, 2, (status, 1, 2, 0));
    guest.offer(&[0]);
    let (frontend, kick) = start(stream, 0, &guest);
    kick.write(1).expect("a kick");
    assert!(guest.wait_used(1, PATIENCE), "the read is not answered");
    assert_eq!(frontend.get_vring_base(0).expect("the ring stops"), 1);
    let memory = guest.read();
    assert_eq!(memory[status as usize], 0, "the read has failed");
    guest.check_guards();
}
