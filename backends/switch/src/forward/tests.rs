//! Ports without their threads: the test has the rings in its hand, and says what time it is.

use std::fs::File;
use std::os::fd::AsFd;

use domus_driver::event;
use domus_driver::frames::{PLAIN, frame};
use domus_driver::frontend::{F_VERSION_1, OWN};
use domus_driver::memory::Memory;
use domus_driver::ring::{Layout, Ring, WRITE};
use shared_abi::control::{FdIndex, NetCard, NicLimit, Rate};
use vu_server::queue::{QueueSetup, RingAddresses};
use vu_server::{MemoryTable, Signals};

use super::*;

const MEMORY: u64 = 1 << 20;
const FRAME: u64 = 0x4_0000;
const BUFFER: u64 = 0x5_0000;

/// A guest with one ring at a port.
struct Guest {
    memory: Memory,
    ring: Ring,
    shared: Arc<Shared>,
}

fn mac(port: u8) -> [u8; 6] {
    [0x52, 0x54, 0, 0, 0, port]
}

impl Guest {
    fn new(port: u8, limit: NicLimit) -> Self {
        let memory = Memory::sealed(MEMORY).unwrap();
        let ring = Ring::new(&memory, Layout::at(0x1_0000, 16), false).unwrap();
        let address = shared_abi::MacAddress::new(mac(port)).unwrap();
        let mut card = NetCard::plain("eth0".parse().unwrap(), address, FdIndex(0), FdIndex(0));
        card.limits.transmit = limit;
        Self { memory, ring, shared: Arc::new(Shared::new(format!("d{port}"), &card)) }
    }

    fn queue(&self, index: u16) -> Box<Queue> {
        let file = File::from(self.memory.as_fd().try_clone_to_owned().unwrap());
        let mut table = MemoryTable::default();
        table.add(0, OWN, MEMORY, file, 0).unwrap();
        let layout = self.ring.layout();
        let queue = Queue::new(QueueSetup {
            device: "test".into(),
            index,
            size: layout.size,
            features: F_VERSION_1,
            memory: Arc::new(table),
            addresses: RingAddresses {
                descriptors: OWN + layout.descriptors,
                available: OWN + layout.available,
                used: OWN + layout.used,
            },
            next_available: 0,
            kick: event::kick().unwrap().into(),
            call: None,
            error: None,
            signals: Signals::Write,
            log: None,
        });
        Box::new(queue.unwrap())
    }

    /// Makes the frame in descriptor 0 one of `length` bytes to this port.
    fn put(&self, to: u8, from: u8, length: usize) {
        let bytes = [&PLAIN[..], &[0, 0], &frame(mac(to), mac(from), 1, length)].concat();
        self.memory.write_bytes(&bytes, FRAME);
        self.ring.set_descriptor(0, (FRAME, bytes.len() as u32, 0, 0));
    }
}

#[test]
fn a_frame_that_grows_while_it_waits_for_its_receiver_is_charged_for_what_it_has_become() {
    let rate = Rate { per_second: 8000, burst: 8000, burst_seconds: 1 };
    let limit = NicLimit { bits: Some(rate), packets: None };
    let (mut a, mut b) = (Guest::new(1, limit), Guest::new(2, NicLimit::default()));
    let mut ports = Ports::new();
    for (slot, guest) in [(1, &a), (2, &b)] {
        ports.table.fix(guest.shared.mac.bytes(), slot);
        ports.receive[slot] = Some(Receive::new(guest.shared.clone()));
        ports.transmit[slot] = Some(Box::new(Transmit::new(guest.shared.clone())));
    }
    ports.transmit[1].as_mut().unwrap().start(a.queue(1));
    ports.receive[2].as_mut().unwrap().start(b.queue(0));

    let now = 1 << 40;
    a.put(2, 1, 60);
    a.ring.offer(0);
    assert!(ports.pass_all(now));
    assert!(matches!(ports.transmit[1].as_ref().unwrap().wait, Some(Wait::Room(2, _))));
    a.put(2, 1, 1500);
    b.ring.set_descriptor(0, (BUFFER, 2000, WRITE, 0));
    b.ring.offer(0);
    ports.has_room(2);
    assert!(ports.pass_all(now));
    assert_eq!(b.ring.try_used(), Some((0, 12 + 1500)));
    // A hundred bytes come at once, and a thousand in a second.
    assert_eq!(a.shared.transmit.gate.open(|| now), Err(1_400_000_000));
}
