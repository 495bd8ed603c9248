//! Limits of other processes.

#![expect(unsafe_code, reason = "prlimit of another process has no safe interface")]

use std::io;
use std::ptr;
use std::sync::LazyLock;

use nix::unistd::Pid;

/// True if this process may raise the limits of every other one (`CAP_SYS_RESOURCE`).
pub fn may_be_raised() -> bool {
    const SYS_RESOURCE: u64 = 1 << 24;
    // dom0 never gives up a capability.
    static HELD: LazyLock<bool> = LazyLock::new(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.and_then(|caps| u64::from_str_radix(caps.trim(), 16).ok());
        effective.is_some_and(|caps| caps & SYS_RESOURCE != 0)
    });
    *HELD
}

/// Lets a process make files up to `bytes` long (`RLIMIT_FSIZE`). One that may make longer ones may go on doing so, and
/// where limits may not be raised none was set.
///
/// # Errors
/// What `prlimit(2)` said.
pub fn raise_file_length(pid: Pid, bytes: u64) -> io::Result<()> {
    if !may_be_raised() {
        return Ok(());
    }
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: no new limit is given, and the old one is written to `limit`, which lives through the call.
    let got = unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_FSIZE, ptr::null(), &raw mut limit) };
    if got != 0 {
        return Err(io::Error::last_os_error());
    }
    if limit.rlim_cur >= bytes {
        return Ok(());
    }
    limit.rlim_cur = bytes;
    // SAFETY: the new limit is read from `limit`, which lives through the call; the old one is not asked for.
    let set = unsafe { libc::prlimit(pid.as_raw(), libc::RLIMIT_FSIZE, &raw const limit, ptr::null_mut()) };
    if set == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
