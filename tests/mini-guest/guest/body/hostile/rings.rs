//! Rings that lie, on queues that are set up well: loops, wild addresses, giant lengths, jumping indices, and noise.

use super::{armed, recovered, victim, wild};
use crate::body::ring::{NEXT, Queue, TO_TABLE, WRITE};
use crate::body::rng::Rng;
use crate::body::virtio::{EVENT_IDX, INDIRECT, Virtio};
use crate::body::{Failed, Outcome, arena, clock, say, sys};

type Case = (&'static str, fn(&mut Queue, &mut Rng, u64));

/// Each is given a queue of the running device and a page of scratch memory, which begins with a block request header.
const CASES: [Case; 20] = [
    ("a descriptor that is its own next", |q, _, m| {
        Queue::describe(q.desc, 0, m, 16, NEXT, 0);
        q.offer(0);
    }),
    ("a loop over all descriptors", |q, _, m| {
        (0..q.size).for_each(|i| Queue::describe(q.desc, i, m, 16, NEXT, (i + 1) % q.size));
        q.offer(0);
    }),
    ("a next beyond the table", |q, _, m| {
        Queue::describe(q.desc, 0, m, 16, NEXT, 0xffff);
        q.offer(0);
    }),
    ("a head beyond the table", |q, _, _| q.offer(q.size)),
    ("a head of 65535", |q, _, _| q.offer(0xffff)),
    ("an indirect table in an indirect table", |q, _, m| {
        Queue::describe(m + 256, 0, m + 256, 32, TO_TABLE, 0);
        Queue::describe(m + 256, 1, m, 16, 0, 0);
        Queue::describe(q.desc, 0, m + 256, 32, TO_TABLE, 0);
        q.offer(0);
    }),
    ("an indirect table that is the descriptor table", |q, _, _| {
        Queue::describe(q.desc, 0, q.desc, 16 * u32::from(q.size), TO_TABLE, 0);
        q.offer(0);
    }),
    ("an indirect table of no length, of odd length, and of 4 GiB", |q, _, m| {
        for (i, len) in [0, 17, u32::MAX, 0xffff_fff0, 0x10_0000].into_iter().enumerate() {
            Queue::describe(q.desc, i as u16, m + 256, len, TO_TABLE, 0);
            q.offer(i as u16);
        }
    }),
    ("an indirect table nowhere", |q, rng, _| {
        for i in 0..8 {
            Queue::describe(q.desc, i, rng.edge(), 64, TO_TABLE, 0);
            q.offer(i);
        }
    }),
    ("an indirect descriptor with a next", |q, _, m| {
        Queue::describe(m + 256, 0, m, 16, 0, 0);
        Queue::describe(q.desc, 0, m + 256, 16, TO_TABLE | NEXT, 1);
        Queue::describe(q.desc, 1, m + 64, 1, WRITE, 0);
        q.offer(0);
    }),
    ("a loop within an indirect table", |q, _, m| {
        (0..16).for_each(|i| Queue::describe(m + 256, i, m, 16, NEXT, (i + 1) % 16));
        Queue::describe(q.desc, 0, m + 256, 256, TO_TABLE, 0);
        q.offer(0);
    }),
    ("giant lengths", |q, _, m| {
        Queue::describe(q.desc, 0, m, 16, NEXT, 1);
        Queue::describe(q.desc, 1, arena::end(), u32::MAX, NEXT | WRITE, 2);
        Queue::describe(q.desc, 2, arena::end(), u32::MAX, NEXT | WRITE, 3);
        Queue::describe(q.desc, 3, m + 64, 1, WRITE, 0);
        q.offer(0);
    }),
    ("buffers nowhere", |q, rng, m| {
        for i in 0..4 {
            Queue::describe(q.desc, i * 3, m, 16, NEXT, i * 3 + 1);
            Queue::describe(q.desc, i * 3 + 1, wild(rng, 4096), 4096, NEXT | WRITE, i * 3 + 2);
            Queue::describe(q.desc, i * 3 + 2, wild(rng, 1), 1, WRITE, 0);
            q.offer(i * 3);
        }
    }),
    ("a buffer that wraps around the address space", |q, _, m| {
        Queue::describe(q.desc, 0, m, 16, NEXT, 1);
        Queue::describe(q.desc, 1, u64::MAX - 511, 1024, NEXT | WRITE, 2);
        Queue::describe(q.desc, 2, m + 64, 1, WRITE, 0);
        q.offer(0);
    }),
    ("a buffer in device registers and one across the end of RAM", |q, _, m| {
        for (i, at) in [(0, 0xfee0_0000), (3, 0xc000_0000 - 256)] {
            Queue::describe(q.desc, i, m, 16, NEXT, i + 1);
            Queue::describe(q.desc, i + 1, at, 4096, NEXT | WRITE, i + 2);
            Queue::describe(q.desc, i + 2, m + 64, 1, WRITE, 0);
            q.offer(i);
        }
    }),
    ("nothing writable, nothing readable, nothing at all", |q, _, m| {
        Queue::describe(q.desc, 0, m, 16, 0, 0);
        Queue::describe(q.desc, 1, m, 16, WRITE, 0);
        Queue::describe(q.desc, 2, m, 0, 0, 0);
        Queue::describe(q.desc, 3, 0, 0, WRITE, 0);
        (0..4).for_each(|i| q.offer(i));
    }),
    ("a readable descriptor after a writable one", |q, _, m| {
        Queue::describe(q.desc, 0, m + 64, 1, NEXT | WRITE, 1);
        Queue::describe(q.desc, 1, m, 16, NEXT, 2);
        Queue::describe(q.desc, 2, m + 128, 1, WRITE, 0);
        q.offer(0);
    }),
    ("the same chain many times", |q, _, m| {
        Queue::describe(q.desc, 0, m, 16, NEXT, 1);
        Queue::describe(q.desc, 1, m + 512, 512, NEXT | WRITE, 2);
        Queue::describe(q.desc, 2, m + 64, 1, WRITE, 0);
        (0..q.size * 2).for_each(|_| q.offer(0));
    }),
    ("an available index that jumps", |q, _, _| {
        for index in [q.size + 1, 0x8000, 0xffff, 0x4000] {
            q.set_avail_index(index);
            q.notify();
        }
    }),
    ("a buffer over the rings themselves", |q, _, m| {
        Queue::describe(q.desc, 0, m, 16, NEXT, 1);
        Queue::describe(q.desc, 1, q.desc, 512, NEXT | WRITE, 2);
        Queue::describe(q.desc, 2, q.used + 2, 1, WRITE, 0);
        q.offer(0);
    }),
];

/// Every case on every kind of victim, then noise in all rings. After each the device must reset; now and then work.
pub fn all(rng: &mut Rng, rounds: u64) -> Outcome {
    for (name, case) in CASES {
        attack(rng, name, case).inspect_err(|_| say!("reason after {name}"))?;
        recovered(1).inspect_err(|_| say!("reason after {name}"))?;
    }
    for round in 0..rounds {
        attack(rng, "noise", noise).inspect_err(|_| say!("reason after noise in round {round}"))?;
        if round % 8 == 7 {
            recovered(round).inspect_err(|_| say!("reason after noise in round {round}"))?;
        }
    }
    Ok(())
}

fn attack(rng: &mut Rng, _name: &str, case: fn(&mut Queue, &mut Rng, u64)) -> Result<(), Failed> {
    let mark = arena::mark();
    let v: Virtio = victim(rng)?;
    let mut queue = armed(&v, if rng.below(2) == 0 { INDIRECT | EVENT_IDX } else { INDIRECT })?;
    let scratch = arena::alloc(8192, 4096);
    // A block request: read sector 0. For a network device it is a header of zeros.
    sys::write32(scratch, 0);
    v.go()?;
    case(&mut queue, rng, scratch);
    queue.notify();
    clock::spin(1000);
    queue.notify();
    v.reset()?;
    arena::rewind(mark);
    Ok(())
}

/// Random descriptors (never pointing a writable one at this guest's image) and random heads.
fn noise(queue: &mut Queue, rng: &mut Rng, scratch: u64) {
    for table in [queue.desc, scratch + 256] {
        for i in 0..16 {
            let len = rng.pick(&[0, 1, 16, 512, 4096, 0x10000]);
            let at = if rng.below(2) == 0 { scratch + rng.below(4096) } else { wild(rng, u64::from(len)) };
            let at = if at < arena::BASE { at } else { at.max(scratch) };
            let flags = rng.next() as u16 & rng.pick(&[3, 3, 3, 7, 0xffff]);
            let at = if flags & TO_TABLE != 0 && rng.below(2) == 0 { scratch + 256 } else { at };
            Queue::describe(table, i, at, len, flags, rng.below(18) as u16);
        }
    }
    for _ in 0..8 {
        queue.offer(rng.below(18) as u16);
        if rng.below(2) == 0 {
            queue.notify();
        }
    }
}
