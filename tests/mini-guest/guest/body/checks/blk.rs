//! Checks of a block device that behaves, by a driver that does. `mini.disk=N` picks the disk, 0 by default.

use crate::body::blk::{self, Blk, FLUSH, MQ, RO, request, result};
use crate::body::ring::Segment;
use crate::body::rng::Rng;
use crate::body::virtio::{EVENT_IDX, INDIRECT, vector};
use crate::body::{Machine, Outcome, arena, clock, ensure, irq, say, sys};

const FIRST: u64 = 64;

fn disk(machine: &Machine) -> usize {
    machine.start.line.number("mini.disk").unwrap_or(0) as usize
}

fn sectors(machine: &Machine, capacity: u64) -> u64 {
    machine.start.line.number("mini.sectors").unwrap_or(4096).min(capacity.saturating_sub(FIRST))
}

/// `GET_ID` gives a name; prints it.
pub fn id() -> Outcome {
    let mut blk = Blk::open(0, INDIRECT, 1, 16)?;
    let buffer = arena::alloc(32, 64);
    let (status, len) =
        blk.transact(0, request::GET_ID, 0, &[Segment { at: buffer, len: 20, writable: true }])?;
    let mut name = [0; 20];
    sys::get(buffer, &mut name);
    let end = name.iter().position(|&byte| byte == 0).unwrap_or(name.len());
    let text = core::str::from_utf8(&name[..end]).unwrap_or("?");
    say!("value blk-id capacity={} id={text}", blk.capacity);
    ensure!(status == result::OK, "GET_ID ended with status {status}");
    ensure!((1..=21).contains(&len), "GET_ID wrote {len} bytes");
    ensure!(end > 0, "the id is empty");
    blk.close()
}

/// Writes a pattern with every combination of ring features, flushes, reads it back in other pieces.
pub fn pattern(machine: &Machine) -> Outcome {
    for wanted in [0, INDIRECT, EVENT_IDX, INDIRECT | EVENT_IDX] {
        let mark = arena::mark();
        let mut blk = Blk::open(disk(machine), wanted | FLUSH | MQ | RO, blk::QUEUES, 64)?;
        ensure!(blk.features & RO == 0, "the disk is read-only");
        let sectors = sectors(machine, blk.capacity);
        let seed = machine.seed() ^ wanted;
        for (kind, salt) in [(request::OUT, 1), (request::IN, 2)] {
            sweep(&mut blk, kind, seed, sectors, &mut Rng::new(machine.seed() + salt))?;
            if kind == request::OUT {
                let (status, _) = blk.transact(0, request::FLUSH, 0, &[])?;
                ensure!(status == result::OK, "a flush ended with status {status}");
            }
        }
        let kicks: u64 = blk.queues.iter().flatten().map(|queue| queue.kicks).sum();
        say!(
            "value blk-pattern features={:#x} queues={} sectors={sectors} kicks={kicks}",
            blk.features,
            blk.count
        );
        blk.close()?;
        arena::rewind(mark);
    }
    Ok(())
}

/// Reads back what the last part of [`pattern`] left there, for instance in an earlier life of the guest.
pub fn verify(machine: &Machine) -> Outcome {
    let mut blk = Blk::open(disk(machine), INDIRECT | EVENT_IDX | FLUSH | MQ | RO, blk::QUEUES, 64)?;
    let sectors = sectors(machine, blk.capacity);
    sweep(&mut blk, request::IN, machine.seed() ^ INDIRECT ^ EVENT_IDX, sectors, &mut Rng::new(3))?;
    blk.close()
}

/// Moves all sectors in pieces of random size, cut at random places, over all queues, several at a time.
fn sweep(blk: &mut Blk, kind: u32, seed: u64, sectors: u64, rng: &mut Rng) -> Outcome {
    let mark = arena::mark();
    let buffer = arena::alloc(sectors * 512, 4096);
    if kind == request::OUT {
        blk::write_pattern(buffer, seed, FIRST, sectors);
    }
    let (mut sent, mut pending) = (0, [0u32; blk::QUEUES]);
    while sent < sectors || pending.iter().any(|&n| n > 0) {
        let queue = rng.below(blk.count as u64) as usize;
        if sent < sectors && pending[queue] < 12 && rng.below(4) != 0 {
            let count = (rng.below(64) + 1).min(sectors - sent);
            let mut segments = [Segment::default(); 8];
            let pieces = (rng.below(8) + 1).min(count * 2) as usize;
            let (mut at, mut left) = (buffer + sent * 512, count * 512);
            for (i, segment) in segments[..pieces].iter_mut().enumerate() {
                // Even cuts at multiples of 4 bytes: a segment need not be a whole sector (§5.2.6).
                let share = left / (pieces - i) as u64;
                let len = if i + 1 == pieces { left } else { (share & !3).max(4) };
                *segment = Segment { at, len: len as u32, writable: kind == request::IN };
                at += len;
                left -= len;
            }
            if blk.submit(queue, kind, FIRST + sent, &segments[..pieces], rng.below(2) == 0)?.is_some() {
                blk.queue(queue)?.kick();
                pending[queue] += 1;
                sent += count;
                continue;
            }
        }
        if pending[queue] > 0 {
            let (head, len) = blk.reap(queue)?;
            let status = blk.result(queue, head);
            ensure!(status == result::OK, "request {kind} on queue {queue} ended with status {status}");
            ensure!(len >= 1, "request {kind} on queue {queue} says it wrote {len} bytes");
            pending[queue] -= 1;
        }
    }
    if kind == request::IN {
        blk::check_pattern(buffer, seed, FIRST, sectors)?;
    }
    arena::rewind(mark);
    Ok(())
}

/// What is beyond the end or unknown is answered with an error, and the device goes on.
pub fn bounds() -> Outcome {
    let mut blk = Blk::open(0, INDIRECT | RO, 1, 16)?;
    let buffer = arena::alloc(8192, 4096);
    let end = blk.capacity;
    let readable = |len| [Segment { at: buffer, len, writable: true }];
    for sector in [end, end - 1, end + 1, u64::MAX, u64::MAX / 512, 1 << 63] {
        let (status, _) = blk.transact(0, request::IN, sector, &readable(1024))?;
        ensure!(status == result::IOERR, "2 sectors from {sector} of {end} were read with status {status}");
        if blk.features & RO == 0 {
            let data = [Segment { at: buffer, len: 1024, writable: false }];
            let (status, _) = blk.transact(0, request::OUT, sector, &data)?;
            ensure!(
                status == result::IOERR,
                "2 sectors from {sector} of {end} were written with status {status}"
            );
        }
    }
    let (status, _) = blk.transact(0, 0x55, 0, &readable(512))?;
    ensure!(status == result::UNSUPP, "a request of type 0x55 ended with status {status}");
    let (status, _) = blk.transact(0, request::IN, 0, &readable(511))?;
    ensure!(status != result::PENDING, "511 bytes were read without a status");
    let (status, _) = blk.transact(0, request::IN, end - 1, &readable(512))?;
    ensure!(status == result::OK, "the last sector was read with status {status}");
    blk.close()
}

/// A read-only disk says so, refuses writes and can be read.
pub fn read_only() -> Outcome {
    let mut blk = Blk::open(0, INDIRECT | RO, 1, 16)?;
    ensure!(blk.features & RO != 0, "the disk does not offer RO");
    let buffer = arena::alloc(512, 512);
    let (status, _) =
        blk.transact(0, request::OUT, 0, &[Segment { at: buffer, len: 512, writable: false }])?;
    ensure!(status == result::IOERR, "a write to a read-only disk ended with status {status}");
    let (status, _) = blk.transact(0, request::IN, 0, &[Segment { at: buffer, len: 512, writable: true }])?;
    ensure!(status == result::OK, "a read of a read-only disk ended with status {status}");
    blk.close()
}

/// One interrupt by MSI-X for each of many single requests, each slept for; with EVENT_IDX and without.
pub fn interrupts(machine: &Machine) -> Outcome {
    let rounds = machine.rounds(200) as u32;
    for wanted in [0, EVENT_IDX] {
        let mut blk = Blk::open(disk(machine), wanted | INDIRECT | RO, 1, 16)?;
        let buffer = arena::alloc(512, 512);
        let entry = 1.min(blk.virtio.msix.count - 1);
        let vector = vector(entry);
        irq::tick(50_000_000);
        let before = irq::count(vector);
        let mut woken = 0;
        for round in 0..rounds {
            let seen = irq::count(vector);
            blk.queue(0)?.arm();
            let data = [Segment { at: buffer, len: 512, writable: true }];
            let sent = blk.submit(0, request::IN, u64::from(round) % blk.capacity, &data, false)?;
            ensure!(sent.is_some(), "the queue is full");
            blk.queue(0)?.kick();
            woken += u32::from(irq::wait(vector, seen, clock::deadline(blk::PATIENCE_MS)));
            let used = blk.queue(0)?.pop()?;
            ensure!(used.is_some(), "interrupt {round} came before its used buffer, or not at all");
        }
        clock::spin(10_000);
        let delivered = irq::count(vector) - before;
        irq::tick(0);
        say!("value blk-irq event_idx={} requests={rounds} interrupts={delivered}", wanted != 0);
        ensure!(woken == rounds, "{woken} of {rounds} requests were followed by an interrupt");
        ensure!(delivered <= rounds, "{delivered} interrupts for {rounds} requests");
        blk.queue(0)?.disarm();
        blk.close()?;
    }
    Ok(())
}

/// A masked MSI-X entry delivers nothing, is pending, and delivers once unmasked (PCI 3.0 §6.8.2.9).
pub fn masked() -> Outcome {
    let mut blk = Blk::open(0, INDIRECT | RO, 1, 16)?;
    let buffer = arena::alloc(512, 512);
    let entry = 1.min(blk.virtio.msix.count - 1);
    let vector = vector(entry);
    for function_mask in [false, true] {
        blk.queue(0)?.arm();
        if function_mask {
            blk.virtio.msix_control(true, true);
        } else {
            blk.virtio.msix_mask(entry, true);
        }
        let before = irq::count(vector);
        let (status, _) =
            blk.transact(0, request::IN, 0, &[Segment { at: buffer, len: 512, writable: true }])?;
        ensure!(status == result::OK, "a read ended with status {status}");
        clock::spin(20_000);
        ensure!(irq::count(vector) == before, "a masked vector was delivered");
        ensure!(blk.virtio.msix_pending(entry), "a masked vector is not pending");
        irq::tick(10_000_000);
        if function_mask {
            blk.virtio.msix_control(true, false);
        } else {
            blk.virtio.msix_mask(entry, false);
        }
        let came = irq::wait(vector, before, clock::deadline(1000));
        irq::tick(0);
        ensure!(came, "a pending vector was lost at unmasking");
        ensure!(!blk.virtio.msix_pending(entry), "a delivered vector is still pending");
    }
    blk.close()
}
