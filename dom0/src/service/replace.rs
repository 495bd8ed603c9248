//! Replaces the running dom0 with the installed program, such as another version, while its domains go on.
//!
//! Under a service manager dom0 ends, and `Restart=` starts it again. Otherwise the process executes the program that
//! its own path names now. Either way the next dom0 takes the domains over as after a crash.

use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use nix::unistd::{AccessFlags, access};

/// Added by the kernel to the path of a running program whose file was replaced (proc_pid_exe(5)).
const REPLACED: &[u8] = b" (deleted)";

/// True if a service manager starts dom0 again when it ends.
fn is_service() -> bool {
    ["INVOCATION_ID", "NOTIFY_SOCKET"].iter().all(|name| std::env::var_os(name).is_some())
}

/// The program at this one's path.
fn program() -> io::Result<PathBuf> {
    let path = std::env::current_exe()?;
    let bytes = path.as_os_str().as_bytes();
    let bytes = bytes.strip_suffix(REPLACED).unwrap_or(bytes);
    Ok(std::ffi::OsString::from_vec(bytes.to_vec()).into())
}

/// Looks whether there is a program to become.
///
/// # Errors
/// One line.
pub fn check() -> Result<(), String> {
    let program = program().map_err(|error| format!("dom0 does not know its own program: {error}"))?;
    access(&program, AccessFlags::X_OK).map_err(|errno| {
        format!("dom0 cannot become {}: {}: install it again", program.display(), errno.desc())
    })
}

/// Ends this dom0 in favour of the next. Returns if there is none, with what the system said. No destructor has run
/// then and none does otherwise: those end processes.
pub fn succeed() -> io::Error {
    if is_service() {
        std::process::exit(0);
    }
    match program() {
        Ok(program) => Command::new(program).args(std::env::args_os().skip(1)).exec(),
        Err(error) => error,
    }
}
