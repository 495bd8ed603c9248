use std::os::fd::{AsFd, OwnedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use proptest::prelude::*;

use super::*;
use crate::memory::Segment;

const SIZE: u16 = 8;
const LEN: u64 = 0x1_0000;
/// What the frontend adds to guest-physical addresses.
const OWN: u64 = 0x5000_0000;
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const TABLE: u64 = 0x4000;

struct Guest {
    memory: Arc<MemoryTable>,
    call: Arc<File>,
}

impl Guest {
    fn new() -> Self {
        let file = File::from(memfd_create("guest", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(LEN).unwrap();
        let mut memory = MemoryTable::default();
        memory.add(0, OWN, LEN, file, 0).unwrap();
        Self { memory: Arc::new(memory), call: eventfd().into() }
    }

    fn write(&self, addr: u64, bytes: &[u8]) {
        assert_eq!(
            self.memory.write(&[Segment { addr, len: bytes.len() as u32 }], 0, bytes),
            Ok(bytes.len())
        );
    }

    fn read_u16(&self, addr: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memory.read(&[Segment { addr, len: 2 }], 0, &mut bytes).unwrap();
        u16::from_le_bytes(bytes)
    }

    fn descriptor(&self, table: u64, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = table + 16 * u64::from(index);
        self.write(at, &addr.to_le_bytes());
        self.write(at + 8, &len.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    fn offer(&self, index: u16, head: u16) {
        self.write(AVAILABLE + 4 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.write(AVAILABLE + 2, &(index.wrapping_add(1)).to_le_bytes());
    }

    fn setup(&self, features: u64, next_available: u16) -> QueueSetup {
        QueueSetup {
            device: "test".into(),
            index: 0,
            size: SIZE,
            features,
            memory: self.memory.clone(),
            addresses: RingAddresses {
                descriptors: OWN + DESCRIPTORS,
                available: OWN + AVAILABLE,
                used: OWN + USED,
            },
            next_available,
            kick: eventfd().into(),
            call: Some(self.call.clone()),
            error: None,
            signals: Signals::Write,
            log: None,
        }
    }

    fn queue(&self, features: u64) -> Queue {
        Queue::new(self.setup(features, 0)).unwrap()
    }

    fn calls(&self) -> u64 {
        let mut count = [0; 8];
        match nix::unistd::read(self.call.as_fd(), &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

fn eventfd() -> File {
    File::from(OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC).unwrap()))
}

#[test]
fn a_chain_comes_out_as_it_was_put_in_and_goes_back_with_its_length() {
    let guest = Guest::new();
    let mut queue = guest.queue(0);
    let mut chain = Chain::default();
    assert!(!queue.pop(&mut chain));
    guest.descriptor(DESCRIPTORS, 3, 0x100, 16, NEXT, 5);
    guest.descriptor(DESCRIPTORS, 5, 0x200, 512, NEXT | WRITE, 1);
    guest.descriptor(DESCRIPTORS, 1, 0x300, 1, WRITE, 99);
    guest.offer(0, 3);
    assert!(queue.pop(&mut chain));
    assert_eq!(chain.head, 3);
    assert_eq!(chain.readable, [Segment { addr: 0x100, len: 16 }]);
    assert_eq!(chain.writable, [Segment { addr: 0x200, len: 512 }, Segment { addr: 0x300, len: 1 }]);
    assert!(!queue.pop(&mut chain));
    queue.unpop(1);
    assert!(queue.pop(&mut chain) && chain.head == 3);
    queue.push(3, 513);
    assert_eq!(guest.read_u16(USED + 2), 0, "shown before it was published");
    queue.publish();
    assert_eq!((guest.read_u16(USED + 2), guest.read_u16(USED + 4), guest.read_u16(USED + 8)), (1, 3, 513));
    assert_eq!(guest.calls(), 1);
    queue.publish();
    assert_eq!(guest.calls(), 0);
}

#[test]
fn an_indirect_table_is_read_where_it_was_negotiated() {
    let guest = Guest::new();
    guest.descriptor(TABLE + 1, 0, 0x100, 16, NEXT, 2);
    guest.descriptor(TABLE + 1, 2, 0x200, 8, WRITE, 0);
    guest.descriptor(DESCRIPTORS, 0, TABLE + 1, 48, INDIRECT, 0);
    guest.offer(0, 0);
    let mut chain = Chain::default();
    let mut queue = guest.queue(F_INDIRECT);
    assert!(queue.pop(&mut chain));
    assert_eq!((chain.readable_len(), chain.writable_len()), (16, 8));
    let mut queue = guest.queue(0);
    assert!(!queue.pop(&mut chain) && queue.is_broken());
}

#[test]
fn indices_wrap_around() {
    let guest = Guest::new();
    guest.write(USED + 2, &u16::MAX.to_le_bytes());
    guest.descriptor(DESCRIPTORS, 0, 0x100, 16, 0, 0);
    guest.write(AVAILABLE + 2, &u16::MAX.to_le_bytes());
    let mut queue = Queue::new(guest.setup(F_EVENT_IDX, u16::MAX)).unwrap();
    let mut chain = Chain::default();
    assert!(!queue.pop(&mut chain));
    guest.offer(u16::MAX, 0);
    guest.offer(0, 0);
    guest.calls();
    guest.write(AVAILABLE + 4 + 2 * u64::from(SIZE), &0_u16.to_le_bytes());
    for expected in [(0, 0), (1, 1)] {
        assert!(queue.pop(&mut chain));
        queue.push(chain.head, 0);
        queue.publish();
        assert_eq!((guest.read_u16(USED + 2), guest.calls()), expected);
    }
    assert_eq!(queue.next_available(), 1);
}

#[test]
fn the_driver_is_asked_not_to_kick_and_to_kick_again() {
    let guest = Guest::new();
    guest.descriptor(DESCRIPTORS, 0, 0x100, 16, 0, 0);
    let mut chain = Chain::default();
    let mut queue = guest.queue(0);
    queue.disable_kicks();
    assert_eq!(guest.read_u16(USED), 1);
    assert!(!queue.enable_kicks());
    assert_eq!(guest.read_u16(USED), 0);
    guest.offer(0, 0);
    assert!(queue.enable_kicks(), "a chain that came before the driver was asked to kick must be seen");
    let mut queue = guest.queue(F_EVENT_IDX);
    assert!(queue.pop(&mut chain));
    assert!(!queue.enable_kicks());
    assert_eq!(guest.read_u16(USED + 4 + 8 * u64::from(SIZE)), 1);
}

#[test]
fn a_ring_outside_memory_or_misaligned_is_none() {
    let guest = Guest::new();
    type Spoil = fn(&mut QueueSetup);
    let spoils: [Spoil; 8] = [
        |setup| setup.size = 0,
        |setup| setup.size = 3,
        |setup| setup.addresses.descriptors += 8,
        |setup| setup.addresses.available += 1,
        |setup| setup.addresses.used += 2,
        |setup| setup.addresses.used = OWN + LEN - 64,
        |setup| setup.addresses.descriptors = DESCRIPTORS,
        |setup| setup.addresses.available = u64::MAX - 1,
    ];
    for spoil in spoils {
        let mut setup = guest.setup(0, 0);
        spoil(&mut setup);
        let size = setup.size;
        assert_eq!(Queue::new(setup).err(), Some(QueueError::Ring(size)));
    }
}

#[test]
fn a_queue_that_takes_over_pops_first_what_its_killed_predecessor_had() {
    let guest = Guest::new();
    let log = Arc::new(MmapRegion::new(4096).unwrap());
    let take_over = |next_available| {
        let setup = guest.setup(0, next_available);
        Queue::new(QueueSetup { log: Some((log.clone(), 64)), ..setup }).unwrap()
    };
    for head in 0..SIZE {
        guest.descriptor(DESCRIPTORS, head, 0x100, 16, 0, 0);
    }
    let mut chain = Chain::default();
    let pops = |queue: &mut Queue, chain: &mut Chain| queue.pop(chain).then_some(chain.head);

    let mut queue = take_over(0);
    for (index, head) in (0..).zip([3, 7, 1, 4]) {
        guest.offer(index, head);
    }
    for head in [3, 7, 1] {
        assert_eq!(pops(&mut queue, &mut chain), Some(head));
    }
    queue.push(7, 0);
    queue.publish();
    drop(queue);

    // The frontend knows `used.idx` only. The driver may not have been called for what was used.
    guest.calls();
    let mut queue = take_over(1);
    assert_eq!(guest.calls(), 1);
    assert!(queue.enable_kicks());
    for head in [3, 1, 4] {
        assert_eq!(pops(&mut queue, &mut chain), Some(head));
        queue.push(head, 0);
    }
    assert_eq!(pops(&mut queue, &mut chain), None);
    queue.publish();
    assert_eq!((guest.read_u16(USED + 2), queue.next_available()), (4, 4));
    drop(queue);
    assert_eq!(pops(&mut take_over(4), &mut chain), None);
}

proptest! {
    #[test]
    fn whatever_is_in_the_rings_walking_ends_and_stays_within_bounds(
        table in prop::collection::vec((any::<u64>(), any::<u32>(), 0..8_u16, 0..12_u16), usize::from(SIZE)),
        indirect in prop::collection::vec((any::<u64>(), any::<u32>(), 0..8_u16, 0..6_u16), 4),
        lens in prop::collection::vec(0..6_u32, usize::from(SIZE)),
        heads in prop::collection::vec(0..10_u16, usize::from(SIZE)),
        available: u16,
        features in prop_oneof![Just(0), Just(F_INDIRECT), Just(F_EVENT_IDX | F_INDIRECT)],
    ) {
        let guest = Guest::new();
        for (index, &(addr, len, flags, next)) in (0..).zip(&indirect) {
            guest.descriptor(TABLE, index, addr, len, flags, next);
        }
        for (index, &(addr, len, flags, next)) in (0..).zip(&table) {
            let to_table = flags & INDIRECT != 0 && addr % 4 != 0;
            let (addr, len) = if to_table { (TABLE, 16 * lens[usize::from(index)]) } else { (addr, len) };
            guest.descriptor(DESCRIPTORS, index, addr, len, flags, next);
        }
        for (index, &head) in (0..).zip(&heads) {
            guest.write(AVAILABLE + 4 + 2 * index, &head.to_le_bytes());
        }
        guest.write(AVAILABLE + 2, &available.to_le_bytes());
        let mut queue = guest.queue(features);
        let mut chain = Chain::default();
        let mut popped = 0_u16;
        while queue.pop(&mut chain) {
            popped += 1;
            prop_assert!(popped <= SIZE);
            prop_assert!(chain.readable.len() + chain.writable.len() <= usize::from(SIZE).max(6));
            prop_assert!(chain.head < SIZE);
            queue.push(chain.head, 0);
        }
        queue.publish();
        prop_assert_eq!(guest.read_u16(USED + 2), popped);
        prop_assert!(queue.is_broken() || popped == available);
        prop_assert!(!queue.enable_kicks());
    }

    #[test]
    fn an_index_is_crossed_exactly_if_it_is_one_of_those_published(event: u16, old: u16, count in 1..1024_u16) {
        let new = old.wrapping_add(count);
        let among = (0..count).any(|i| old.wrapping_add(i) == event);
        prop_assert_eq!(crossed(event, old, new), among);
    }
}
