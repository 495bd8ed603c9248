//! The shadow of `domus run`: a process that outlives a killed one and removes what it has left.
//!
//! The kernel kills the domain's processes (`PR_SET_PDEATHSIG`) and removes the taps, and knows nothing of the domain's
//! directory with its sockets. The shadow waits at a pipe whose other end only `domus run` has, ends a process that lives
//! on in spite of that, waits until all have ended, and removes the directory.

use std::io::Read;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use dom0::resources::run_dir::{RunDir, RunDirError};
use shared_abi::DomainName;

/// A started shadow. It ends by itself when this process does; dropping this ends it too.
#[derive(Debug)]
pub struct Shadow(Child);

impl Shadow {
    /// Starts the shadow of this process.
    ///
    /// # Errors
    /// That this program cannot be started.
    pub fn start(run_dir: &Path, name: &DomainName) -> anyhow::Result<Self> {
        let child = Command::new("/proc/self/exe")
            .arg("--run-dir")
            .arg(run_dir)
            .args(["run-shadow", name.as_str()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            // The terminal's signals are not for it.
            .process_group(0)
            .spawn();
        child.map(Self).context("cannot start the process that cleans up after a killed domus run")
    }
}

impl Drop for Shadow {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// What the shadow does: waits for the end of its standard input, then removes what is left of the domain.
///
/// # Errors
/// That the run directory cannot be used.
pub fn shadow(run_dir: &Path, name: &DomainName) -> anyhow::Result<()> {
    // Whatever the result, the other end is gone.
    let _ = std::io::stdin().lock().read(&mut [0]);
    let run = RunDir::open(run_dir)?;
    // A dying process closes the pipe before it lets go of the lock, or after.
    for _ in 0..500 {
        match run.remove_leftover(name) {
            Err(RunDirError::NameTaken { .. }) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.map(drop).map_err(Into::into),
        }
    }
    Ok(())
}
