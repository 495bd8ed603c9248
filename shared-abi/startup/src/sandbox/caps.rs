//! Capabilities: all of them, away.
#![expect(unsafe_code, reason = "capset and prctl have no safe binding among our crates")]

use nix::errno::Errno;

/// `_LINUX_CAPABILITY_VERSION_3`: two 32-bit words for each set.
const VERSION_3: u32 = 0x2008_0522;

/// The header of capset(2): version and thread (0 is the caller).
#[repr(C)]
struct Header {
    version: u32,
    pid: i32,
}

/// One 32-bit word of each set, of capset(2).
#[repr(C)]
#[derive(Clone, Copy)]
struct Data {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Drops every capability from the bounding set, so that no later `execve` could give one back.
///
/// # Errors
/// `EPERM` without `CAP_SETPCAP`.
pub fn drop_bounding_set() -> nix::Result<()> {
    for capability in 0..64 {
        // SAFETY: PR_CAPBSET_DROP reads its two integer arguments and no memory.
        let result = unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
        match Errno::result(result) {
            // EINVAL: beyond the last capability that this kernel knows.
            Err(Errno::EINVAL) => return Ok(()),
            other => other.map(drop)?,
        }
    }
    Ok(())
}

/// Empties the effective, permitted, inheritable and ambient sets of the calling thread.
///
/// # Errors
/// None that the kernel documents for taking away.
pub fn drop_all() -> nix::Result<()> {
    // SAFETY: PR_CAP_AMBIENT reads its integer arguments and no memory.
    let ambient = unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0) };
    Errno::result(ambient)?;
    let header = Header { version: VERSION_3, pid: 0 };
    let data = [Data { effective: 0, permitted: 0, inheritable: 0 }; 2];
    // SAFETY: the header announces version 3, for which the kernel reads exactly two `Data`; both live here.
    let result = unsafe { libc::syscall(libc::SYS_capset, &header, data.as_ptr()) };
    Errno::result(result).map(drop)
}
