//! The freestanding root of the mini guest: ring-0 start-up, the memory functions the compiler calls, panics.
//!
//! Everything else is in `body`, which the library compiles for the host as well, so that clippy and unit tests see it.
#![no_std]
#![no_main]
#![allow(unsafe_code)]

mod body;

use core::arch::global_asm;
use core::panic::PanicInfo;
use core::sync::atomic::AtomicU64;

global_asm!(
    include_str!("boot.S"),
    main = sym user_start,
    fault = sym body::fault,
    counts = sym body::irq::COUNTS,
    options(att_syntax)
);

global_asm!(
    ".text",
    ".globl memcpy, memmove, memset, memcmp, bcmp",
    "memcpy:",
    "mov %rdi, %rax",
    "mov %rdx, %rcx",
    "rep movsb",
    "ret",
    "memmove:",
    "mov %rdi, %rax",
    "mov %rdx, %rcx",
    "sub %rsi, %rdi",
    "cmp %rdx, %rdi",
    "mov %rax, %rdi",
    "jb 1f",
    "rep movsb",
    "ret",
    "1: lea -1(%rdi,%rcx), %rdi",
    "lea -1(%rsi,%rcx), %rsi",
    "std",
    "rep movsb",
    "cld",
    "ret",
    "memset:",
    "mov %rdi, %r8",
    "mov %esi, %eax",
    "mov %rdx, %rcx",
    "rep stosb",
    "mov %r8, %rax",
    "ret",
    "memcmp:",
    "bcmp:",
    "xor %ecx, %ecx",
    "1: cmp %rdx, %rcx",
    "je 2f",
    "movzbl (%rdi,%rcx), %eax",
    "movzbl (%rsi,%rcx), %r8d",
    "inc %rcx",
    "sub %r8d, %eax",
    "je 1b",
    "ret",
    "2: xor %eax, %eax",
    "ret",
    options(att_syntax)
);

unsafe extern "C" {
    static ap_trampoline: u8;
    static ap_trampoline_end: u8;
    static boot_stack_floor: AtomicU64;
}

/// Where every CPU enters ring 3.
extern "C" fn user_start(start_info: u64, cpu: u32) -> ! {
    if cpu != 0 {
        body::smp::serve(cpu)
    }
    let start = &raw const ap_trampoline;
    let len = (&raw const ap_trampoline_end) as usize - start as usize;
    // SAFETY: both symbols bound one piece of boot.S's text, which nothing writes.
    let trampoline = unsafe { core::slice::from_raw_parts(start, len) };
    // SAFETY: boot.S reserves it, zeroed; only a stack that has overflowed writes it.
    let floor = unsafe { &*(&raw const boot_stack_floor) };
    body::run(start_info, trampoline, floor)
}

#[panic_handler]
fn panic(info: &PanicInfo) -> ! {
    body::died(info)
}
