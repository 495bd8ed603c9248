//! Rings that change while the device reads them: what was checked must be what is used.
//!
//! One CPU offers requests that begin well; the others rewrite their descriptors, the indirect table, the available
//! ring and the headers all the while. Addresses are in the arena or nowhere, never in this guest's image.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::{armed, victim};
use crate::body::ring::{NEXT, Queue, TO_TABLE, WRITE};
use crate::body::rng::Rng;
use crate::body::virtio::{EVENT_IDX, INDIRECT, Virtio};
use crate::body::{Machine, Outcome, arena, clock, ensure, say, smp, sys};

/// Descriptors of the ring under attack.
const SIZE: u64 = 16;

/// Descriptor table, available ring and scratch memory of the queue that runs; 0 for none.
static RING: [AtomicU64; 3] = [const { AtomicU64::new(0) }; 3];
static GO_ON: AtomicBool = AtomicBool::new(false);
static WRITES: AtomicU64 = AtomicU64::new(0);

/// What each of the other processors does until the race is over.
pub fn scribble(cpu: u32) {
    let mut rng = Rng::new(0x5c00 + u64::from(cpu));
    while GO_ON.load(Ordering::SeqCst) {
        let [desc, avail, scratch] = [0, 1, 2].map(|i: usize| RING[i].load(Ordering::Acquire));
        if desc != 0 {
            change(&mut rng, desc, avail, scratch);
            WRITES.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Changes one field of a descriptor (in the ring or in the indirect table), of the available ring or of a header.
fn change(rng: &mut Rng, desc: u64, avail: u64, scratch: u64) {
    let table = rng.pick(&[desc, desc, scratch + 256]);
    let entry = table + rng.below(SIZE) * 16;
    let own = (entry / 16 % SIZE) as u16;
    match rng.below(8) {
        0 | 1 => {
            let inside = scratch + rng.below(4096);
            sys::write64(
                entry,
                rng.pick(&[inside, inside, scratch, scratch + 256, arena::end() - 8, 1 << 40, u64::MAX]),
            );
        }
        2 => sys::write32(entry + 8, rng.pick(&[0, 1, 16, 17, 512, 4096, 0x10_0000, u32::MAX])),
        3 | 4 => sys::write16(
            entry + 12,
            rng.pick(&[0, NEXT, WRITE, NEXT | WRITE, TO_TABLE, TO_TABLE | NEXT, 0xffff]),
        ),
        5 => sys::write16(entry + 14, rng.pick(&[0, 1, 2, 15, 16, 0xffff, own])),
        6 => sys::write16(avail + 4 + rng.below(SIZE) * 2, rng.pick(&[0, 1, 2, 3, 15, 16, 0xffff])),
        _ => sys::write32(scratch + rng.below(4) * 4, rng.pick(&[0, 1, 4, 8, 11, u32::MAX])),
    }
}

fn well_formed(queue: &Queue, scratch: u64) {
    sys::fill(scratch, 32, 0);
    for i in (0..15).step_by(3) {
        Queue::describe(queue.desc, i, scratch, 16, NEXT, i + 1);
        Queue::describe(queue.desc, i + 1, scratch + 1024, 512, NEXT | WRITE, i + 2);
        Queue::describe(queue.desc, i + 2, scratch + 64, 1, WRITE, 0);
    }
    Queue::describe(queue.desc, 15, scratch + 256, 48, TO_TABLE, 0);
    Queue::describe(scratch + 256, 0, scratch, 16, NEXT, 1);
    Queue::describe(scratch + 256, 1, scratch + 1024, 512, NEXT | WRITE, 2);
    Queue::describe(scratch + 256, 2, scratch + 64, 1, WRITE, 0);
}

/// Rounds of a device that is brought up, offered requests under fire, and reset.
pub fn race(machine: &Machine, rng: &mut Rng, rounds: u64) -> Outcome {
    let cpus = smp::start_all(machine);
    ensure!(cpus == machine.acpi.cpu_count as u32, "{cpus} of {} processors came up", machine.acpi.cpu_count);
    GO_ON.store(true, Ordering::SeqCst);
    WRITES.store(0, Ordering::SeqCst);
    smp::give(smp::SCRIBBLE);
    for _ in 0..rounds {
        let mark = arena::mark();
        let v: Virtio = victim(rng)?;
        let mut queue = armed(&v, if rng.below(2) == 0 { INDIRECT | EVENT_IDX } else { INDIRECT })?;
        let scratch = arena::alloc(8192, 4096);
        well_formed(&queue, scratch);
        for (place, at) in RING.iter().zip([queue.desc, queue.avail, scratch]) {
            place.store(at, Ordering::Release);
        }
        v.go()?;
        let end = clock::deadline(5);
        while sys::tsc() < end {
            well_formed(&queue, scratch);
            for _ in 0..rng.below(12) {
                queue.offer(rng.pick(&[0, 3, 6, 9, 12, 15]));
            }
            queue.notify();
            clock::spin(20);
            change(rng, queue.desc, queue.avail, scratch);
        }
        RING[0].store(0, Ordering::SeqCst);
        v.reset()?;
        // A scribbler may be in the middle of its last write.
        clock::spin(50);
        arena::rewind(mark);
    }
    GO_ON.store(false, Ordering::SeqCst);
    ensure!(smp::finished(clock::deadline(20_000)), "a processor does not come back from the race");
    say!("value hostile race cpus={cpus} writes={}", WRITES.load(Ordering::SeqCst));
    Ok(())
}
