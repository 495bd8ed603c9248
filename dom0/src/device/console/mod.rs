//! The serial console of a domain: its line to the runner, where consoles attach, and what its backend is told.
//!
//! The guest sees COM1, which is no PCI device: this class has a process and no [`DeviceSpec`].

pub mod config;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use domus_startup::fds::Outgoing;
use futures_util::future::FutureExt;
use shared_abi::Role;
use shared_abi::control::{BackendReply, ConsoleRequest, ConsoleStart, DeviceSpec};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::device::error::DeviceError;
use crate::device::plan::{Plan, PlannedProcess};
use crate::device::start::{Message, Start};
use crate::device::{Backend, Owner, Providers, Step};
use crate::host::files::{self, Appended, FileId, Mode};
use crate::host::slow::StorageFile;
use crate::host::sockets;
use crate::network::managed::Networks;
use crate::value::place::{ConfigError, Place};
use crate::value::text::one_line;
use crate::value::trouble::Trouble;

/// So often it is looked what the log's path leads to.
const LOOK: Duration = Duration::from_secs(10);

/// Bytes of console output kept for those who attach late.
const HISTORY: u32 = 1 << 20;

/// The socket where consoles attach, in a domain's directory. Not the one that controls `domus-console`.
pub fn socket(directory: &Path) -> PathBuf {
    directory.join("tty.sock")
}

/// What dom0 keeps of a domain's console.
#[derive(Debug)]
pub struct Console {
    /// The config file, for messages.
    file: PathBuf,
    /// The file to which all that the guest prints is appended.
    log: Option<PathBuf>,
    /// That file, open for the next process, and its length.
    open_log: RefCell<Option<(StorageFile, u64)>>,
    /// Which file the process appends to, as far as that is known.
    logged: Cell<Option<FileId>>,
    /// A look at what the log's path leads to now.
    look: RefCell<Option<Look>>,
    next_look: Cell<Option<Instant>>,
    /// What is amiss with the log's path, and with what is written there, and since when.
    troubles: RefCell<BTreeMap<Ill, (String, Instant)>>,
    /// The console's end of the serial line: tells when all of it has been read. None if only the console has it.
    serial: RefCell<Option<OwnedFd>>,
    /// The runner's end of it, until the runner has it.
    to_runner: RefCell<Option<OwnedFd>>,
    /// Where consoles attach. None if only the console has it.
    listener: RefCell<Option<UnixListener>>,
}

impl Console {
    /// A console whose output is appended to `log` of the config in `file`. What a dom0 before this one made for it is
    /// not known here.
    pub fn new(file: PathBuf, log: Option<PathBuf>) -> Self {
        Self {
            file,
            log,
            open_log: RefCell::default(),
            logged: Cell::default(),
            look: RefCell::default(),
            next_look: Cell::default(),
            troubles: RefCell::default(),
            serial: RefCell::default(),
            to_runner: RefCell::default(),
            listener: RefCell::default(),
        }
    }

    /// The file to which all that the guest prints is appended.
    pub fn log(&self) -> Option<PathBuf> {
        self.log.clone()
    }

    /// Makes what the console is given and is not there yet.
    fn make(&self, directory: &Path) -> io::Result<()> {
        if self.listener.borrow().is_none() {
            let socket = socket(directory);
            match std::fs::remove_file(&socket) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let listener = UnixListener::bind(&socket)?;
            listener.set_nonblocking(true)?;
            *self.listener.borrow_mut() = Some(listener);
        }
        let mut serial = self.serial.borrow_mut();
        if serial.is_none() {
            let (ours, theirs) = sockets::pair()?;
            *self.to_runner.borrow_mut() = Some(ours);
            *serial = Some(theirs);
        }
        Ok(())
    }

    /// True if the console has not read all that the guest has printed, as far as that can be known.
    pub fn has_unread(&self) -> bool {
        self.serial.borrow().as_ref().is_some_and(sockets::has_unread)
    }

    async fn open_log(&self, why: Mode) -> Result<Option<Appended>, ConfigError> {
        match &self.log {
            Some(log) => open_log(&self.file, log, why).await,
            None => Ok(None),
        }
    }

    /// The log, if its path leads to another file than it did: whoever rotates logs renames the one that is written to.
    /// Never waits: what a look has found is told by a later call.
    fn moved_log(&self) -> Option<(StorageFile, u64)> {
        let mut look = self.look.borrow_mut();
        let log = self.log.as_ref()?;
        let Some(found) = look.as_mut() else {
            if self.next_look.get().is_none_or(|at| at <= Instant::now()) {
                self.next_look.set(Some(Instant::now() + LOOK));
                let (file, log) = (self.file.clone(), log.clone());
                let opened = async move { open_log(&file, &log, Mode::Use).await };
                *look = Some(Look(tokio::task::spawn_local(opened)));
            }
            return None;
        };
        let found = (&mut found.0).now_or_never()?;
        *look = None;
        let Appended { file, id, length } = match found.ok()? {
            Ok(found) => found?,
            Err(error) => {
                self.is_ill(Ill::Path, Some(format!("may not be what its path leads to: {}", error.problem)));
                return None;
            }
        };
        self.is_ill(Ill::Path, None);
        let is_another = self.logged.replace(Some(id)) != Some(id);
        is_another.then_some((file, length))
    }
}

/// What of a log may be amiss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Ill {
    /// Its path.
    Path,
    /// What is written.
    Writes,
}

impl Console {
    /// Remembers what is amiss with the log, and since when.
    fn is_ill(&self, part: Ill, how: Option<String>) {
        let mut troubles = self.troubles.borrow_mut();
        let Some(how) = how else { return drop(troubles.remove(&part)) };
        troubles.entry(part).or_insert_with(|| (String::new(), Instant::now())).0 = how;
    }
}

async fn open_log(file: &Path, log: &Path, why: Mode) -> Result<Option<Appended>, ConfigError> {
    files::appended(&Place::new(file, "console.log"), log, why).await
}

/// A look that is under way. It ends with whoever wanted it.
#[derive(Debug)]
struct Look(JoinHandle<Result<Option<Appended>, ConfigError>>);

impl Drop for Look {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Backend for Console {
    fn specs(&self) -> Vec<DeviceSpec> {
        Vec::new()
    }

    fn role(&self) -> Option<Role> {
        Some(Role::Console)
    }

    fn check<'a>(&'a self, _networks: &'a Networks) -> Step<'a, ()> {
        async { Ok(self.open_log(Mode::Check).await.map(drop)?) }.boxed_local()
    }

    fn plan(&self, plan: &mut Plan) {
        plan.processes.push(PlannedProcess::own(Role::Console.program(), Vec::new()));
    }

    fn prepare<'a>(&'a self, _networks: &'a Networks) -> Step<'a, ()> {
        async { Ok(self.open_log(Mode::Use).await.map(drop)?) }.boxed_local()
    }

    fn open<'a>(&'a self, owner: &'a Owner, _from: &'a Providers) -> Step<'a, ()> {
        async move {
            let act = "make the console's socket";
            self.make(&owner.directory).map_err(|source| DeviceError::Io { act, source })?;
            // It could be opened when the domain was built; a console without it is better than none.
            let log = self.open_log(Mode::Use).await.unwrap_or_else(|error| {
                let domain = &owner.name;
                crate::log::stderr::line(format_args!("{domain}: the console is not logged: {error}"));
                self.is_ill(Ill::Path, Some(format!("could not be opened: {}", error.problem)));
                None
            });
            self.logged.set(log.as_ref().map(|log| log.id));
            *self.open_log.borrow_mut() = log.map(|log| (log.file, log.length));
            Ok(())
        }
        .boxed_local()
    }

    fn start(&self, owner: &Owner) -> io::Result<Start> {
        let mut fds = Outgoing::default();
        let (serial, listener) = (self.serial.borrow(), self.listener.borrow());
        let (Some(serial), Some(listener)) = (&*serial, &*listener) else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        let log = self.open_log.borrow_mut().take();
        let start = ConsoleStart {
            identity: owner.identity(),
            serial: fds.add(serial.try_clone()?),
            listener: fds.add(listener.try_clone()?),
            history: HISTORY,
            log: log.map(|(log, _)| fds.add(log)),
        };
        let message = Message::new(&ConsoleRequest::Start(start))?;
        let start = Start::new(message, fds.into_vec(), Vec::new());
        Ok(Start { serial: self.to_runner.borrow_mut().take(), ..start })
    }

    fn beat(&self, version: u32) -> Vec<Message> {
        match version {
            ..3 => Vec::new(),
            _ => Message::new(&ConsoleRequest::Ping).into_iter().collect(),
        }
    }

    fn beaten(&self, said: Vec<(usize, BackendReply)>) {
        for (_, reply) in said {
            if let BackendReply::Console { trouble, .. } = reply
                && self.logged.get().is_some()
            {
                self.is_ill(Ill::Writes, trouble.map(|trouble| one_line(&trouble)));
            }
        }
    }

    fn troubles(&self) -> Vec<Trouble> {
        let Some(log) = &self.log else { return Vec::new() };
        let troubles = self.troubles.borrow();
        let told = troubles.values().map(|(how, since)| Trouble {
            layer: "console".into(),
            since: Some(*since),
            cause: format!("its log {}: {how}", log.display()),
            next: "mend its storage: what the guest prints is kept again as soon as that can be done".into(),
        });
        told.collect()
    }

    fn tend(&self, version: u32) -> Option<(Message, Vec<OwnedFd>)> {
        if version < 3 {
            return None;
        }
        let (log, length) = self.moved_log()?;
        let mut fds = Outgoing::default();
        let message = Message::new(&ConsoleRequest::Log { file: fds.add(log), length }).ok()?;
        Some((message, fds.into_vec()))
    }
}
