//! Nonsense to MSI-X: tables, pending bits, control bits, all of it while the device completes requests.

use super::victim;
use crate::body::blk::{Blk, request, result};
use crate::body::ring::Segment;
use crate::body::rng::Rng;
use crate::body::virtio::{self, INDIRECT, Virtio};
use crate::body::{Outcome, arena, ensure, irq, sys};

/// A table entry that hurts nobody who is in his right mind: not an address of the APIC, or a vector of this guest's
/// own that only counts. Anything else could stop this guest's own processor (INIT, NMI), which proves nothing.
fn entry(rng: &mut Rng, v: &Virtio) {
    let at = v.msix.table + rng.below(u64::from(v.msix.count)) * 16;
    let counted = u32::from(irq::DEVICES) + rng.below(32) as u32;
    sys::write32(at + 12, 1);
    match rng.below(3) {
        0 => {
            sys::write64(at, rng.edge() & 0xffff_ffff_000f_ffff);
            sys::write32(at + 8, counted);
        }
        1 => {
            sys::write64(at, 0xfee0_0000 | (rng.next() & 0xff) << 12);
            sys::write32(at + 8, counted);
        }
        _ => {
            sys::write32(at, 0xfee0_0000 | rng.next() as u32 & 0xf_f00c);
            sys::write32(at + 8, counted | rng.next() as u32 & 0x8000);
        }
    }
    sys::write32(at + 12, rng.next() as u32);
}

/// Random entries, masks and widths; half of the rounds under a disk's load.
pub fn tables(rng: &mut Rng, rounds: u64) -> Outcome {
    for _ in 0..2 {
        let v = victim(rng)?;
        for round in 0..rounds / 4 {
            let at = v.msix.table + rng.below(u64::from(v.msix.count) * 16 + 64);
            match round % 6 {
                0 => entry(rng, &v),
                1 => v.msix_control(rng.below(2) == 0, rng.below(2) == 0),
                2 => drop((sys::read8(at), sys::read16(at), sys::read64(at & !7))),
                3 => sys::write64(v.msix.pba + rng.below(64), rng.next()),
                4 => {
                    sys::write8(v.msix.table + rng.below(u64::from(v.msix.count)) * 16 + 13, rng.next() as u8)
                }
                _ => v.pci.write16(v.msix.cap + 2, rng.next() as u16),
            }
        }
        (0..v.msix.count).for_each(|entry| v.msix_entry(entry, virtio::vector(entry), true));
        v.msix_control(false, false);
    }
    if virtio::functions(2).next().is_none() {
        return Ok(());
    }
    let mark = arena::mark();
    let mut blk = Blk::open(0, INDIRECT, 1, 16)?;
    let v = blk.virtio;
    let buffer = arena::alloc(512, 512);
    for _ in 0..rounds / 4 {
        blk.queue(0)?.arm();
        match rng.below(4) {
            0 => v.msix_control(rng.below(2) == 0, rng.below(2) == 0),
            1 => v.msix_mask(1.min(v.msix.count - 1), rng.below(2) == 0),
            _ => entry(rng, &v),
        }
        let (status, _) =
            blk.transact(0, request::IN, 0, &[Segment { at: buffer, len: 512, writable: true }])?;
        ensure!(status == result::OK, "a read ended with status {status}");
    }
    blk.close()?;
    arena::rewind(mark);
    Ok(())
}
