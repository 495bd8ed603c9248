//! Nonsense to PCI configuration space, and base address registers in places where they must not be.

use super::victim;
use crate::body::pci::{self, COMMAND, Device};
use crate::body::rng::Rng;
use crate::body::virtio::{self, Virtio};
use crate::body::{Machine, Outcome, arena, ensure, sys};

const MAX_DEVICES: usize = 8;

/// A function's 256 bytes of configuration.
#[derive(Clone, Copy)]
pub struct Saved {
    device: Device,
    words: [u32; 64],
}

impl Saved {
    /// Reads it.
    pub fn of(device: Device) -> Self {
        Self { device, words: core::array::from_fn(|i| device.read32(i as u8 * 4)) }
    }

    /// Writes everything back, decoding last, and checks that what is read-only never changed.
    pub fn restore(&self) -> Outcome {
        let device = self.device;
        device.write16(COMMAND, 0);
        for (i, &word) in self.words.iter().enumerate().filter(|(i, _)| *i != 1) {
            device.write32(i as u8 * 4, word);
        }
        device.write16(COMMAND, self.words[1] as u16);
        // The window of VIRTIO_PCI_CAP_PCI_CFG (§4.1.4.9) is no storage.
        let window = device
            .capabilities()
            .find(|&(at, id)| id == 9 && device.read8(at + 3) == 5)
            .map_or(usize::MAX, |(at, _)| usize::from(at) / 4 + 4);
        for (i, &word) in self.words.iter().enumerate().filter(|(i, _)| *i != window) {
            let (seen, mask) = (device.read32(i as u8 * 4), if i == 1 { 0x0010_ffff } else { u32::MAX });
            ensure!(
                (seen ^ word) & mask == 0,
                "configuration of {:#x} at {:#x} is {seen:#x}, was {word:#x}",
                device.devfn,
                i * 4
            );
        }
        Ok(())
    }
}

/// Random reads and writes by CF8/CFC and ECAM, at all widths, of functions that are there and that are not.
pub fn scribble(machine: &Machine, rng: &mut Rng, rounds: u64) -> Outcome {
    // Only hardware-reduced machines, ours among them, have a host bridge without registers that matter.
    let everything = machine.acpi.reduced;
    for function in virtio::functions(0) {
        Virtio::from_pci(function)?.reset()?;
    }
    let mut saved = [None; MAX_DEVICES];
    let targets = pci::devices().filter(|device| everything || device.vendor() == 0x1af4);
    for (place, device) in saved.iter_mut().zip(targets) {
        *place = Some(Saved::of(device));
    }
    let count = saved.iter().flatten().count() as u64;
    for _ in 0..rounds {
        let there = saved[rng.below(count.max(1)) as usize].map_or(0xf8, |s: Saved| s.device.devfn);
        let devfn = if everything && rng.below(4) == 0 { rng.next() as u8 } else { there };
        let (offset, value) = (rng.next() as u16 & 0xfff, rng.edge());
        let device = Device { devfn };
        if let (0, Some(ecam)) = (rng.below(3), device.ecam()) {
            let at = ecam + u64::from(offset.min(0xff8));
            match rng.below(6) {
                0 => sys::write8(at, value as u8),
                1 => sys::write16(at, value as u16),
                2 => sys::write32(at, value as u32),
                3 => sys::write64(at, value),
                4 => drop(sys::read64(at)),
                _ => drop(sys::read8(at)),
            }
            continue;
        }
        device.select(offset as u8);
        if everything && rng.below(16) == 0 {
            // The address port itself: narrow writes, reserved bits, other buses.
            match rng.below(3) {
                // A byte to 0xcf9 with bit 2 is the one that resets the machine.
                0 => sys::outb(0xcf8 + (value as u16 & 3), value as u8 & !4),
                1 => sys::outw(0xcf8 + (value as u16 & 2), value as u16),
                _ => sys::outl(0xcf8, value as u32),
            }
        }
        let port = 0xcfc + (offset & 3);
        match rng.below(6) {
            0 => sys::outb(port, value as u8),
            1 => sys::outw(port, value as u16),
            2 => sys::outl(port, value as u32),
            3 => drop(sys::inl(port)),
            4 => drop(sys::inw(port)),
            _ => drop(sys::inb(port)),
        }
    }
    saved.iter().flatten().try_for_each(Saved::restore)
}

/// Moves, sizes and overlaps every BAR of a device, uses it wherever it is, and puts it back.
pub fn bars(rng: &mut Rng) -> Outcome {
    for _ in 0..3 {
        let v = victim(rng)?;
        let saved = Saved::of(v.pci);
        let other = virtio::functions(0).filter(|f| *f != v.pci).find_map(|f| f.bars().next());
        for bar in v.pci.bars() {
            let places = [
                0,
                0x1000,
                arena::BASE,
                arena::end(),
                0xc000_0000,
                0xcfff_f000,
                pci::ecam().start,
                0xfec0_0000,
                0xfee0_0000,
                0xffff_f000,
                0x1_0000_0000,
                1 << 40,
                u64::MAX,
                other.map_or(0, |bar| bar.at),
                rng.edge(),
                bar.at + 16,
                bar.at + bar.len,
            ];
            for place in places {
                v.pci.set_bar(bar, place);
                let safe = (0xc000_0000..0xfec0_0000).contains(&place) && !pci::ecam().contains(&place);
                if safe {
                    let _ = (sys::read32(place & !0xf), sys::read8(place & !0xf | 0x14));
                    sys::write16(place & !0xf | 0x16, 1);
                }
                let _ = sys::read32(v.common.at);
                // Half of a 64-bit address, decoding off and on, a size asked for while it decodes.
                v.pci.write32(0x10 + bar.index * 4, u32::MAX);
                let _ = v.pci.read32(0x10 + bar.index * 4);
                v.pci.enable(rng.below(2) == 0);
                sys::write16(v.notify.at, 0);
                v.pci.enable(rng.below(2) == 0);
            }
            v.pci.enable(false);
            v.pci.set_bar(bar, bar.at);
        }
        v.pci.enable(true);
        saved.restore()?;
        v.reset()?;
    }
    Ok(())
}
