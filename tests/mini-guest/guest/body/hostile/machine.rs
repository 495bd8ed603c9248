//! Nonsense to the rest of the machine: I/O ports and the MMIO hole.

use crate::body::acpi::{Acpi, Register};
use crate::body::rng::Rng;
use crate::body::{Machine, Outcome, print, sys};

/// Whether writing there ends the machine by right: what a guest may do to itself is another test.
fn ends_machine(acpi: &Acpi, port: u16) -> bool {
    let register = |r: Register| matches!(r, Register::Port(p) if port.abs_diff(p) < 8);
    [0x64, 0x92, 0xcf9].iter().any(|&p| port.abs_diff(p) < 4)
        || acpi.sleep.is_some_and(register)
        || acpi.reset.is_some_and(|(r, _)| register(r))
        || acpi.pm1a.is_some_and(|p| port.abs_diff(p) < 8)
}

/// Every port read at every width, random ports written; COM1 with special care, and left as it was.
pub fn ports(machine: &Machine, rng: &mut Rng, rounds: u64) -> Outcome {
    for _ in 0..rounds {
        let port = match rng.below(4) {
            0 => print::COM1 + 1 + rng.below(7) as u16,
            1 => rng.pick(&[
                0x20, 0x21, 0xa0, 0xa1, 0x40, 0x43, 0x60, 0x61, 0x70, 0x71, 0x80, 0x402, 0x510, 0xfffc,
            ]),
            // Port 0xffff and the one after it would be a fault, and no access.
            _ => (rng.next() as u16).min(0xfffc),
        };
        match rng.below(3) {
            0 => drop(sys::inb(port)),
            1 => drop(sys::inw(port)),
            _ => drop(sys::inl(port)),
        }
        // Not the 8259s and the PIT: they are the kernel's own, and could interrupt this guest.
        if ends_machine(&machine.acpi, port) || port < 0x100 {
            continue;
        }
        let value = rng.edge();
        match rng.below(3) {
            0 => sys::outb(port, value as u8),
            1 if port != print::COM1 + 7 => sys::outw(port, value as u16),
            _ if !(print::COM1 - 4..=print::COM1 + 7).contains(&port) => sys::outl(port, value as u32),
            _ => {}
        }
    }
    // 8n1, no interrupts, FIFOs on and empty, no loopback.
    for (register, value) in [(3, 0x80), (0, 1), (1, 0), (3, 3), (1, 0), (2, 7), (4, 3)] {
        sys::outb(print::COM1 + register, value);
    }
    sys::outl(0xcf8, 0);
    Ok(())
}

/// Random accesses all over the hole below 4 GiB, but to the interrupt controllers and what ends the machine.
pub fn mmio(machine: &Machine, rng: &mut Rng, rounds: u64) -> Outcome {
    let registers = [machine.acpi.sleep, machine.acpi.reset.map(|(r, _)| r)];
    for _ in 0..rounds {
        let at = 0xc000_0000 + rng.below(0x3eff_fff0);
        let at = if rng.below(2) == 0 { at } else { at & !0xfff | rng.below(64) };
        let ends =
            registers.iter().flatten().any(|r| matches!(r, Register::Memory(m) if at.abs_diff(*m) < 16));
        if ends || (0xfec0_0000..0xff00_0000).contains(&at) {
            continue;
        }
        match rng.below(4) {
            0 => drop(sys::read8(at)),
            1 => drop(sys::read64(at)),
            2 => sys::write32(at, rng.next() as u32),
            _ => sys::write64(at, rng.next()),
        }
    }
    Ok(())
}
