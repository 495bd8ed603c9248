//! Memory for rings and buffers: a bump allocator over RAM that Rust's objects are not in, emptied before each check.

use super::boot::Start;
use super::sys;
use core::sync::atomic::{AtomicU64, Ordering};

/// First byte of the arena, just after the image.
pub const BASE: u64 = sys::IMAGE.end;
/// The most it takes.
const MAX_LEN: u64 = 48 << 20;

static NEXT: AtomicU64 = AtomicU64::new(BASE);
static END: AtomicU64 = AtomicU64::new(BASE);

/// Takes the RAM that follows the image.
pub fn init(start: &Start) -> Result<(), &'static str> {
    let len = (4..=MAX_LEN >> 20).rev().map(|mib| mib << 20).find(|&len| start.is_ram(BASE, len));
    END.store(BASE + len.ok_or("no 4 MiB of RAM after the image")?, Ordering::Relaxed);
    Ok(())
}

/// First byte after the arena.
pub fn end() -> u64 {
    END.load(Ordering::Relaxed)
}

/// Forgets all allocations. Whoever calls it has reset the devices that knew of them.
pub fn clear() {
    NEXT.store(BASE, Ordering::Relaxed);
}

/// `len` zeroed bytes at a multiple of `align`, a power of two.
pub fn alloc(len: u64, align: u64) -> u64 {
    let at = NEXT.load(Ordering::Relaxed).next_multiple_of(align);
    assert!(len <= end() - at, "the arena has no {len} bytes left");
    NEXT.store(at + len, Ordering::Relaxed);
    sys::fill(at, len, 0);
    at
}

/// Where the next allocation would begin; [`rewind`] goes back to it.
pub fn mark() -> u64 {
    NEXT.load(Ordering::Relaxed)
}

/// Forgets what was allocated since [`mark`]. Whoever calls it has reset the devices that knew of it.
pub fn rewind(mark: u64) {
    NEXT.store(mark.clamp(BASE, end()), Ordering::Relaxed);
}
