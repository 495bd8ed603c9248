//! The ways in which a guest ends, as its command line asks: the host side must be able to tell them apart.

use super::acpi::Acpi;
use super::{clock, say, sys};

/// `mini.end=`.
pub fn end(how: &str, acpi: &Acpi) -> ! {
    say!("end {how}");
    match how {
        // ACPI 6.5 §4.8.3.7: SLP_TYP 5 (the DSDT's \_S5), SLP_EN. Without hardware-reduced ACPI: PM1a_CNT, as on QEMU's
        // q35.
        "poweroff" => match (acpi.sleep, acpi.pm1a) {
            (Some(register), _) => register.write(5 << 2 | 0x20),
            (None, Some(port)) => sys::outw(port, 0x2000),
            (None, None) => say!("reason the FADT names no sleep register"),
        },
        "reset" => match acpi.reset {
            Some((register, value)) => register.write(value),
            None => say!("reason the FADT names no reset register"),
        },
        "port64" => sys::outb(0x64, 0xfe),
        "triple" => sys::triple_fault(),
        "halt" => sys::halt(),
        "spin" => loop {
            core::hint::spin_loop();
        },
        _ => say!("reason mini.end knows poweroff, reset, port64, triple, halt and spin"),
    }
    clock::spin(1_000_000);
    say!("reason the machine still runs a second after {how}");
    sys::halt()
}
