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

#[cfg(test)]
mod tests {
    use super::*;

    /// The calling thread's cookie, 0 for none; none where the kernel has no core scheduling.
    fn cookie() -> Option<u64> {
        let mut cookie = 0_u64;
        let into = &raw mut cookie;
        // SAFETY: PR_SCHED_CORE_GET writes one u64 to the address given, which is ours.
        let got = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_GET, 0, THREAD, into) };
        (got == 0).then_some(cookie)
    }

    #[test]
    fn threads_have_the_cookie_of_the_one_that_started_them_and_the_process_has_none() {
        let started = std::thread::spawn(|| {
            let is_on = own_cookie();
            let inherited = [(); 2].map(|()| std::thread::spawn(cookie));
            (is_on, cookie(), inherited.map(|thread| thread.join().unwrap()))
        });
        let (is_on, own, [one, other]) = started.join().unwrap();
        assert_eq!((one, other), (own, own));
        assert_eq!(own.is_some_and(|cookie| cookie != 0), is_on);
        assert_eq!(cookie().unwrap_or(0), 0);
    }
}
