//! The ruler: IOPS and latency of a block device, measured by the guest's TSC. `mini.ms` and `mini.depth` set the load.

use crate::body::blk::{Blk, FLUSH, MQ, RO, request, result};
use crate::body::ring::Segment;
use crate::body::rng::Rng;
use crate::body::virtio::{EVENT_IDX, INDIRECT, vector};
use crate::body::{Machine, Outcome, arena, clock, ensure, irq, say, sys};

/// 4 KiB random reads (`mini.write=1`: writes) at a fixed depth, polled.
pub fn iops(machine: &Machine) -> Outcome {
    let line = &machine.start.line;
    let (ms, depth) =
        (line.number("mini.ms").unwrap_or(1000), line.number("mini.depth").unwrap_or(32).clamp(1, 128));
    let kind = if line.number("mini.write").unwrap_or(0) != 0 { request::OUT } else { request::IN };
    let mut blk = Blk::open(0, INDIRECT | EVENT_IDX | RO | FLUSH, 1, 256)?;
    ensure!(blk.capacity >= 8, "the disk is smaller than 4 KiB");
    let buffers = arena::alloc(256 * 4096, 4096);
    let mut rng = Rng::new(machine.seed());
    let (mut done, mut pending) = (0u64, 0);
    let begin = sys::tsc();
    let end = clock::deadline(ms);
    loop {
        let running = sys::tsc() < end;
        let mut sent = false;
        while running && pending < depth {
            let at = buffers + u64::from(blk.queue(0)?.next_head()) * 4096;
            let data = [Segment { at, len: 4096, writable: kind == request::IN }];
            let sector = rng.below(blk.capacity / 8) * 8;
            if blk.submit(0, kind, sector, &data, true)?.is_none() {
                break;
            }
            pending += 1;
            sent = true;
        }
        if sent {
            blk.queue(0)?.kick();
        }
        if pending == 0 {
            break;
        }
        let (head, _) = blk.reap(0)?;
        ensure!(blk.result(0, head) == result::OK, "a request ended with status {}", blk.result(0, head));
        pending -= 1;
        done += 1;
        while let Some((head, _)) = blk.queue(0)?.pop()? {
            ensure!(blk.result(0, head) == result::OK, "a request ended with status {}", blk.result(0, head));
            pending -= 1;
            done += 1;
        }
    }
    let ns = clock::ns(sys::tsc() - begin).max(1);
    let rate = u128::from(done) * 1_000_000_000 / u128::from(ns);
    say!("value blk-iops depth={depth} requests={done} ns={ns} iops={rate} kicks={}", blk.queue(0)?.kicks);
    blk.close()
}

/// One 4 KiB read at a time, polled (`mini.sleep=1`: slept for until the interrupt): quantiles in nanoseconds.
pub fn latency(machine: &Machine) -> Outcome {
    let rounds = machine.rounds(2000).clamp(10, 100_000);
    let sleep = machine.start.line.number("mini.sleep").unwrap_or(0) != 0;
    let mut blk = Blk::open(0, INDIRECT | EVENT_IDX | RO | MQ, 1, 16)?;
    ensure!(blk.capacity >= 8, "the disk is smaller than 4 KiB");
    let (buffer, times) = (arena::alloc(4096, 4096), arena::alloc(rounds * 8, 8));
    let vector = vector(1.min(blk.virtio.msix.count - 1));
    let mut rng = Rng::new(machine.seed());
    irq::tick(if sleep { 50_000_000 } else { 0 });
    for round in 0..rounds {
        if sleep {
            blk.queue(0)?.arm();
        }
        let data = [Segment { at: buffer, len: 4096, writable: true }];
        let seen = irq::count(vector);
        let begin = sys::tsc();
        blk.submit(0, request::IN, rng.below(blk.capacity / 8) * 8, &data, true)?;
        blk.queue(0)?.kick();
        if sleep {
            irq::wait(vector, seen, clock::deadline(5000));
        }
        let (head, _) = blk.reap(0)?;
        sys::write64(times + round * 8, sys::tsc() - begin);
        ensure!(blk.result(0, head) == result::OK, "a read ended with status {}", blk.result(0, head));
    }
    irq::tick(0);
    let [best, p50, p99, worst] = quantiles(times, rounds);
    say!(
        "value blk-latency sleep={sleep} rounds={rounds} best_ns={best} p50_ns={p50} p99_ns={p99} worst_ns={worst}"
    );
    blk.close()
}

/// Brings a device with all its queues up and resets it, again and again: quantiles of both in nanoseconds.
pub fn bring_up(machine: &Machine) -> Outcome {
    let rounds = machine.rounds(50).clamp(10, 1000);
    let (ups, downs) = (arena::alloc(rounds * 8, 8), arena::alloc(rounds * 8, 8));
    for round in 0..rounds {
        let mark = arena::mark();
        let begin = sys::tsc();
        let blk = Blk::open(0, INDIRECT | EVENT_IDX | RO | MQ, 8, 64)?;
        let between = sys::tsc();
        blk.close()?;
        sys::write64(ups + round * 8, between - begin);
        sys::write64(downs + round * 8, sys::tsc() - between);
        arena::rewind(mark);
    }
    for (what, times) in [("up", ups), ("down", downs)] {
        let [best, p50, p99, worst] = quantiles(times, rounds);
        say!("value blk-bringup what={what} best_ns={best} p50_ns={p50} p99_ns={p99} worst_ns={worst}");
    }
    Ok(())
}

/// Minimum, median, 99th percentile and maximum of `count` tick counts at `at`, in nanoseconds; sorts them (Shell).
pub fn quantiles(at: u64, count: u64) -> [u64; 4] {
    for gap in [701, 301, 132, 57, 23, 10, 4, 1] {
        for i in gap..count {
            let value = sys::read64(at + i * 8);
            let mut j = i;
            while j >= gap && sys::read64(at + (j - gap) * 8) > value {
                sys::write64(at + j * 8, sys::read64(at + (j - gap) * 8));
                j -= gap;
            }
            sys::write64(at + j * 8, value);
        }
    }
    [0, count / 2, count * 99 / 100, count - 1].map(|i| clock::ns(sys::read64(at + i * 8)))
}
