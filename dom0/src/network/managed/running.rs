//! A network that runs: a bridge, a table of the packet filter, and a dnsmasq that is started again when it dies.
//!
//! ```text
//!   bridge ─▶ addresses ─▶ forwarding ─▶ packet filter ─▶ dnsmasq         start; a failure undoes what was done
//!   dnsmasq ◀─ packet filter ◀─ bridge                                    stop, in the other direction
//! ```
//!
//! What there is already of these is taken over: that is how a network goes on under the next dom0. While it runs, what
//! others change of it is put back ([`keeper`](super::keeper)).

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use nix::sys::signal::Signal;
use shared_abi::DomId;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::host::links::Links;
use crate::host::monitor::Monitor;
use crate::host::run_dir::RunDir;
use crate::host::{proc, programs};
use crate::network::managed::definition::Network;
use crate::network::managed::dnsmasq;
use crate::network::managed::error::NetworkError;
use crate::network::managed::keeper::{Change, Fault, Faults, Keeper, SAID, Wish};
use crate::network::managed::made::{self, Made};
use crate::network::managed::pins::{self, Addresses, Asks, Pins};
use crate::process::confinement::{CAP_NET_ADMIN, CAP_NET_BIND_SERVICE, CAP_NET_RAW, Confinement};
use crate::process::identity;
use crate::process::keep_alive::{KeptAlive, keep_alive};
use crate::process::{HelperProgram, Process, Supervisor};

/// Within this time a dnsmasq that cannot serve ends.
const START: Duration = Duration::from_millis(300);

/// Within this time a dnsmasq that has been started handles signals.
const KNOWS_SIGNALS: Duration = Duration::from_millis(100);

/// A running network.
#[derive(Debug)]
pub struct Running {
    /// What it is.
    pub network: Rc<Network>,
    /// Keeps dnsmasq alive, and everything else as it was made; owns dnsmasq.
    task: RefCell<Option<JoinHandle<()>>>,
    wishes: mpsc::UnboundedSender<Wish>,
    faults: Rc<Faults>,
    dir: PathBuf,
    pins: RefCell<Pins>,
    /// dnsmasq is to read them again.
    reread: Rc<Notify>,
}

/// What networks need of the rest of dom0.
#[derive(Clone)]
pub struct Means {
    /// Starts their processes.
    pub supervisor: Rc<dyn Supervisor>,
    /// Numbers them, among domains, for a user of each.
    pub run: RunDir,
    /// Hears of changes.
    pub monitor: Monitor,
    /// Tells others what happens to them.
    pub tell: Rc<dyn Fn(Change)>,
}

impl Running {
    /// Starts a network whose running state is kept in `dir`.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made is removed.
    pub async fn start(network: Rc<Network>, dir: PathBuf, means: Means) -> Result<Self, NetworkError> {
        let links = Links::open().map_err(|error| network.io("open rtnetlink", error))?;
        let number = means
            .run
            .next_domid()
            .map_err(|error| network.io("have a user of its own", io::Error::other(error)))?;
        let (made, process) = match set_up(&network, &dir, number, &links, &means.supervisor).await {
            Ok(set_up) => set_up,
            Err(error) => {
                remove(&network, &dir, &links).await;
                return Err(error);
            }
        };
        let Means { supervisor, monitor, tell, .. } = means;
        let (faults, rebind) = (Rc::<Faults>::default(), Rc::<Notify>::default());
        let (pins, reread) = (pins(&dir), Rc::<Notify>::default());
        let (wishes, wished) = mpsc::unbounded_channel();
        let keeper = Keeper {
            network: network.clone(),
            made,
            faults: faults.clone(),
            tell: tell.clone(),
            rebind: rebind.clone(),
        };
        let mut kept = Dnsmasq {
            network: network.clone(),
            dir: dir.clone(),
            number,
            supervisor,
            faults: faults.clone(),
            tell,
            rebind,
            reread: reread.clone(),
            is_young: false,
        };
        let task = async move {
            tokio::join!(keep_alive(&mut kept, Some(process)), keeper.keep(monitor, wished));
        };
        let task = RefCell::new(Some(tokio::task::spawn_local(task)));
        Ok(Self { network, task, wishes, faults, dir, pins: RefCell::new(pins), reread })
    }

    /// Puts right what is amiss of it, now.
    ///
    /// # Errors
    /// [`NetworkError`]; it is tried again.
    pub async fn repair(&self) -> Result<(), NetworkError> {
        let (wish, answer) = oneshot::channel();
        let gone = || self.network.io("be repaired", std::io::ErrorKind::BrokenPipe);
        self.wishes.send(wish).map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }

    /// What is amiss.
    pub fn faults(&self) -> Vec<Fault> {
        self.faults.all()
    }

    /// What a guest's NIC there may call itself. dnsmasq lends it that, and nothing else.
    ///
    /// # Errors
    /// [`NetworkError`]: every address is taken.
    pub async fn pin(&self, asks: Asks<'_>) -> Result<Addresses, NetworkError> {
        let leases = self.leases().await;
        let ip = self.pins.borrow_mut().give(&self.network, asks, &leases);
        if ip.is_none() && self.network.dhcp.is_some() {
            return Err(NetworkError::Full(self.network.name.clone()));
        }
        self.write_pins()?;
        Ok(pins::addresses(&self.network, ip, self.network.mac()?))
    }

    /// Changes what NICs have been given.
    ///
    /// # Errors
    /// [`NetworkError`]: it cannot be written down.
    pub fn change_pins(&self, change: impl FnOnce(&mut Pins)) -> Result<(), NetworkError> {
        change(&mut self.pins.borrow_mut());
        self.write_pins()
    }

    fn write_pins(&self) -> Result<(), NetworkError> {
        let (file, text) = (self.dir.join(dnsmasq::NICS), self.pins.borrow().text());
        if fs::read_to_string(&file).is_ok_and(|there| there == text) {
            return Ok(());
        }
        let aside = self.dir.join(".nics");
        let readable = || fs::set_permissions(&aside, Permissions::from_mode(0o644));
        let written =
            fs::write(&aside, text).and_then(|()| readable()).and_then(|()| fs::rename(&aside, &file));
        written.map_err(|error| self.network.io("write the network's state", error))?;
        self.reread.notify_one();
        Ok(())
    }

    /// Removes everything of it.
    pub async fn stop(&self) {
        if let Some(task) = self.task.take() {
            // Dropping it kills dnsmasq; awaiting that it is dropped makes sure.
            task.abort();
            let _ = task.await;
        }
        if let Ok(links) = Links::open() {
            remove(&self.network, &self.dir, &links).await;
        }
    }

    /// Its leases. A file of dnsmasq's, which guests speak to: so much of it is read.
    pub async fn leases(&self) -> Vec<dnsmasq::Lease> {
        const MOST: u64 = 1 << 20;
        let file = self.dir.join(dnsmasq::LEASES);
        let read = move || {
            let mut text = Vec::new();
            File::open(file)?.take(MOST).read_to_end(&mut text).map(|_| text)
        };
        let text = tokio::task::spawn_blocking(read).await.ok().and_then(Result::ok).unwrap_or_default();
        dnsmasq::leases(&String::from_utf8_lossy(&text))
    }
}

/// What a dom0 before this one has given to NICs.
fn pins(dir: &Path) -> Pins {
    Pins::read(&fs::read_to_string(dir.join(dnsmasq::NICS)).unwrap_or_default())
}

async fn set_up(
    network: &Network,
    dir: &Path,
    number: DomId,
    links: &Links,
    supervisor: &Rc<dyn Supervisor>,
) -> Result<(Made, Process), NetworkError> {
    // Looked for before anything is made.
    programs::find("dnsmasq", "dnsmasq-base")?;
    let left = left(network, dir, supervisor).await;
    if left.is_none() {
        proc::end(&dir.join("dnsmasq.json")).await;
    }
    let made = made::make(network, links).await?;
    if let Some(process) = left {
        return Ok((made, process));
    }
    let process = start_dnsmasq(network, dir, number, supervisor).await?;
    match timeout(START, process.ended()).await {
        Err(_) => Ok((made, process)),
        Ok(how) => Err(NetworkError::Dnsmasq(network.name.clone(), how)),
    }
}

/// The dnsmasq that a dom0 before this one has started, if it lives and does what this one would have it do.
async fn left(network: &Network, dir: &Path, supervisor: &Rc<dyn Supervisor>) -> Option<Process> {
    let known = proc::read(&dir.join("dnsmasq.json"))?;
    let mut process = Process::found(known)?;
    let cmdline = fs::read(format!("/proc/{}/cmdline", known.pid)).unwrap_or_default();
    let has = cmdline.split(|byte| *byte == 0).skip(1).filter(|word| !word.is_empty());
    if !has.eq(dnsmasq::arguments(network, dir).iter().map(String::as_bytes)) {
        // It is ended by its record, and not by being dropped here.
        process.leave();
        return None;
    }
    supervisor.adopt(&mut process).await;
    Some(process)
}

/// Makes the files that dnsmasq reads and writes, whatever the umask: what it has lent is its own, whoever had it
/// before.
fn files_for(uid: Option<u32>, dir: &Path) -> io::Result<()> {
    let networks = dir.parent().into_iter();
    for directory in networks.chain([dir]) {
        fs::set_permissions(directory, Permissions::from_mode(0o755))?;
    }
    let open = |name| OpenOptions::new().append(true).create(true).open(dir.join(name));
    open(dnsmasq::NICS)?.set_permissions(Permissions::from_mode(0o644))?;
    let leases = open(dnsmasq::LEASES)?;
    leases.set_permissions(Permissions::from_mode(0o644))?;
    fchown(&leases, uid, uid)
}

async fn start_dnsmasq(
    network: &Network,
    dir: &Path,
    number: DomId,
    supervisor: &Rc<dyn Supervisor>,
) -> Result<Process, NetworkError> {
    let program = programs::find("dnsmasq", "dnsmasq-base")?;
    let args = dnsmasq::arguments(network, dir);
    let uid = identity::helper_uid(number);
    files_for(uid, dir).map_err(|error| network.io("write the network's state", error))?;
    let whom = format!("network {}", network.name);
    let confinement = Confinement {
        uid,
        // Ports 53, 67 and 547; an entry in the kernel's table of neighbours for a guest that has no address yet; a
        // ping before an address is lent.
        capabilities: &[CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW],
        families: &["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"],
        namespaces: 0,
        calls: &[],
        writes: Some(dir),
        memory: 64 << 20,
        // It forks for each name that it is asked for over TCP.
        tasks: 64,
    };
    let helper =
        HelperProgram { whom: &whom, program: &program, args: &args, gives: None, domain: None, confinement };
    let process = supervisor.start_helper(helper).await?;
    let written = proc::write(&dir.join("dnsmasq.json"), process.pid());
    written.map_err(|error| network.io("write the network's state", error))?;
    Ok(process)
}

/// dnsmasq of a network that runs. Dropped when the network stops, which kills it.
struct Dnsmasq {
    network: Rc<Network>,
    dir: PathBuf,
    number: DomId,
    supervisor: Rc<dyn Supervisor>,
    faults: Rc<Faults>,
    tell: Rc<dyn Fn(Change)>,
    rebind: Rc<Notify>,
    reread: Rc<Notify>,
    /// The one that is served next has just been started. The first has lived for [`START`].
    is_young: bool,
}

impl Dnsmasq {
    /// It serves again.
    fn is_right(&self) {
        let Some(fault) = self.faults.dnsmasq.take() else { return };
        (self.tell)(Change::Mended(format!(
            "network {}: {}: another one serves",
            self.network.name, fault.how
        )));
    }
}

impl KeptAlive for Dnsmasq {
    type Running = Process;
    type Error = NetworkError;
    const SAID: u32 = SAID;

    async fn start(&mut self) -> Result<Process, NetworkError> {
        start_dnsmasq(&self.network, &self.dir, self.number, &self.supervisor).await
    }

    fn not_started(&mut self, error: NetworkError, is_said: bool) {
        let why = chain(&error);
        if is_said {
            crate::log::stderr::line(format_args!("network {}: dnsmasq: {why}", self.network.name));
        }
        let fault = &mut *self.faults.dnsmasq.borrow_mut();
        fault.get_or_insert_with(|| Fault::new("dnsmasq does not run".into())).failed(why);
    }

    async fn serve(&mut self, process: Process) -> Option<String> {
        let is_young = std::mem::replace(&mut self.is_young, true);
        let reads = async {
            if is_young {
                // Before it knows the signal it would end by it.
                sleep(KNOWS_SIGNALS).await;
            }
            loop {
                self.reread.notified().await;
                process.signal(Signal::SIGHUP);
            }
        };
        let ends = async {
            tokio::select! {
                how = process.ended() => how,
                () = reads => "ended".into(),
                () = self.rebind.notified() => {
                    process.kill();
                    process.ended().await;
                    "was bound to the bridge that was removed".into()
                }
            }
        };
        let how = {
            tokio::pin!(ends);
            match timeout(START, &mut ends).await {
                Ok(how) => how,
                Err(_) => {
                    self.is_right();
                    ends.await
                }
            }
        };
        process.reap().await;
        self.faults.dnsmasq.borrow_mut().get_or_insert_with(|| Fault::new(format!("dnsmasq {how}")));
        Some(how)
    }

    fn say_ended(&self, how: &str) {
        let text = format!("network {}: dnsmasq {how}", self.network.name);
        crate::log::stderr::line(format_args!("{text}: it is started again"));
        (self.tell)(Change::Fault(text));
    }

    fn is_needed(&self) -> bool {
        true
    }
}

/// Removes what there is of a network.
pub async fn remove(network: &Network, dir: &Path, links: &Links) {
    proc::end(&dir.join("dnsmasq.json")).await;
    made::remove(network, links).await;
    let _ = fs::remove_dir_all(dir);
}
