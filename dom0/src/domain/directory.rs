//! A domain's directory in the run directory.
//!
//! ```text
//! /run/domus/domains/NAME/ runner.sock, block.sock, net.sock, console.sock, tty.sock, state.json, nicN.state
//! ```
//!
//! The directory is the domain's claim on the name: it is made with the domain, locked while the dom0 lives that has
//! it, and removed with the domain. One that is not locked was left by a dom0 that has ended: the next one takes it
//! over. `state.json` says what it needs for that, and which processes there are, so that there is no doubt about who
//! they are.

use std::cell::RefCell;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, Flock, FlockArg, RenameFlags, renameat2};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use shared_abi::{DomId, DomainName, Role};

use crate::domain::record::Record;
use crate::host::pidfd::{open_pidfd, signal};
use crate::host::proc::ProcessId;
use crate::host::run_dir::{RunDir, RunDirError, at, is_dead, lock_of_the_dead};
use crate::host::{fault, orphans};

/// Within this time a process that was killed ends.
pub const END: Duration = Duration::from_secs(5);

/// Who has the name in the run directory at `run`, as far as the caller may look. Makes nothing.
pub fn owner(run: &Path, name: &DomainName) -> Option<String> {
    let path = run.join("domains").join(name.as_str());
    let dir = File::open(&path).ok()?;
    // Shared, so that two who look do not take each other for the owner.
    match Flock::lock(dir, FlockArg::LockSharedNonblock) {
        Ok(_) => None,
        Err(_) => Some(owner_of(&path)),
    }
}

/// What the run directory says of domains.
impl RunDir {
    fn domain_path(&self, name: &DomainName) -> PathBuf {
        self.path().join("domains").join(name.as_str())
    }

    /// Claims a name.
    ///
    /// # Errors
    /// [`RunDirError::NameTaken`], [`RunDirError::LeftOver`].
    pub fn claim(&self, name: &DomainName) -> Result<DomainDir, RunDirError> {
        let path = self.domain_path(name);
        for _ in 0..8 {
            match DirBuilder::new().mode(0o700).create(&path) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return at(&path, Err(error)),
                _ => {}
            }
            let Some(lock) = self.lock_domain(name, &path)? else { continue };
            let mut dir =
                DomainDir { path: path.clone(), stays: false, written: RefCell::default(), _lock: lock };
            if dir.leftovers().is_ok_and(|left| left.is_empty()) {
                clear(&dir.path);
                return Ok(dir);
            }
            dir.stays = true;
            return Err(RunDirError::LeftOver(name.clone()));
        }
        Err(RunDirError::NameTaken { name: name.clone(), owner: "it comes and goes".into() })
    }

    /// Ends what a killed dom0 has left of a domain, waits for that, and removes its directory. False if nothing is
    /// left of it. Blocks, for [`END`] at most.
    ///
    /// # Errors
    /// [`RunDirError::NameTaken`] if it is not left over, [`RunDirError::DoNotEnd`].
    pub fn remove_leftover(&self, name: &DomainName) -> Result<bool, RunDirError> {
        let path = self.domain_path(name);
        if !path.exists() {
            return Ok(false);
        }
        let Some(lock) = self.lock_domain(name, &path)? else { return Ok(false) };
        let mut dir = DomainDir { path, stays: false, written: RefCell::default(), _lock: lock };
        // Held before they are looked at once more: what is killed is what was looked at.
        let open = |process: &ProcessId| open_pidfd(Pid::from_raw(process.pid)).ok();
        let left = dir.leftovers().unwrap_or_else(|_| orphans::all(&dir.path));
        let held: Vec<_> = left.iter().filter_map(|p| Some((*p, open(p)?))).collect();
        let mut dying: Vec<_> = held.into_iter().filter(|(process, _)| process.lives()).collect();
        dying.iter().for_each(|(_, pidfd)| signal(pidfd.as_fd(), Signal::SIGKILL));
        let deadline = Instant::now() + END;
        while let Some((_, pidfd)) = dying.last() {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
            match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
                Ok(1..) => drop(dying.pop()),
                Err(Errno::EINTR) => {}
                _ => {
                    dir.stays = true;
                    return Err(RunDirError::DoNotEnd(name.clone()));
                }
            }
        }
        Ok(true)
    }

    /// Domains whose directory is there and not locked: left by a dom0 that was killed, with processes that live, or by
    /// one whose records this dom0 does not understand; with their numbers, as far as these are known. Those that are
    /// `known` to be this dom0's are not looked at.
    pub fn leftovers(&self, known: impl Fn(&DomainName) -> bool) -> Vec<(DomainName, Option<DomId>)> {
        let left = self.names().filter(|name| !known(name)).filter_map(|name| {
            let path = self.domain_path(&name);
            // Somebody may be making it just now, and would find it locked.
            let record = read_record(&path).transpose()?;
            let lock = self.lock_domain(&name, &path).ok()??;
            let mut dir = DomainDir { path, stays: true, written: RefCell::default(), _lock: lock };
            if dir.leftovers().is_ok_and(|left| left.is_empty()) {
                dir.stays = false;
                return None;
            }
            Some((name, record.ok().map(|record| record.machine.domid)))
        });
        left.collect()
    }

    /// Takes over what a dom0 before this one has left of a domain, with a record if it had come so far. None if there
    /// is nothing, or it is a `domus run`'s. Blocks for two seconds at most: see [`lock_of_the_dead`].
    ///
    /// # Errors
    /// One line: there is a record that this dom0 does not understand, or somebody has the directory who should not.
    /// All of it stays as it is.
    pub fn take_over(&self, name: &DomainName) -> Result<Option<(DomainDir, Option<Record>)>, String> {
        let path = self.domain_path(name);
        // Before it has a record it may be a `domus run`'s, which is seen when it goes on having it.
        let was_left = || {
            let record = read_record(&path).ok().flatten();
            record.is_none_or(|record| !record.foreground && is_dead(record.owner as i32))
        };
        let lock = match self.lock_domain_while(name, &path, was_left) {
            Ok(Some(lock)) => lock,
            Ok(None) => return Ok(None),
            Err(error) => {
                let record = read_record(&path)?;
                return if record.is_none_or(|record| record.foreground) {
                    Ok(None)
                } else {
                    Err(error.to_string())
                };
            }
        };
        let mut dir = DomainDir { path, stays: true, written: RefCell::default(), _lock: lock };
        let record = read_record(&dir.path)?;
        // It was begun in the foreground, and whoever began it cleans up.
        dir.stays = record.as_ref().is_some_and(|record| record.foreground);
        Ok((!dir.stays).then_some((dir, record)))
    }

    /// None if the directory was removed meanwhile.
    fn lock_domain(&self, name: &DomainName, path: &Path) -> Result<Option<Flock<File>>, RunDirError> {
        self.lock_domain_while(name, path, || false)
    }

    /// The same, which waits while `was_left` says that whoever had it is no more.
    fn lock_domain_while(
        &self,
        name: &DomainName,
        path: &Path,
        was_left: impl Fn() -> bool,
    ) -> Result<Option<Flock<File>>, RunDirError> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return at(path, Err(error)),
        };
        match lock_of_the_dead(file, was_left) {
            Ok(lock) => {
                // Whoever had it may have removed it before it let go of the lock.
                let same = |a: &fs::Metadata, b: &fs::Metadata| {
                    std::os::unix::fs::MetadataExt::ino(a) == std::os::unix::fs::MetadataExt::ino(b)
                };
                match (lock.metadata(), path.metadata()) {
                    (Ok(a), Ok(b)) if same(&a, &b) => Ok(Some(lock)),
                    _ => Ok(None),
                }
            }
            Err(_) => Err(RunDirError::NameTaken { name: name.clone(), owner: owner_of(path) }),
        }
    }
}

/// Removes every file in a domain's directory.
pub fn clear(directory: &Path) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let _ = fs::remove_file(entry.path());
    }
}

/// The control socket of a child, in a domain's directory.
pub fn control(directory: &Path, role: Role) -> PathBuf {
    directory.join(format!("{role}.sock"))
}

/// Where a child of this role may listen: one that was to take the place of another has a socket beside that one's.
pub fn controls(directory: &Path, role: Role) -> [PathBuf; 2] {
    let control = control(directory, role);
    let beside = beside(&control);
    [control, beside]
}

/// Where a process listens that is to take the place of the one at this control socket.
pub fn beside(control: &Path) -> PathBuf {
    control.with_extension("next.sock")
}

/// What is written down there: nothing before the domain has come so far.
///
/// # Errors
/// One line: it is written down in a way that this dom0 does not understand. Whoever wrote it does.
fn read_record(path: &Path) -> Result<Option<Record>, String> {
    let name = path.file_name().and_then(|name| name.to_str()?.parse().ok());
    match (fs::read(path.join("state.json")), name) {
        (Ok(json), Some(name)) => Record::read(&json, &name).map(Some).map_err(|error| error.to_string()),
        (Err(error), Some(_)) if error.kind() != io::ErrorKind::NotFound => Err(error.to_string()),
        _ => Ok(None),
    }
}

/// Who has the domain whose directory this is, for people.
fn owner_of(path: &Path) -> String {
    match read_record(path) {
        Ok(Some(record)) => format!("ID {}", record.machine.domid),
        Ok(None) => "it is being built".into(),
        Err(_) => "a dom0 of another version has it".into(),
    }
}

/// A domain's directory. Dropping it removes it.
#[derive(Debug)]
pub struct DomainDir {
    path: PathBuf,
    /// Found, not claimed: it is not removed.
    stays: bool,
    /// What this dom0 has written down last.
    written: RefCell<Vec<u8>>,
    _lock: Flock<File>,
}

impl DomainDir {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes down what the domain consists of, in one step; nothing if that is written down already.
    ///
    /// # Errors
    /// What the file system said.
    pub fn write(&self, record: &Record) -> io::Result<()> {
        let json = serde_json::to_vec(record)?;
        if *self.written.borrow() == json {
            return Ok(());
        }
        fault::point();
        let new = self.path.join("state.json.new");
        fs::write(&new, &json)?;
        fs::rename(new, self.path.join("state.json"))?;
        fault::point();
        *self.written.borrow_mut() = json;
        Ok(())
    }

    /// Gives the domain another name, in one step: it has one of them at any time.
    ///
    /// # Errors
    /// `AlreadyExists` if somebody has that name.
    pub fn rename(&mut self, name: &DomainName) -> io::Result<()> {
        let path = self.path.with_file_name(name.as_str());
        fault::point();
        renameat2(AT_FDCWD, &self.path, AT_FDCWD, &path, RenameFlags::RENAME_NOREPLACE)?;
        fault::point();
        self.path = path;
        Ok(())
    }

    /// Leaves everything as it is, for another dom0.
    pub fn leave(mut self) {
        self.stays = true;
    }

    /// The processes of a dom0 that has ended that live on.
    fn leftovers(&self) -> Result<Vec<ProcessId>, String> {
        let record = read_record(&self.path)?;
        Ok(record.map_or(Vec::new(), |record| record.known().filter(ProcessId::lives).collect()))
    }
}

impl Drop for DomainDir {
    fn drop(&mut self) {
        if !self.stays {
            clear(&self.path);
            let _ = fs::remove_dir(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::lifecycle::State;
    use crate::domain::record::{MachineRecord, ProcessRecord, Source};

    fn name(text: &str) -> DomainName {
        text.parse().unwrap()
    }

    /// A domain whose runner is this process.
    fn record(known: ProcessId) -> Record {
        let machine = MachineRecord {
            domid: DomId(4),
            started_as: name("web1"),
            memory: 64 << 20,
            vcpus: 1,
            scheduling: Default::default(),
            programs: Default::default(),
            on_hang: Default::default(),
            processes: vec![ProcessRecord { role: Role::Runner, known }],
            devices: Default::default(),
        };
        Record::new(State::Running, Source::default(), machine)
    }

    #[test]
    fn a_name_is_claimed_once_and_free_again_when_the_domain_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let claim = run.claim(&name("web1")).unwrap();
        assert!(matches!(run.claim(&name("web1")), Err(RunDirError::NameTaken { .. })));
        drop(claim);
        drop(run.claim(&name("web1")).unwrap());
        assert_eq!(fs::read_dir(dir.path().join("domains")).unwrap().count(), 0);
    }

    #[test]
    fn what_a_killed_dom0_left_is_found_while_its_processes_live_and_can_be_ended() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id() as i32;
        let path = dir.path().join("domains/web1");
        fs::create_dir(&path).unwrap();
        let record = record(ProcessId::of(Pid::from_raw(pid)).unwrap());
        fs::write(path.join("state.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(matches!(run.claim(&name("web1")), Err(RunDirError::LeftOver(_))));
        assert_eq!(run.leftovers(|_| false), [(name("web1"), Some(record.machine.domid))]);
        assert!(run.remove_leftover(&name("web1")).unwrap());
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&child.wait().unwrap()), Some(9));
        assert!(!path.exists());
        drop(run.claim(&name("web1")).unwrap());
    }

    #[test]
    fn the_lock_that_a_killed_dom0_has_left_with_a_child_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let path = dir.path().join("domains/web1");
        fs::create_dir(&path).unwrap();
        let dead =
            std::process::Command::new("true").spawn().and_then(|mut child| child.wait().map(|_| child.id()));
        let mut left = record(ProcessId::of(Pid::this()).unwrap());
        left.owner = dead.unwrap();
        fs::write(path.join("state.json"), serde_json::to_vec(&left).unwrap()).unwrap();
        let hold = |seconds| {
            let mut flock = std::process::Command::new("flock");
            let child = flock.arg(&path).args(["sleep", seconds]).spawn().unwrap();
            while Flock::lock(File::open(&path).unwrap(), FlockArg::LockSharedNonblock).is_ok() {
                std::thread::sleep(Duration::from_millis(1));
            }
            child
        };
        let mut child = hold("0.3");
        let (taken, found) = run.take_over(&name("web1")).unwrap().unwrap();
        assert_eq!(found, Some(left.clone()));
        taken.leave();
        child.wait().unwrap();
        // Somebody who lives and is no `domus run` is told of; a `domus run` is left alone.
        let mut child = hold("1");
        left.owner = std::process::id();
        fs::write(path.join("state.json"), serde_json::to_vec(&left).unwrap()).unwrap();
        assert!(run.take_over(&name("web1")).unwrap_err().contains("runs already"));
        left.foreground = true;
        fs::write(path.join("state.json"), serde_json::to_vec(&left).unwrap()).unwrap();
        assert!(run.take_over(&name("web1")).unwrap().is_none());
        child.wait().unwrap();
    }

    #[test]
    fn a_record_of_a_version_that_is_not_known_costs_nobody_anything() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let path = dir.path().join("domains/web1");
        fs::create_dir(&path).unwrap();
        for text in [r#"{"version": 77}"#, r#"{"version": 2, "own"#] {
            fs::write(path.join("state.json"), text).unwrap();
            fs::write(path.join("runner.sock"), "").unwrap();
            assert!(run.take_over(&name("web1")).is_err());
            assert!(matches!(run.claim(&name("web1")), Err(RunDirError::LeftOver(_))));
            assert_eq!(run.leftovers(|_| false), [(name("web1"), None)]);
            assert!(path.join("runner.sock").exists());
        }
        assert!(run.remove_leftover(&name("web1")).unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_reused_pid_is_never_taken_for_a_domains_process() {
        let dir = tempfile::tempdir().unwrap();
        let run = RunDir::open(dir.path()).unwrap();
        let path = dir.path().join("domains/web1");
        fs::create_dir(&path).unwrap();
        let own = ProcessId::of(Pid::this()).unwrap();
        let record = record(ProcessId { started: own.started + 1, ..own });
        fs::write(path.join("state.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        assert!(run.leftovers(|_| false).is_empty());
        drop(run.claim(&name("web1")).unwrap());
    }

    #[test]
    fn numbers_go_up_across_dom0s_and_a_second_service_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (RunDir::open(dir.path()).unwrap(), RunDir::open(dir.path()).unwrap());
        assert_eq!(
            (a.next_domid().unwrap(), b.next_domid().unwrap(), a.next_domid().unwrap()),
            (DomId(1), DomId(2), DomId(3))
        );
        let _lock = a.lock().unwrap();
        let error = b.lock().unwrap_err().to_string();
        assert!(error.contains(&format!("pid {}", std::process::id())), "{error}");
    }
}
