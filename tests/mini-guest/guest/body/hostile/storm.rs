//! All processors at once on the same devices: resets, doorbells, BARs that come and go, masks, features, queues.
//!
//! What one CPU does by the book the others undo. Queue addresses stay in the arena's upper half and BARs in places
//! of their own, so that whatever comes of it cannot hit this guest's image or turn a register write into an NMI.

use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::config::Saved;
use crate::body::rng::Rng;
use crate::body::virtio::{self, Virtio, common};
use crate::body::{Machine, Outcome, arena, clock, ensure, say, smp, sys};

const MAX_DEVICES: usize = 4;
/// What every CPU must know of each device: where its common configuration, its doorbells, its BAR and its
/// configuration in the ECAM are, and the offset of its MSI-X capability.
static DEVICES: [[AtomicU64; 5]; MAX_DEVICES] = [const { [const { AtomicU64::new(0) }; 5] }; MAX_DEVICES];
static GO_ON: AtomicBool = AtomicBool::new(false);
static SEED: AtomicU64 = AtomicU64::new(0);
static DONE: AtomicU64 = AtomicU64::new(0);

/// What each processor does until the storm is over.
pub fn rage(cpu: u32) {
    let mut rng = Rng::new(SEED.load(Ordering::SeqCst) ^ u64::from(cpu) << 32);
    while GO_ON.load(Ordering::SeqCst) {
        let index = rng.below(MAX_DEVICES as u64) as usize;
        act(&mut rng, index);
    }
}

fn act(rng: &mut Rng, index: usize) {
    let [at, doorbells, bar, ecam, cap] =
        [0, 1, 2, 3, 4].map(|i: usize| DEVICES[index][i].load(Ordering::SeqCst));
    if at == 0 {
        return;
    }
    DONE.fetch_add(1, Ordering::Relaxed);
    let ring = arena::end() - 0x8_0000 + (rng.below(0x4_0000) & !0xfff);
    match rng.below(14) {
        0 => sys::write8(at + common::DEVICE_STATUS, rng.next() as u8 & 0xf),
        1 => sys::write8(at + common::DEVICE_STATUS, 0),
        2 => [3, 0xb, 0xf].into_iter().for_each(|status| sys::write8(at + common::DEVICE_STATUS, status)),
        3 => sys::write16(at + common::QUEUE_SELECT, rng.below(3) as u16),
        4 => sys::write16(at + common::QUEUE_SIZE, 1 << rng.below(5)),
        5 => sys::write64(
            at + rng.pick(&[common::QUEUE_DESC, common::QUEUE_DRIVER, common::QUEUE_DEVICE]),
            ring,
        ),
        6 => sys::write16(at + common::QUEUE_ENABLE, 1),
        7 => {
            let half = rng.below(2) as u32;
            sys::write32(at + common::DRIVER_FEATURE_SELECT, half);
            sys::write32(at + common::DRIVER_FEATURE, if half == 1 { 1 } else { rng.next() as u32 });
        }
        8 => drop((sys::read32(at + common::DEVICE_FEATURE), sys::read8(at + common::DEVICE_STATUS))),
        9 => sys::write16(doorbells + rng.below(5), rng.below(3) as u16),
        10 if ecam != 0 => sys::write16(ecam + 4, rng.pick(&[0x406, 0x406, 0x404, 0x400])),
        11 if ecam != 0 => {
            sys::write32(ecam + 0x10, rng.pick(&[bar, bar, 0xd000_0000 + index as u64 * 0x10_0000]) as u32)
        }
        12 if ecam != 0 => sys::write16(ecam + cap + 2, rng.pick(&[0, 0x4000, 0x8000, 0xc000])),
        _ => drop(sys::read64(at + rng.below(48))),
    }
}

/// Half a second (`mini.ms`) of it; then every device must be whole again.
pub fn storm(machine: &Machine) -> Outcome {
    let cpus = machine.acpi.cpu_count as u32;
    let up = smp::start_all(machine);
    ensure!(up == cpus, "{up} of {cpus} processors came up");
    let mut saved = [None; MAX_DEVICES];
    for (index, function) in virtio::functions(0).take(MAX_DEVICES).enumerate() {
        let v = Virtio::from_pci(function)?;
        v.reset()?;
        let bar = function.bars().next().map_or(0, |bar| bar.at);
        let ecam = if machine.acpi.reduced { function.ecam().unwrap_or(0) } else { 0 };
        for (place, value) in
            DEVICES[index].iter().zip([v.common.at, v.notify.at, bar, ecam, u64::from(v.msix.cap)])
        {
            place.store(value, Ordering::SeqCst);
        }
        saved[index] = Some(Saved::of(function));
    }
    SEED.store(machine.seed(), Ordering::SeqCst);
    DONE.store(0, Ordering::SeqCst);
    GO_ON.store(true, Ordering::SeqCst);
    smp::give(smp::RAGE);
    let mut rng = Rng::new(machine.seed());
    let end = clock::deadline(machine.start.line.number("mini.ms").unwrap_or(500));
    while sys::tsc() < end {
        let index = rng.below(MAX_DEVICES as u64) as usize;
        act(&mut rng, index);
    }
    GO_ON.store(false, Ordering::SeqCst);
    let idle = smp::finished(clock::deadline(20_000));
    ensure!(idle, "a processor does not come back from the storm");
    say!("value hostile storm cpus={cpus} acts={}", DONE.load(Ordering::SeqCst));
    saved.iter().flatten().try_for_each(Saved::restore)
}
