//! A load that detects every request that is lost, done twice or done too late while its backend is killed or replaced.
//!
//! ```text
//!   idle ─▶ write generation g ─▶ read it back ─▶ compare ─▶ idle, g + 1
//! ```
//!
//! Each 4 KiB slot of the disk has at most one request in flight, so a read must return the last generation. A lost
//! write shows as the generation before, and so does a write that is repeated after the guest has gone on. The ring
//! detects a completion that comes twice.

use crate::body::blk::{self, Blk, FLUSH, MQ, QUEUES, request, result};
use crate::body::ring::{MAX_SIZE, Segment};
use crate::body::rng::Rng;
use crate::body::virtio::{EVENT_IDX, INDIRECT};
use crate::body::{Machine, Outcome, arena, clock, ensure, say, sys};

use super::rate::quantiles;

const SLOTS: usize = 512;
/// Sectors of a slot.
const SECTORS: u64 = 8;
/// A time without a completion that counts as a gap.
const GAP_NS: u64 = 1_000_000;
const GAPS: u64 = 4096;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Doing {
    Nothing,
    Writing,
    Reading,
}

struct Slot {
    doing: Doing,
    generation: u64,
}

/// Runs for `mini.ms`, with `mini.depth` requests in flight on each queue; says how long the longest gaps were.
pub fn endure(machine: &Machine) -> Outcome {
    let line = &machine.start.line;
    let ms = line.number("mini.ms").unwrap_or(1000);
    let depth = line.number("mini.depth").unwrap_or(16).clamp(1, 64) as u32;
    let mut blk = Blk::open(0, INDIRECT | EVENT_IDX | FLUSH | MQ, QUEUES, MAX_SIZE)?;
    ensure!(blk.capacity >= SLOTS as u64 * SECTORS, "the disk is smaller than {SLOTS} slots of 4 KiB");
    let buffers = arena::alloc(SLOTS as u64 * 4096, 4096);
    let gaps = arena::alloc(GAPS * 8, 8);
    let mut slots = [const { Slot { doing: Doing::Nothing, generation: 0 } }; SLOTS];
    let mut of_head = [[0u16; MAX_SIZE as usize]; QUEUES];
    let (mut pending, mut rng) = ([0u32; QUEUES], Rng::new(machine.seed()));
    let (mut done, mut flushes, mut seen) = (0u64, 0u64, 0u64);
    let end = clock::deadline(ms);
    let mut last = sys::tsc();
    loop {
        let running = sys::tsc() < end;
        for queue in 0..blk.count {
            if running && pending[queue] < depth {
                // A slot always goes by the same queue.
                let slot = rng.below(SLOTS as u64 / blk.count as u64) as usize * blk.count + queue;
                if slots[slot].doing == Doing::Nothing
                    && begin(machine, &mut blk, queue, slot, &mut slots[slot], buffers, &mut of_head[queue])?
                {
                    pending[queue] += 1;
                }
            }
            while let Some((head, _)) = blk.queue(queue)?.pop()? {
                let status = blk.result(queue, head);
                ensure!(status == result::OK, "a request on queue {queue} ended with status {status}");
                let now = sys::tsc();
                let gap = clock::ns(now - last);
                if gap > GAP_NS && seen < GAPS {
                    sys::write64(gaps + seen * 8, now - last);
                    seen += 1;
                }
                last = now;
                done += 1;
                pending[queue] -= 1;
                let index = usize::from(of_head[queue][usize::from(head)]);
                if index == SLOTS {
                    flushes += 1;
                    continue;
                }
                let slot = &mut slots[index];
                let at = buffers + index as u64 * 4096;
                if slot.doing == Doing::Writing {
                    // Read back at once, into a buffer that holds something else.
                    sys::write64(at, !sys::read64(at));
                    if begin(machine, &mut blk, queue, index, slot, buffers, &mut of_head[queue])? {
                        pending[queue] += 1;
                    }
                } else {
                    blk::check_pattern(at, seed(machine, slot.generation), index as u64 * SECTORS, SECTORS)?;
                    slot.doing = Doing::Nothing;
                    slot.generation += 1;
                    if running
                        && slot.generation.is_multiple_of(64)
                        && let Some(head) = blk.submit(queue, request::FLUSH, 0, &[], false)?
                    {
                        of_head[queue][usize::from(head)] = SLOTS as u16;
                        blk.queue(queue)?.kick();
                        pending[queue] += 1;
                    }
                }
            }
        }
        if !running && pending.iter().all(|&count| count == 0) {
            break;
        }
        ensure!(
            clock::ns(sys::tsc() - last) < 1_000_000 * blk::PATIENCE_MS,
            "no completion in {} ms, {} requests are in flight",
            blk::PATIENCE_MS,
            pending.iter().sum::<u32>()
        );
    }
    // Every slot once more, now that nothing is in flight.
    for (index, slot) in (0..).zip(&slots) {
        if slot.generation > 0 {
            let at = buffers + index * 4096;
            let data = [Segment { at, len: 4096, writable: true }];
            let (status, _) = blk.transact(0, request::IN, index * SECTORS, &data)?;
            ensure!(status == result::OK, "a last read ended with status {status}");
            blk::check_pattern(at, seed(machine, slot.generation - 1), index * SECTORS, SECTORS)?;
        }
    }
    let [_, p50, p99, worst] = if seen > 0 { quantiles(gaps, seen) } else { [0; 4] }.map(|ns| ns / 1000);
    say!(
        "value blk-endure requests={done} flushes={flushes} gaps={seen} p50_us={p50} p99_us={p99} worst_us={worst}"
    );
    blk.close()
}

fn seed(machine: &Machine, generation: u64) -> u64 {
    machine.seed() ^ generation.wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Starts what comes next for a slot. False if the queue is full.
fn begin(
    machine: &Machine,
    blk: &mut Blk,
    queue: usize,
    index: usize,
    slot: &mut Slot,
    buffers: u64,
    of_head: &mut [u16; MAX_SIZE as usize],
) -> Result<bool, super::Failed> {
    let at = buffers + index as u64 * 4096;
    let sector = index as u64 * SECTORS;
    let (kind, next) = match slot.doing {
        Doing::Nothing => (request::OUT, Doing::Writing),
        Doing::Writing | Doing::Reading => (request::IN, Doing::Reading),
    };
    if kind == request::OUT {
        blk::write_pattern(at, seed(machine, slot.generation), sector, SECTORS);
    }
    let data = [Segment { at, len: 4096, writable: kind == request::IN }];
    let Some(head) = blk.submit(queue, kind, sector, &data, true)? else { return Ok(false) };
    of_head[usize::from(head)] = index as u16;
    blk.queue(queue)?.kick();
    slot.doing = next;
    Ok(true)
}
