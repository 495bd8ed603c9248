//! Virtqueues: whatever a driver writes into its ring, popping ends, stays within the guest's memory, and gives
//! no more chains than the ring has slots for each time its index is read.
#![no_main]

use std::fs::File;
use std::os::unix::fs::FileExt;

use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vu_server::queue::{Chain, Queue, QueueSetup, RingAddresses};
use vu_server::{F_EVENT_IDX, F_INDIRECT, MemoryTable, Signals};

/// Two pages of guest memory; the ring is at the start of the first.
const MEMORY: u64 = 8192;
const SIZE: u16 = 16;

fuzz_target!(|input: (u64, u16, &[u8])| {
    let (features, next_available, bytes) = input;
    let file = File::from(memfd_create(c"guest-ram", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.set_len(MEMORY).expect("a memfd grows");
    let bytes = &bytes[..bytes.len().min(MEMORY as usize)];
    file.write_all_at(bytes, 0).expect("a memfd takes bytes");
    let mut memory = MemoryTable::default();
    memory.add(0, 0, MEMORY, file, 0).expect("one region");
    let null = || File::open("/dev/null").expect("/dev/null");
    let queue = Queue::new(QueueSetup {
        device: "fuzz".into(),
        index: 0,
        size: SIZE,
        features: features & (F_INDIRECT | F_EVENT_IDX),
        memory: memory.clone().into(),
        addresses: RingAddresses { descriptors: 0, available: 256, used: 512 },
        next_available,
        kick: null().into(),
        call: Some(null().into()),
        error: None,
        signals: Signals::Write,
        log: None,
    });
    let mut queue = queue.expect("a sound ring");
    let mut chain = Chain::default();
    let mut popped = 0;
    while queue.pop(&mut chain) {
        popped += 1;
        assert!(popped <= SIZE, "more chains than slots, though the driver stands still");
        assert!(chain.readable.len() + chain.writable.len() <= usize::from(vu_server::MAX_QUEUE_SIZE));
        let mut copy = [0; 64];
        let _ = memory.read(&chain.readable, 0, &mut copy);
        // Not written to: the ring is in the same two pages and would change under the count above.
        let mut iovecs = Vec::new();
        let _ = memory.iovecs(&chain.writable, 0, MEMORY, &mut iovecs);
        queue.push(chain.head, 1);
    }
    queue.enable_kicks();
});
