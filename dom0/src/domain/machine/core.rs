//! Cores of a domain's machine: the runner writes them into a file that dom0 has opened.
//!
//! dom0 never sees the guest's memory, the runner never a path. A file that is there is never written to, one that
//! could not be written as a whole is removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use shared_abi::DomainName;
use shared_abi::control::RunnerRequest;

use crate::domain::machine::Machine;
use crate::process::link::ANSWER;

/// Bytes a second that the slowest disk is thought to take.
const SLOWEST: u64 = 16 << 20;

/// The file of a core, which is there and empty.
#[derive(Debug)]
pub struct CoreFile {
    path: PathBuf,
    file: File,
}

impl CoreFile {
    /// Makes the file that an operator has named.
    ///
    /// # Errors
    /// One line; also if it is there.
    pub fn at(path: PathBuf) -> Result<Self, String> {
        match make(&path) {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(refusal(&path, &error)),
        }
    }

    /// Makes one in the directory of cores, which is made where it is missing.
    ///
    /// # Errors
    /// One line.
    pub fn among(cores: &Path, domain: &DomainName) -> Result<Self, String> {
        let path = cores.join(core_name(domain));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(cores);
        made.map_err(|error| refusal(&path, &error))?;
        Self::at(path)
    }
}

fn refusal(path: &Path, error: &io::Error) -> String {
    let cure = match error.kind() {
        io::ErrorKind::AlreadyExists => ": name another file",
        io::ErrorKind::NotFound => ": make its directory, or name another file",
        _ => "",
    };
    format!("cannot make the core {}: {error}{cure}", path.display())
}

impl Machine {
    /// Writes a core; returns where it is. With `live` the vCPUs run meanwhile, with `hold` they do not run again.
    ///
    /// # Errors
    /// One line; the file is removed then.
    pub async fn write_core(&mut self, core: CoreFile, live: bool, hold: bool) -> Result<PathBuf, String> {
        let CoreFile { path, file } = core;
        let mut fds = Outgoing::default();
        let request = RunnerRequest::DumpCore { file: fds.add(file), live, hold };
        let patience = ANSWER + Duration::from_secs(self.memory / SLOWEST);
        let problem = match &mut self.runner {
            None => "the runner is gone".into(),
            Some(runner) => {
                match runner.done_with(&request, fds.into_vec(), patience, "written a core").await {
                    Ok(()) => return Ok(path),
                    Err(error) => chain(&error),
                }
            }
        };
        let _ = std::fs::remove_file(&path);
        Err(format!("{}: {problem}", path.display()))
    }
}

/// Makes the file, which nobody else can have made, for root alone.
fn make(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)
}

/// A name that no other core of the same domain has: with the time, in nanoseconds since 1970.
fn core_name(domain: &DomainName) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    format!("{domain}-{}.{:09}.core", now.as_secs(), now.subsec_nanos())
}
