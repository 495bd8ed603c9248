//! Core scheduling: threads with the same cookie share the hardware threads of a core with nobody else, so that what a
//! core keeps (caches, predictors, buffers) is seen by no other domain's vCPU that runs beside (`PR_SCHED_CORE`).
#![expect(unsafe_code, reason = "prctl has no safe binding for core scheduling among our crates")]

/// The whole thread, and nothing but it: `PIDTYPE_PID` of the kernel.
const THREAD: libc::c_ulong = 0;

/// Gives the calling thread a cookie of its own, which the threads that it starts inherit. False where that means
/// nothing: the host has no SMT, or its kernel no core scheduling.
pub fn own_cookie() -> bool {
    // SAFETY: PR_SCHED_CORE_CREATE for the caller (0) takes integers and touches no memory.
    unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, THREAD, 0) == 0 }
}
