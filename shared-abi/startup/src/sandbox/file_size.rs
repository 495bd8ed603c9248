//! How long a file may become.
#![expect(unsafe_code, reason = "to ignore a signal has no safe binding")]

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};

use super::{SandboxError, step};

/// Lets no file that this process writes become longer than `bytes`: a write beyond is an error (`EFBIG`). Files that
/// are longer stay so, and block devices have the size they have. Standard error counts, too, if it is a file; what
/// does not fit into it is lost.
///
/// # Errors
/// [`SandboxError::Step`].
pub fn limit_files(bytes: u64) -> Result<(), SandboxError> {
    limit(bytes, bytes)
}

/// The same until somebody outside raises the limit (`prlimit(2)`): a sealed process cannot.
///
/// # Errors
/// [`SandboxError::Step`].
pub fn limit_files_for_now(bytes: u64) -> Result<(), SandboxError> {
    limit(bytes, RLIM_INFINITY)
}

fn limit(bytes: u64, most: u64) -> Result<(), SandboxError> {
    // SAFETY: to ignore a signal installs no code. Nobody in this process handles this one.
    let before = unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
    let ignored = if before == libc::SIG_ERR { Err(Errno::last()) } else { Ok(()) };
    step("ignore the signal of files that become too long", ignored)?;
    step("limit the length of files", setrlimit(Resource::RLIMIT_FSIZE, bytes, most))
}
