//! Cores of a domain's machine: the runner writes them into a file that dom0 has opened.
//!
//! dom0 never sees the guest's memory, the runner never a path. A file that is there is never written to, one that could not
//! be written as a whole is removed.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use shared_abi::DomainName;
use shared_abi::control::{RunnerReply, RunnerRequest};

use crate::domain::Domain;
use crate::domain::lifecycle::Event;
use crate::process::link::ANSWER;

/// Bytes a second that the slowest disk is thought to take.
const SLOWEST: u64 = 16 << 20;

/// What becomes of the machine when its core is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    GoOn,
    /// The domain is destroyed.
    Destroy,
    /// It is reset, as if the guest had done so.
    Reset,
}

/// A core to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// The file; none for one in the directory of cores.
    pub file: Option<PathBuf>,
    /// The vCPUs run on meanwhile.
    pub live: bool,
    /// What comes then.
    pub then: Then,
}

impl Domain {
    /// Writes a core; returns where it is.
    ///
    /// # Errors
    /// One line.
    pub async fn dump(&mut self, dump: Dump) -> Result<PathBuf, String> {
        self.has_machine("dump its core")?;
        let path = self.write_core(dump.file, dump.live, dump.then == Then::Destroy).await?;
        match dump.then {
            Then::GoOn => {}
            Then::Destroy => {
                self.view.send_modify(|view| view.ended = Some("was destroyed".into()));
                self.feed(&Event::Destroy);
            }
            Then::Reset => {
                let reset = self.machine(&RunnerRequest::Reset, "reset").await;
                reset.map_err(|why| format!("the core is in {}, but {why}", path.display()))?;
            }
        }
        Ok(path)
    }

    /// Writes the core that a policy asks for, and says what has come of it.
    pub(in crate::domain) async fn dump_for_policy(&mut self) {
        match self.write_core(None, false, true).await {
            Ok(path) => self.say(&format!("its core is in {}", path.display())),
            Err(why) => self.say(&format!("no core: {why}")),
        }
    }

    async fn write_core(&mut self, file: Option<PathBuf>, live: bool, hold: bool) -> Result<PathBuf, String> {
        let path = file.unwrap_or_else(|| self.commons.cores.join(core_name(&self.config.name)));
        let fail = |error: &io::Error| {
            let cure = match error.kind() {
                io::ErrorKind::AlreadyExists => ": name another file",
                io::ErrorKind::NotFound => ": make its directory, or name another file",
                _ => "",
            };
            format!("cannot make the core {}: {error}{cure}", path.display())
        };
        if path.parent() == Some(&*self.commons.cores) {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.commons.cores);
            made.map_err(|error| fail(&error))?;
        }
        let file = make(&path).map_err(|error| fail(&error))?;
        let mut fds = Outgoing::default();
        let request = RunnerRequest::DumpCore { file: fds.add(file), live, hold };
        let patience = ANSWER + Duration::from_secs(self.config.memory / SLOWEST);
        let written = match self.talk_with(&request, fds.into_vec(), patience, "written a core").await {
            Ok(Some(RunnerReply::Done)) => return Ok(path),
            Ok(Some(other)) => format!("the runner answered with {other:?}"),
            Ok(None) => "the runner is gone".into(),
            Err(error) => chain(&error),
        };
        let _ = std::fs::remove_file(&path);
        Err(format!("{}: {written}", path.display()))
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
