//! The run directory: what exists only while domains run, on a tmpfs.
//!
//! ```text
//! /run/domus/              dom0.sock, dom0.lock, next-domid
//! /run/domus/networks/NAME/, switches/NAME/, domains/NAME/
//! ```
//!
//! What is in a domain's directory is the layer's that knows domains.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::unistd::Pid;
use shared_abi::{DomId, DomainName};

use crate::host::proc::ProcessId;

/// Within this time the lock of a dom0 that was killed is free.
const LOCK_FREED: Duration = Duration::from_secs(2);

/// Where what outlives a reboot is kept: definitions.
pub const CONFIG: &str = "/etc/domus";

/// Why the run directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RunDirError {
    /// Something in it cannot be made or read.
    #[error("cannot use {}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The paths of the sockets in it would not fit a socket address.
    #[error("the run directory {} is too long: {longest} bytes would do", path.display())]
    TooLong {
        /// The directory.
        path: PathBuf,
        /// The longest that would do.
        longest: usize,
    },
    /// Somebody else owns it and could take over every domain.
    #[error("the run directory {} belongs to uid {uid}: remove it, or name another by --run-dir", path.display())]
    Owner {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        uid: u32,
    },
    /// Another dom0 runs there.
    #[error("another dom0 runs in {} (pid {pid}): stop it, or name another directory by --run-dir", path.display())]
    Taken {
        /// The directory.
        path: PathBuf,
        /// Its process.
        pid: String,
    },
    /// The domain runs already.
    #[error("a domain named \"{name}\" runs already ({owner}): destroy it, or change the name")]
    NameTaken {
        /// Its name.
        name: DomainName,
        /// Who has it.
        owner: String,
    },
    /// Its processes were killed and do not end.
    #[error("the processes of \"{0}\" were killed and do not end: see what they wait for, and try again")]
    DoNotEnd(DomainName),
    /// Its processes were left by a dom0 before this one.
    #[error(
        "a domain named \"{0}\" still runs, and this dom0 could not take it over: destroy it, or change the name"
    )]
    LeftOver(DomainName),
}

/// The run directory.
#[derive(Debug, Clone)]
pub struct RunDir {
    path: PathBuf,
}

/// The result, with the path it is about.
///
/// # Errors
/// [`RunDirError::Io`].
pub fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, RunDirError> {
    result.map_err(|source| RunDirError::Io { path: path.into(), source })
}

/// Locks a file, and waits for that, two seconds at most, while `is_dead` says that whoever had it is no more: a dom0
/// that is killed while it starts a child leaves its locks with the child until the child's exec.
///
/// # Errors
/// Somebody has it.
pub fn lock_of_the_dead(mut file: File, is_dead: impl Fn() -> bool) -> Result<Flock<File>, (File, Errno)> {
    let deadline = Instant::now() + LOCK_FREED;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Err((unlocked, _)) if Instant::now() < deadline && is_dead() => file = unlocked,
            locked => return locked,
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// True if there is no process of this number.
pub fn is_dead(pid: i32) -> bool {
    ProcessId::of(Pid::from_raw(pid)).is_none()
}

impl RunDir {
    /// Makes the directory where it is missing.
    ///
    /// # Errors
    /// [`RunDirError`].
    pub fn open(path: &Path) -> Result<Self, RunDirError> {
        let path = at(path, std::path::absolute(path))?;
        // sun_path holds 107 bytes and a NUL; the longest name and file come after the directory.
        let longest = 107 - "/domains/".len() - 48 - "/block.next.sock".len();
        if path.as_os_str().len() > longest {
            return Err(RunDirError::TooLong { path, longest });
        }
        let make = |path: &Path, mode| at(path, DirBuilder::new().recursive(true).mode(mode).create(path));
        make(&path, 0o755)?;
        let meta = at(&path, path.symlink_metadata())?;
        let uid = std::os::unix::fs::MetadataExt::uid(&meta);
        if uid != nix::unistd::geteuid().as_raw() || !meta.is_dir() {
            return Err(RunDirError::Owner { path, uid });
        }
        make(&path.join("domains"), 0o700)?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket of the API.
    pub fn api_socket(&self) -> PathBuf {
        domus_api::api_socket(&self.path)
    }

    /// Takes the directory for a service; the result must be kept.
    ///
    /// # Errors
    /// [`RunDirError::Taken`].
    pub fn lock(&self) -> Result<Flock<File>, RunDirError> {
        let path = self.path.join("dom0.lock");
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = at(&path, open)?;
        let mut pid = String::new();
        let _ = (&file).take(16).read_to_string(&mut pid);
        let holder = pid.trim().parse().ok();
        let locked = lock_of_the_dead(file, || holder.is_some_and(is_dead));
        match locked {
            Ok(mut lock) => {
                let mut file = at(&path, lock.try_clone())?;
                at(&path, lock.set_len(0).and_then(|()| file.rewind()))?;
                at(&path, write!(lock, "{}", std::process::id()))?;
                Ok(lock)
            }
            Err(_) => Err(RunDirError::Taken { path: self.path.clone(), pid: pid.trim().into() }),
        }
    }

    /// The next domain number. The counter is a file, since several dom0s (`domus run`) share the host's interfaces and
    /// uids.
    ///
    /// # Errors
    /// [`RunDirError::Io`].
    pub fn next_domid(&self) -> Result<DomId, RunDirError> {
        let path = self.path.join("next-domid");
        let open =
            OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let locked = Flock::lock(at(&path, open)?, FlockArg::LockExclusive);
        let mut file = at(&path, locked.map_err(|(_, errno)| errno.into()))?;
        let mut text = String::new();
        at(&path, file.read_to_string(&mut text))?;
        // Interface names (vif4294967295.99) and uids leave room for nine digits.
        let next = text.trim().parse::<u32>().ok().filter(|n| (1..100_000_000).contains(n)).unwrap_or(1);
        at(&path, file.rewind().and_then(|()| file.set_len(0)))?;
        at(&path, write!(file, "{}", next + 1))?;
        Ok(DomId(next))
    }

    /// The domains that have a directory, whosever they are.
    pub fn names(&self) -> impl Iterator<Item = DomainName> {
        let entries = fs::read_dir(self.path.join("domains")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
    }
}
