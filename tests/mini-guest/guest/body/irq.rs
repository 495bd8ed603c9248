//! Interrupts: ring 0 only counts them (boot.S); this is where the counts are, and the local APIC and IOAPIC.

use super::sys;
use core::sync::atomic::{AtomicU32, Ordering};

/// How often each vector was delivered since the start, on all CPUs.
pub static COUNTS: [AtomicU32; 256] = [const { AtomicU32::new(0) }; 256];

/// Vector of COM1's IRQ 4.
pub const UART: u8 = 0x30;
/// Vector of the local APIC's timer.
pub const TIMER: u8 = 0x31;
/// Where MSI-X vectors of devices begin.
pub const DEVICES: u8 = 0x40;
/// Where the vectors of inter-processor interrupts begin.
const WAKE: u8 = 0xc0;
/// Spurious interrupts.
const SPURIOUS: u8 = 0xff;

const LAPIC: u64 = 0xfee0_0000;
const IOAPIC: u64 = 0xfec0_0000;

/// The vector of the interrupt that wakes the CPU with this index. Others may have the same: what wakes for them sleeps
/// again.
pub fn wake(cpu: usize) -> u8 {
    WAKE + (cpu % usize::from(SPURIOUS - WAKE)) as u8
}

/// How often `vector` was delivered.
pub fn count(vector: u8) -> u32 {
    COUNTS[usize::from(vector)].load(Ordering::SeqCst)
}

/// Turns this CPU's local APIC on.
pub fn enable_lapic() {
    sys::write32(LAPIC + 0xf0, 0x100 | u32::from(SPURIOUS));
    sys::write32(LAPIC + 0x80, 0);
}

/// This CPU's APIC id.
pub fn apic_id() -> u8 {
    (sys::read32(LAPIC + 0x20) >> 24) as u8
}

/// Sends the interrupt that `command` (ICR bits 0–31) describes to one CPU.
pub fn ipi(apic_id: u8, command: u32) {
    sys::write32(LAPIC + 0x310, u32::from(apic_id) << 24);
    sys::write32(LAPIC + 0x300, command);
}

/// Lets the local APIC's timer tick about every `ns` nanoseconds (KVM's bus clock is 1 GHz), or stops it with 0.
pub fn tick(ns: u32) {
    sys::write32(LAPIC + 0x3e0, 0b1011);
    sys::write32(LAPIC + 0x320, if ns == 0 { 1 << 16 } else { 1 << 17 } | u32::from(TIMER));
    sys::write32(LAPIC + 0x380, ns);
}

/// Routes IOAPIC input `pin`, edge-triggered, to `vector` on the CPU with `apic_id`; `None` masks it.
pub fn route(pin: u8, to: Option<(u8, u8)>) {
    let index = 0x10 + u32::from(pin) * 2;
    let (low, high) = to.map_or((1 << 16, 0), |(vector, id)| (u32::from(vector), u32::from(id) << 24));
    for (register, value) in [(index, 1 << 16), (index + 1, high), (index, low)] {
        sys::write32(IOAPIC, register);
        sys::write32(IOAPIC + 0x10, value);
    }
}

/// Sleeps until an interrupt, unless one of two vectors has been delivered since their counts were `seen`.
pub fn wait_either(one: u8, other: u8, seen: [u32; 2]) {
    // Ring 0 compares one counter. The other may come between: then the next interrupt wakes, at the latest its own
    // next one, so only a vector that ticks may be the other.
    if count(other) == seen[1] {
        sys::sleep_unless_moved(&COUNTS[usize::from(one)], seen[0]);
    }
}

/// Sleeps until `vector` has been delivered more than `seen` times or `deadline` (TSC) has passed.
///
/// The timer must tick, or a deadline is noticed only at the next interrupt.
pub fn wait(vector: u8, seen: u32, deadline: u64) -> bool {
    while count(vector) == seen {
        if sys::tsc() > deadline {
            return false;
        }
        sys::sleep_unless_moved(&COUNTS[usize::from(vector)], seen);
    }
    true
}
