//! Landlock: the kernel's own word for "no paths", beside the empty root. Where the two agree nothing is lost; where
//! one has a hole the other stands.
#![expect(unsafe_code, reason = "landlock's system calls have no binding among our crates")]

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

/// `struct landlock_ruleset_attr` (linux/landlock.h): what is denied unless a rule allows it.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ruleset {
    /// Rights on files.
    files: u64,
    /// To bind and to connect TCP sockets.
    network: u64,
    /// To reach abstract Unix sockets, and to signal processes, of others.
    scopes: u64,
}

/// `LANDLOCK_CREATE_RULESET_VERSION`.
const VERSION: libc::c_uint = 1;

impl Ruleset {
    /// All that this version of the kernel's interface can deny.
    fn all(version: i64) -> Self {
        // 13 rights at first; then REFER, TRUNCATE, and with the fifth version IOCTL_DEV.
        let rights = match version {
            1 => 13,
            2 => 14,
            3 | 4 => 15,
            _ => 16,
        };
        let network = if version >= 4 { 0b11 } else { 0 };
        let scopes = if version >= 6 { 0b11 } else { 0 };
        Self { files: (1 << rights) - 1, network, scopes }
    }

    /// Bytes that a kernel of this version knows.
    fn len(version: i64) -> usize {
        match version {
            ..=3 => 8,
            4 | 5 => 16,
            _ => 24,
        }
    }
}

/// The version of the interface; none where the kernel has no Landlock, or it is not switched on.
pub fn version() -> Option<i64> {
    // SAFETY: with this flag the kernel reads no memory.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<Ruleset>(), 0, VERSION) };
    Errno::result(version).ok().filter(|version| *version > 0)
}

/// Denies the calling thread, and all that it starts, every path, TCP, and others' processes. Nothing happens where the
/// kernel has no Landlock. Needs `no_new_privs`.
///
/// # Errors
/// What the kernel says.
pub fn deny_all() -> nix::Result<()> {
    let Some(version) = version() else { return Ok(()) };
    let ruleset = Ruleset::all(version);
    // SAFETY: the kernel reads as many bytes of the ruleset as are named, and it has as many.
    let fd = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const ruleset, Ruleset::len(version), 0)
    };
    let fd = Errno::result(fd)? as libc::c_int;
    // SAFETY: the kernel has just made this descriptor for us.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: two integers.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, fd.as_raw_fd(), 0) };
    Errno::result(restricted).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_version_is_asked_for_what_it_knows() {
        assert_eq!((Ruleset::all(1).files, Ruleset::len(1)), (0x1fff, 8));
        assert_eq!((Ruleset::all(3).files, Ruleset::all(3).network), (0x7fff, 0));
        assert_eq!(Ruleset::all(4), Ruleset { files: 0x7fff, network: 3, scopes: 0 });
        assert_eq!(
            (Ruleset::all(7), Ruleset::len(7)),
            (Ruleset { files: 0xffff, network: 3, scopes: 3 }, 24)
        );
    }
}
