//! A piece of shared memory that is read and written with atomics only.
#![expect(unsafe_code, reason = "memory shared with another process is reached through a raw pointer")]

use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU32, AtomicU64};

use vm_memory::{MmapRegion, VolatileMemory};

/// A piece of one mapping, aligned for the atomics that are made of it.
#[derive(Debug)]
pub struct Area {
    start: NonNull<u8>,
    len: usize,
    /// Keeps the mapping at `start` alive.
    _mapping: Arc<MmapRegion>,
}

/// The atomic integers: any bytes are valid ones.
pub trait Atomic: sealed::Sealed {}

mod sealed {
    pub trait Sealed {}
}

macro_rules! atomic {
    ($($name:ty),*) => { $(impl sealed::Sealed for $name {} impl Atomic for $name {})* };
}

atomic!(AtomicU8, AtomicU16, AtomicU32, AtomicU64);

// SAFETY: the pointer leads into a shared mapping that `_mapping` keeps and that belongs to no thread; all access
// through it is atomic.
unsafe impl Send for Area {}

impl Area {
    /// `len` bytes from `offset` of a mapping. `None` if they are not in it, or not aligned to `align` here.
    pub fn new(mapping: Arc<MmapRegion>, offset: usize, len: usize, align: usize) -> Option<Self> {
        let start = NonNull::new(mapping.get_slice(offset, len).ok()?.ptr_guard_mut().as_ptr())?;
        start.as_ptr().addr().is_multiple_of(align).then_some(Self { start, len, _mapping: mapping })
    }

    /// The atomic at `offset`, which must be inside and, from the area's start, aligned. The area must be aligned to
    /// at least the atomic's own alignment.
    #[inline]
    pub fn at<T: Atomic>(&self, offset: usize) -> &T {
        assert!(offset + size_of::<T>() <= self.len && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: `offset` is within the area, just asserted.
        let pointer = unsafe { self.start.add(offset) };
        debug_assert!(pointer.cast::<T>().is_aligned());
        // SAFETY: the bytes are mapped as long as `self` lives; the areas made by `Ring` and `Log` are aligned for the
        // widest atomic they ask for; T is an atomic integer, of which any bytes are valid.
        unsafe { pointer.cast::<T>().as_ref() }
    }
}
