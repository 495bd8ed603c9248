//! Queues that cannot be: addresses nowhere, unaligned, wrapping, over each other; sizes; enabling twice; reset storms.

use super::{armed, recovered, victim, wild};
use crate::body::ring::{Queue, Segment};
use crate::body::rng::Rng;
use crate::body::virtio::{EVENT_IDX, INDIRECT, common};
use crate::body::{Outcome, arena, clock, ensure, sys};

/// Starts devices on impossible queues and notifies them. Every eighth time the devices must prove they work.
pub fn addresses(rng: &mut Rng, rounds: u64) -> Outcome {
    for round in 0..rounds {
        let mark = arena::mark();
        let v = victim(rng)?;
        let mut queue = armed(&v, INDIRECT | EVENT_IDX)?;
        // Past a first enabling nothing may change; before it everything. Try both.
        if rng.below(2) == 0 {
            v.negotiate(INDIRECT | EVENT_IDX)?;
            v.select(0);
        }
        let size = rng.pick(&[0, 1, 3, 16, 1000, 0x8000, 0xffff, rng_size(round)]);
        sys::write16(v.common.at + common::QUEUE_SIZE, size);
        let bytes = 6 + 8 * 0x1_0000;
        let (desc, avail, used) = match round % 8 {
            0 => (wild(rng, bytes), wild(rng, bytes), wild(rng, bytes)),
            1 => (queue.desc + 1 + rng.below(15), queue.avail | 1, queue.used + 1 + rng.below(3)),
            2 => (u64::MAX - 15, u64::MAX - 1, u64::MAX - 3),
            3 => (0xc000_0000, 0xfee0_0000, v.common.at),
            4 => (queue.desc, queue.avail, wild(rng, bytes)),
            5 => (queue.used, queue.used, queue.used),
            6 => (arena::end() - 8, arena::end() - 8, arena::end() - 8),
            _ => (0x1_0000_0000 - 16, 0x1_0000_0000 - 2, 0xffff_ffff_ffff_f000),
        };
        v.addresses(desc, avail, used);
        for _ in 0..2 {
            sys::write16(v.common.at + common::QUEUE_ENABLE, 1);
        }
        sys::write16(v.common.at + common::QUEUE_ENABLE, 0);
        v.set_status(0xf);
        for _ in 0..4 {
            queue.offer(rng.next() as u16);
            queue.notify();
        }
        v.addresses(wild(rng, bytes), wild(rng, bytes), wild(rng, bytes));
        queue.notify();
        clock::spin(200);
        v.reset()?;
        arena::rewind(mark);
        if round % 8 == 7 {
            recovered(round)?;
        }
    }
    Ok(())
}

fn rng_size(round: u64) -> u16 {
    1 << (round % 16)
}

/// Resets at every moment: right after the start, with requests under way, twice, in the middle of negotiation.
pub fn resets(rng: &mut Rng, rounds: u64) -> Outcome {
    let buffer = arena::alloc(1 << 20, 4096);
    for round in 0..rounds {
        let mark = arena::mark();
        let v = victim(rng)?;
        match round % 4 {
            0 => {
                for _ in 0..20 {
                    v.set_status(rng.next() as u8 & 0xb);
                    v.set_status(0);
                }
            }
            1 => {
                v.set_status(0xf);
                v.set_status(0);
            }
            _ => {
                let mut queue: Queue = armed(&v, INDIRECT | EVENT_IDX)?;
                v.go()?;
                let header = arena::alloc(512, 512);
                sys::write32(header, (round % 2) as u32);
                while queue.room() >= 3 {
                    let writable = round % 2 == 0;
                    let chain = [
                        Segment { at: header, len: 16, writable: false },
                        Segment { at: buffer + rng.below(256) * 2048, len: 1 << 16, writable },
                        Segment { at: header + 64, len: 1, writable: true },
                    ];
                    queue.add(&chain, false);
                }
                queue.notify();
                clock::spin(rng.below(300));
            }
        }
        v.set_status(0);
        v.reset()?;
        // After a reset the device must not touch memory: what it had is handed out again and watched.
        let watch = arena::mark();
        sys::fill(watch, 8192, 0xa5);
        clock::spin(500);
        for at in (watch..watch + 8192).step_by(8) {
            ensure!(sys::read64(at) == 0xa5a5_a5a5_a5a5_a5a5, "memory at {at:#x} was written after a reset");
        }
        arena::rewind(mark);
    }
    Ok(())
}
