//! Cores of a domain's machine: the runner writes them into a file that dom0 has opened.
//!
//! dom0 never sees the guest's memory, the runner never a path. A file that is there is never written to, one that
//! could not be written as a whole is removed. Where it is made is somebody's storage: see [`slow`].

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use nix::sys::statvfs::statvfs;
use shared_abi::DomainName;
use shared_abi::control::RunnerRequest;

use crate::domain::machine::Machine;
use crate::host::slow::{self, StorageFile};
use crate::process::link::ANSWER;

/// Cores of one domain that are kept in the directory of cores.
const MAX_CORES: usize = 3;

/// Percent of the file system with the directory of cores that cores leave free.
const RESERVE: u64 = 5;

/// A domain's crashes leave one core in this time at most.
const INTERVAL: Duration = Duration::from_secs(60);

/// Bytes a second that the slowest disk is thought to take.
const SLOWEST: u64 = 16 << 20;

/// The file of a core, which is there and empty.
#[derive(Debug)]
pub struct CoreFile {
    path: PathBuf,
    file: StorageFile,
}

impl CoreFile {
    /// Makes the file that an operator has named.
    ///
    /// # Errors
    /// One line; also if it is there.
    pub async fn at(path: PathBuf) -> Result<Self, String> {
        let made = slow::with(&path, |path| make(path).map(StorageFile::from)).await;
        match made.map_err(|slow| slow.to_string())? {
            Ok(file) => Ok(Self { path, file }),
            Err(error) => Err(refusal(&path, &error)),
        }
    }

    /// Makes one in the directory of cores, which is made where it is missing. A domain has three there at
    /// most: the oldest goes. What other things on that file system need stays free.
    ///
    /// # Errors
    /// One line; also if there is no room for it.
    pub async fn among(cores: &Path, domain: &DomainName, bytes: u64) -> Result<Self, String> {
        let (path, domain) = (cores.join(core_name(domain)), domain.clone());
        let new = path.clone();
        let ready = slow::with(cores, move |cores| make_room(cores, &domain, bytes, &new));
        ready.await.map_err(|slow| slow.to_string())??;
        Self::at(path).await
    }

    /// True if the newest core of a domain there is so young that another one would tell little more: a guest that
    /// crashes time and again would write nothing but cores.
    pub async fn is_recent(cores: &Path, domain: &DomainName) -> bool {
        let domain = domain.clone();
        let recent = move |cores: &Path| {
            let newest = cores_of(cores, &domain).pop();
            let made = newest.and_then(|newest| newest.metadata().ok()?.modified().ok());
            made.is_some_and(|made| made.elapsed().is_ok_and(|age| age < INTERVAL))
        };
        slow::with(cores, recent).await.unwrap_or(false)
    }
}

/// Makes the directory of cores where it is missing, and room there for `new`.
fn make_room(cores: &Path, domain: &DomainName, bytes: u64, new: &Path) -> Result<(), String> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(cores);
    made.map_err(|error| refusal(new, &error))?;
    let mut own = cores_of(cores, domain);
    while own.len() >= MAX_CORES {
        let _ = std::fs::remove_file(own.remove(0));
    }
    room(cores, bytes).map_err(|why| {
        format!("cannot make the core {}: {why}: make room, or name another file", new.display())
    })
}

/// The cores of a domain there, the oldest first. Nothing else that lies there.
fn cores_of(cores: &Path, domain: &DomainName) -> Vec<PathBuf> {
    let is_core = |name: &str| {
        let time = name.strip_prefix(domain.as_str())?.strip_prefix('-')?.strip_suffix(".core")?;
        let (seconds, nanoseconds) = time.split_once('.')?;
        let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        (digits(seconds) && digits(nanoseconds)).then_some(())
    };
    let entries = std::fs::read_dir(cores).into_iter().flatten().flatten();
    let own = entries.filter(|entry| entry.file_name().to_str().is_some_and(|name| is_core(name).is_some()));
    let mut own: Vec<_> = own.map(|entry| entry.path()).collect();
    own.sort();
    own
}

/// Refuses more bytes than fit into the file system with [`RESERVE`] left free.
fn room(directory: &Path, bytes: u64) -> Result<(), String> {
    // What cannot be asked is found out by writing.
    let Ok(host) = statvfs(directory) else { return Ok(()) };
    let unit = host.fragment_size();
    let free = (host.blocks_available() * unit).saturating_sub(host.blocks() * unit / 100 * RESERVE);
    match bytes <= free {
        true => Ok(()),
        false => Err(format!("it needs {} MiB, and {} MiB may be used there", bytes >> 20, free >> 20)),
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
        let _ = slow::with(&path, |path| std::fs::remove_file(path)).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_domain_has_few_cores_and_what_else_lies_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let domain: DomainName = "web1".parse().unwrap();
        for other in ["web1-notes.core", "web1-2-1.000000001.core", "web1-1.core.gz"] {
            std::fs::write(dir.path().join(other), "").unwrap();
        }
        assert!(!CoreFile::is_recent(dir.path(), &domain).await);
        for _ in 0..5 {
            drop(CoreFile::among(dir.path(), &domain, 1).await.unwrap());
        }
        assert!(CoreFile::is_recent(dir.path(), &domain).await);
        assert_eq!(cores_of(dir.path(), &domain).len(), MAX_CORES);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), MAX_CORES + 3);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_core_that_has_no_room_is_refused_before_it_is_begun() {
        let dir = tempfile::tempdir().unwrap();
        let domain: DomainName = "web1".parse().unwrap();
        let error = CoreFile::among(dir.path(), &domain, 1 << 60).await.unwrap_err();
        assert!(error.contains("MiB may be used there"), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
