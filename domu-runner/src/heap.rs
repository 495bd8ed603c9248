//! Keeps the heap small: what was needed for loading a kernel is given back.
#![expect(unsafe_code, reason = "mallopt has no safe binding among our crates")]

/// Blocks from this size on are mappings of their own, which return to the system when they are freed.
const MMAP_THRESHOLD: libc::c_int = 64 << 10;

/// Sets the allocator up for a process that allocates little after its start. To be called first.
pub fn configure() {
    // One arena for all threads: the others' would be mostly empty.
    // SAFETY: mallopt takes two integers; no other thread exists that could be allocating.
    unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) };
    // SAFETY: as above.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, MMAP_THRESHOLD) };
}
