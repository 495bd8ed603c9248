//! The path of a queue through `domus-block`, from the ring to the image and back: whatever is in the ring, its tables
//! and the requests, it ends, writes neither beside the guest's memory nor behind the disk's last sector, and answers
//! requests that virtio can make sense of once each, with a status that exists, without a byte outside the buffers that
//! they lent.
#![no_main]

use std::sync::LazyLock;
use std::time::Duration;

use domus_driver::ring::{Buffer as Lent, INDIRECT, NEXT, WRITE};
use domus_fuzz::{Guest, MEMORY, PATIENCE, SECTORS, SIZE, Served, Storage, USED, start};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;
use vhost::VhostBackend;

static DISKS: LazyLock<[Served; 3]> = LazyLock::new(|| {
    [Storage::Memory, Storage::Direct, Storage::Cached].map(|storage| Served::new(storage, 1))
});

/// Chains of one input, and data buffers of one chain: all fit in the ring.
const CHAINS: usize = 8;
const BUFFERS: usize = 6;
/// Where a chain's indirect table, header, status and buffers are.
const TABLES: u64 = 0x900;
const HEADERS: u64 = 0xd00;
const STATUSES: u64 = 0xe00;
const WINDOWS: u64 = 0x1000;
const WINDOW: u64 = (MEMORY - WINDOWS) / CHAINS as u64;
/// What no device writes as a status, and what its buffers hold before.
const UNTOUCHED: u8 = 0xaa;

#[derive(Arbitrary, Debug)]
struct Input {
    storage: u8,
    features: u64,
    chains: Vec<Asked>,
    /// Bytes changed in rings, tables and headers before the device sees them.
    patches: Vec<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
struct Asked {
    kind: Kind,
    sector: Sector,
    /// What a discard or a write of zeroes is about.
    segment: (Sector, u16, u8),
    buffers: Vec<Buffer>,
    indirect: bool,
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Kind {
    In,
    Out,
    Flush,
    Id,
    Discard,
    WriteZeroes,
    Other(u32),
}

impl Kind {
    fn number(self) -> u32 {
        match self {
            Self::In => 0,
            Self::Out => 1,
            Self::Flush => 4,
            Self::Id => 8,
            Self::Discard => 11,
            Self::WriteZeroes => 13,
            Self::Other(number) => number,
        }
    }
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Sector {
    Near(u8),
    Any(u64),
}

impl Sector {
    fn number(self) -> u64 {
        match self {
            Self::Near(near) => u64::from(near) % (SECTORS + 2),
            Self::Any(any) => any,
        }
    }
}

#[derive(Arbitrary, Debug)]
enum Buffer {
    /// Whole sectors, or a segment, in the direction that the request needs.
    Sound { sectors: u8 },
    /// Anything within the chain's own part of the memory.
    Own { start: u16, len: u16, writable: bool },
    /// Anything.
    Wild { start: u64, len: u32, writable: bool },
}

/// What the chain lends, and whether all of it is in its own part of the memory.
fn lent(asked: &Asked, chain: u64) -> (Vec<Lent>, bool) {
    let window = WINDOWS + chain * WINDOW;
    let mut lent = vec![(HEADERS + chain * 16, 16, false)];
    let (mut next, mut tame) = (window, true);
    for buffer in asked.buffers.iter().take(BUFFERS) {
        lent.push(match buffer {
            Buffer::Sound { sectors } => {
                let (len, writable) = match asked.kind {
                    Kind::In => (u32::from(sectors % 4) * 512, true),
                    Kind::Id => (20, true),
                    Kind::Discard | Kind::WriteZeroes => (16, false),
                    _ => (u32::from(sectors % 4) * 512, false),
                };
                let len = len.min((window + WINDOW - next) as u32);
                next += u64::from(len);
                (next - u64::from(len), len, writable)
            }
            Buffer::Own { start, len, writable } => {
                let start = u64::from(*start) % WINDOW;
                (window + start, u32::from(*len).min((WINDOW - start) as u32), *writable)
            }
            Buffer::Wild { start, len, writable } => {
                tame = false;
                (*start, *len, *writable)
            }
        });
    }
    // Virtio wants what the device reads before what it writes.
    lent.sort_by_key(|&(_, _, writable)| writable);
    lent.push((STATUSES + chain, 1, true));
    (lent, tame)
}

/// Writes the chain to the memory; returns its head.
fn build(guest: &Guest, asked: &Asked, chain: u64, lent: &[Lent], indirect: bool) -> u16 {
    let mut header = asked.kind.number().to_le_bytes().to_vec();
    header.extend([0; 4]);
    header.extend(asked.sector.number().to_le_bytes());
    guest.write(HEADERS + chain * 16, &header);
    let (sector, count, flags) = asked.segment;
    let mut segment = sector.number().to_le_bytes().to_vec();
    segment.extend(u32::from(count).to_le_bytes());
    segment.extend(u32::from(flags).to_le_bytes());
    guest.write(WINDOWS + chain * WINDOW, &segment);
    let head = chain as u16 * (BUFFERS as u16 + 2);
    if !indirect {
        guest.rings[0].set_chain(head, lent);
        return head;
    }
    let table = TABLES + chain * 0x80;
    for (index, &(addr, len, writable)) in (0..).zip(lent) {
        let next = if usize::from(index) + 1 == lent.len() { 0 } else { NEXT };
        guest.descriptor(table, index, (addr, len, next | if writable { WRITE } else { 0 }, index + 1));
    }
    guest.rings[0].set_descriptor(head, (table, lent.len() as u32 * 16, INDIRECT, 0));
    head
}

/// Each chain has come back once with a status that exists, and nothing but what was lent has changed.
fn check(before: &[u8], after: &[u8], chains: &[(u16, Vec<Lent>)]) {
    let number = |at: u64| u32::from_le_bytes(after[at as usize..][..4].try_into().expect("four bytes"));
    let used = (number(USED) >> 16) as usize;
    assert_eq!(used, chains.len(), "{used} of {} chains came back", chains.len());
    let mut changeable = vec![false; after.len()];
    changeable[USED as usize..][..6 + 8 * usize::from(SIZE)].fill(true);
    for (chain, (head, lent)) in (0..).zip(chains) {
        let mut elements = (0..used as u64).map(|slot| USED + 4 + slot * 8);
        let element = elements.find(|&at| number(at) == u32::from(*head)).expect("every head comes back");
        let writable: u64 = lent.iter().filter(|lent| lent.2).map(|lent| u64::from(lent.1)).sum();
        assert!(u64::from(number(element + 4)) <= writable, "more was written than lent");
        assert!(after[(STATUSES + chain) as usize] <= 2, "the status is no status");
        for &(addr, len, _) in lent.iter().filter(|lent| lent.2) {
            changeable[addr as usize..][..len as usize].fill(true);
        }
    }
    let changed = (0..after.len()).find(|&at| before[at] != after[at] && !changeable[at]);
    assert_eq!(changed, None, "a byte that was not lent has changed");
}

fuzz_target!(|input: Input| {
    let disk = &DISKS[usize::from(input.storage) % DISKS.len()];
    let mut guest = Guest::new(1);
    (0..CHAINS as u64).for_each(|chain| guest.write(STATUSES + chain, &[UNTOUCHED]));
    let (mut chains, mut tame) = (Vec::new(), input.patches.is_empty());
    for (chain, asked) in (0..).zip(input.chains.iter().take(CHAINS)) {
        let (lent, own) = lent(asked, chain);
        let indirect = asked.indirect && input.features & vu_server::F_INDIRECT != 0;
        tame &= own;
        chains.push((build(&guest, asked, chain, &lent, indirect), lent));
    }
    chains.iter().for_each(|(head, _)| guest.rings[0].push(*head));
    guest.rings[0].show();
    for &(at, byte) in input.patches.iter().take(64) {
        guest.write(u64::from(at) % WINDOWS, &[byte]);
    }
    let before = guest.read();

    let (stream, server) = disk.connect();
    let frontend = start(stream, input.features, &guest);
    guest.rings[0].kick();
    // A ring that cannot be made sense of stands still, and one that overwrites itself says anything: these get a
    // moment to do their worst.
    let patience = if tame { PATIENCE } else { Duration::from_millis(3) };
    let answered = guest.wait_used(chains.len() as u16, patience);
    let base = frontend.get_vring_base(0).expect("every ring stops");
    drop(frontend);
    server.join().expect("no panic").expect("the connection ends as it should");

    guest.check_guards();
    disk.check_tail();
    if tame {
        assert!(answered, "some of {} requests are not answered", chains.len());
        assert_eq!(base as usize, chains.len(), "every chain is taken");
        check(&before, &guest.read(), &chains);
    }
});
