//! The processor and the physical address space: the one leaf with the guest's unsafe code.
//!
//! The whole machine belongs to this program. Rust's own objects live in the image ([`IMAGE`]); the accessors here
//! refuse that range, so whatever a test reads or writes, the compiler's view of its own memory stays true.
//! Everything else, RAM or not, is bytes that a device may change at any time. Each access is one MOV of exactly
//! the width asked for, at any alignment: that is what an MMIO register sees.
#![allow(unsafe_code, reason = "ports, MMIO and DMA memory are what a bare-metal guest is made of")]

use core::arch::asm;
use core::arch::x86_64::{__cpuid_count, _rdtsc};
use core::ops::Range;
use core::sync::atomic::AtomicU32;

/// The addresses of the program itself (see `link.ld`).
pub const IMAGE: Range<u64> = 0x20_0000..0xa0_0000;

fn checked(addr: u64, len: u64) -> u64 {
    let outside = addr.checked_add(len).is_some_and(|end| end <= IMAGE.start || addr >= IMAGE.end);
    assert!(outside, "an access to {addr:#x} would touch the guest's own image");
    addr
}

macro_rules! accessors {
    ($($read:ident $write:ident $type:ty, $class:ident, $modifier:literal, $move:literal;)*) => {$(
        #[doc = concat!("Reads a `", stringify!($type), "` at physical address `addr`.")]
        pub fn $read(addr: u64) -> $type {
            let addr = checked(addr, size_of::<$type>() as u64);
            let value: $type;
            // SAFETY: the address is outside Rust's objects; an unmapped one ends in `fault`, which reports it.
            unsafe {
                asm!(concat!("mov {value", $modifier, "}, ", $move, " ptr [{addr}]"), addr = in(reg) addr,
                     value = out($class) value, options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("Writes a `", stringify!($type), "` at physical address `addr`.")]
        pub fn $write(addr: u64, value: $type) {
            let addr = checked(addr, size_of::<$type>() as u64);
            // SAFETY: as above: nothing of Rust's is there.
            unsafe {
                asm!(concat!("mov ", $move, " ptr [{addr}], {value", $modifier, "}"), addr = in(reg) addr,
                     value = in($class) value, options(nostack, preserves_flags));
            }
        }
    )*};
}

accessors! {
    read8 write8 u8, reg_byte, "", "byte";
    read16 write16 u16, reg, ":x", "word";
    read32 write32 u32, reg, ":e", "dword";
    read64 write64 u64, reg, "", "qword";
}

macro_rules! ports {
    ($($input:ident $output:ident $type:ty, $register:tt;)*) => {$(
        #[doc = concat!("IN of a `", stringify!($type), "`.")]
        pub fn $input(port: u16) -> $type {
            let value: $type;
            // SAFETY: ports reach devices only, never Rust's memory (no device here does DMA on a port's behalf).
            unsafe {
                asm!(concat!("in ", $register, ", dx"), in("dx") port, out($register) value,
                     options(nostack, preserves_flags));
            }
            value
        }

        #[doc = concat!("OUT of a `", stringify!($type), "`.")]
        pub fn $output(port: u16, value: $type) {
            // SAFETY: as above.
            unsafe {
                asm!(concat!("out dx, ", $register), in("dx") port, in($register) value,
                     options(nostack, preserves_flags));
            }
        }
    )*};
}

ports! {
    inb outb u8, "al";
    inw outw u16, "ax";
    inl outl u32, "eax";
}

/// Fills `len` bytes at `addr`.
pub fn fill(addr: u64, len: u64, byte: u8) {
    let addr = checked(addr, len);
    // SAFETY: the range is outside Rust's objects.
    unsafe {
        asm!("rep stosb", inout("rdi") addr => _, inout("rcx") len => _, in("al") byte, options(nostack, preserves_flags));
    }
}

/// Copies `bytes` to `addr`.
pub fn put(addr: u64, bytes: &[u8]) {
    let addr = checked(addr, bytes.len() as u64);
    // SAFETY: the source is a live slice, the target is outside Rust's objects, so they cannot overlap.
    unsafe {
        asm!("rep movsb", inout("rdi") addr => _, inout("rsi") bytes.as_ptr() => _,
             inout("rcx") bytes.len() => _, options(nostack, preserves_flags));
    }
}

/// Copies from `addr` into all of `bytes`.
pub fn get(addr: u64, bytes: &mut [u8]) {
    let addr = checked(addr, bytes.len() as u64);
    // SAFETY: the target is a live, exclusive slice, the source is outside Rust's objects.
    unsafe {
        asm!("rep movsb", inout("rdi") bytes.as_mut_ptr() => _, inout("rsi") addr => _,
             inout("rcx") bytes.len() => _, options(nostack, preserves_flags));
    }
}

/// The time-stamp counter.
pub fn tsc() -> u64 {
    // SAFETY: RDTSC has no precondition in ring 3 while CR4.TSD is clear, as boot.S leaves it.
    unsafe { _rdtsc() }
}

/// CPUID: EAX, EBX, ECX, EDX.
pub fn cpuid(leaf: u32, sub: u32) -> [u32; 4] {
    let r = __cpuid_count(leaf, sub);
    [r.eax, r.ebx, r.ecx, r.edx]
}

/// INT3 is the call into ring 0 (boot.S, `ring0_call`).
fn ring0(function: u64, rdi: u64, rsi: u64) -> u64 {
    let mut result = function;
    // SAFETY: the handler changes RAX, RCX and RDX only, and memory not at all; it runs on its own stack.
    unsafe {
        asm!("int3", inout("rax") result, in("rdi") rdi, in("rsi") rsi, out("rcx") _, out("rdx") _);
    }
    result
}

/// Sleeps until an interrupt, unless `counter` has already moved on from `seen`: no wake-up is lost.
pub fn sleep_unless_moved(counter: &AtomicU32, seen: u32) {
    ring0(0, counter.as_ptr() as u64, u64::from(seen));
}

/// Reads a model-specific register.
pub fn rdmsr(index: u32) -> u64 {
    ring0(1, u64::from(index), 0)
}

/// Writes a model-specific register.
pub fn wrmsr(index: u32, value: u64) {
    ring0(2, u64::from(index), value);
}

/// Shuts the processor down by a triple fault.
pub fn triple_fault() -> ! {
    ring0(3, 0, 0);
    halt()
}

/// Sleeps for good with interrupts off.
pub fn halt() -> ! {
    loop {
        ring0(4, 0, 0);
    }
}

/// Makes new page-table entries seen.
pub fn flush_tlb() {
    ring0(5, 0, 0);
}

/// Orders all earlier stores before all later loads, as the two halves of a notification need.
pub fn fence() {
    core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
}
