//! Nonsense to the structures in a virtio BAR: any register, any width, any offset, any order.

use super::{armed, victim};
use crate::body::rng::Rng;
use crate::body::virtio::{EVENT_IDX, INDIRECT, Virtio, Window, common, status};
use crate::body::{Outcome, arena, ensure, sys};

/// One access of random width at `at`.
fn poke(rng: &mut Rng, at: u64) {
    let value = rng.edge();
    match rng.below(8) {
        0 => drop(sys::read8(at)),
        1 => drop(sys::read16(at)),
        2 => drop(sys::read32(at)),
        3 => drop(sys::read64(at)),
        4 => sys::write8(at, value as u8),
        5 => sys::write16(at, value as u16),
        6 => sys::write32(at, value as u32),
        _ => sys::write64(at, value),
    }
}

/// Random accesses in and just past a structure. A queue's addresses are made harmless before the device could run.
fn scatter(rng: &mut Rng, window: Window, rounds: u64) {
    for _ in 0..rounds {
        let at = window.at + rng.below(window.len.min(4096) + 16);
        poke(rng, at);
    }
}

/// The common configuration: every register at every width, then random sequences, with status changes between.
pub fn common(rng: &mut Rng, rounds: u64) -> Outcome {
    for _ in 0..4 {
        let v = victim(rng)?;
        for offset in 0..v.common.len.min(256) {
            if offset != common::DEVICE_STATUS {
                let _ = (sys::read8(v.common.at + offset), sys::read16(v.common.at + offset));
                let _ = (sys::read32(v.common.at + offset), sys::read64(v.common.at + offset));
            }
        }
        for round in 0..rounds / 4 {
            match round % 16 {
                0 => v.set_status(rng.next() as u8 & !status::DRIVER_OK),
                1 => v.select(rng.edge() as u16),
                2 => v.addresses(rng.edge(), rng.edge(), rng.edge()),
                3 => sys::write16(v.common.at + common::QUEUE_ENABLE, rng.edge() as u16),
                4 => sys::write16(v.common.at + common::QUEUE_SIZE, rng.edge() as u16),
                _ => {
                    // The status register only by the line above: a running device with random rings is `queues`.
                    let offset = rng.below(v.common.len.min(256) + 16);
                    if !(common::DEVICE_STATUS - 7..=common::DEVICE_STATUS).contains(&offset) {
                        poke(rng, v.common.at + offset);
                    }
                }
            }
        }
        out_of_range(&v)?;
        v.reset()?;
        ensure!(v.queues() >= 1, "the number of queues has changed");
    }
    Ok(())
}

/// What is refused must read back as refused.
fn out_of_range(v: &Virtio) -> Outcome {
    v.reset()?;
    v.set_status(status::ACKNOWLEDGE | status::DRIVER);
    // Features that nobody offered are refused (§3.1.1) or cut down to what was offered; never taken.
    let offered = v.offered();
    v.accept(!offered);
    v.set_status(status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK);
    let mut taken = 0;
    for select in 0..2u32 {
        sys::write32(v.common.at + common::DRIVER_FEATURE_SELECT, select);
        taken |= u64::from(sys::read32(v.common.at + common::DRIVER_FEATURE)) << (32 * select);
    }
    let refused = v.status() & status::FEATURES_OK == 0;
    ensure!(
        refused || taken & !offered == 0,
        "features {:#x} were taken, which were not offered",
        taken & !offered
    );
    v.reset()?;
    for entry in [v.msix.count, 0x7ff, 0xfffe] {
        if entry >= v.msix.count {
            sys::write16(v.common.at + common::CONFIG_MSIX_VECTOR, entry);
            let seen = sys::read16(v.common.at + common::CONFIG_MSIX_VECTOR);
            ensure!(seen == 0xffff, "MSI-X entry {entry} of {} was accepted as {seen:#x}", v.msix.count);
        }
    }
    v.select(0xffff);
    ensure!(sys::read16(v.common.at + common::QUEUE_SIZE) == 0, "queue 65535 has a size");
    v.select(0);
    Ok(())
}

/// The device's own configuration and the ISR status.
pub fn device(rng: &mut Rng, rounds: u64) -> Outcome {
    for _ in 0..4 {
        let v = victim(rng)?;
        scatter(rng, v.config, rounds / 4);
        scatter(rng, v.isr, rounds / 8);
        // Past everything in the BAR, as far as its end.
        for bar in v.pci.bars() {
            for _ in 0..rounds / 16 {
                let at = bar.at + rng.below(bar.len - 8);
                let status = v.common.at + common::DEVICE_STATUS;
                if at > status || at + 8 <= v.common.at {
                    poke(rng, at);
                }
            }
        }
        v.reset()?;
    }
    Ok(())
}

/// Notifications: before the device runs, of queues that are not there, at any offset and width; then a storm.
pub fn notify(rng: &mut Rng, rounds: u64) -> Outcome {
    for _ in 0..4 {
        let mark = arena::mark();
        let v = victim(rng)?;
        scatter(rng, v.notify, rounds / 8);
        let mut queue = armed(&v, INDIRECT | EVENT_IDX)?;
        queue.notify();
        scatter(rng, v.notify, rounds / 8);
        v.go()?;
        scatter(rng, v.notify, rounds / 8);
        for _ in 0..rounds {
            queue.notify();
        }
        v.reset()?;
        queue.notify();
        arena::rewind(mark);
    }
    Ok(())
}
