//! The cleanup process of `domus run`: it outlives a `domus run` that was killed, and removes what that has left.
//!
//! The kernel kills the domain's processes (`PR_SET_PDEATHSIG`) and removes the taps, and knows nothing of the
//! domain's directory with its sockets. The cleanup process waits at a pipe whose other end only `domus run` has. At
//! that pipe's end it kills each of the domain's processes that is still there, waits until all have ended, and
//! removes the directory.

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use dom0::host::run_dir::{RunDir, RunDirError};
use domus_api::default_run_dir;
use shared_abi::DomainName;

/// The command line of `run-shadow`.
#[derive(Debug, Args)]
pub struct CleanupArgs {
    /// The domain's name
    name: DomainName,
}

/// A started cleanup process. It ends by itself when this process does; dropping this ends it too.
#[derive(Debug)]
pub struct CleanupProcess(Child);

impl CleanupProcess {
    /// Starts the cleanup process of this process.
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

impl CleanupProcess {
    /// Ends it with nothing done: the domain of that name is somebody else's.
    pub fn dismiss(mut self) {
        // One that has ended meanwhile does nothing, too.
        let _ = self.0.stdin.as_mut().map(|stdin| stdin.write_all(b"."));
    }
}

impl Drop for CleanupProcess {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

/// `domus run-shadow`: waits for the end of standard input, then removes what is left of the domain.
///
/// # Errors
/// That the run directory cannot be used.
pub fn run(dir: Option<&Path>, CleanupArgs { name }: &CleanupArgs) -> anyhow::Result<()> {
    // A byte says that there is nothing to do; with any other result the other end is gone.
    if let Ok(1) = std::io::stdin().lock().read(&mut [0]) {
        return Ok(());
    }
    let run = RunDir::open(&dir.map_or_else(default_run_dir, Path::to_owned))?;
    // A dying process closes the pipe before it lets go of the lock, or after.
    for _ in 0..500 {
        match run.remove_leftover(name) {
            Err(RunDirError::NameTaken { .. }) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.map(drop).map_err(Into::into),
        }
    }
    Ok(())
}
