//! A network that runs: a bridge, a table of the packet filter, and a dnsmasq that is started again when it dies.
//!
//! ```text
//!   bridge ─▶ addresses ─▶ forwarding ─▶ packet filter ─▶ dnsmasq         start; a failure undoes what was done
//!   dnsmasq ◀─ packet filter ◀─ bridge                                    stop, in the other direction
//! ```
//!
//! What there is already of these is taken over: that is how a network goes on under the next dom0.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::User;
use shared_abi::control::AddressRange;
use shared_abi::{MacAddress, NetworkName};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use uuid::Uuid;

use crate::host::links::{Kind, Links};
use crate::host::{proc, programs};
use crate::network::managed::definition::{Forward, Network};
use crate::network::managed::error::NetworkError;
use crate::network::managed::{dnsmasq, rules};
use crate::process::keep_alive::{KeptAlive, keep_alive};
use crate::process::{HelperProgram, Process, Supervisor};

/// Within this time a dnsmasq that cannot serve ends.
const START: Duration = Duration::from_millis(300);

/// A running network.
#[derive(Debug)]
pub struct Running {
    /// What it is.
    pub network: Rc<Network>,
    /// Keeps dnsmasq alive; owns it.
    task: JoinHandle<()>,
    dir: PathBuf,
}

impl Running {
    /// Starts a network whose running state is kept in `dir`.
    ///
    /// # Errors
    /// [`NetworkError`]; what was made is removed.
    pub async fn start(
        network: Rc<Network>,
        dir: PathBuf,
        supervisor: Rc<dyn Supervisor>,
    ) -> Result<Self, NetworkError> {
        let links = Links::open().map_err(|error| network.io("open rtnetlink", error))?;
        let result = set_up(&network, &dir, &links, &supervisor).await;
        match result {
            Ok(process) => {
                let mut kept = Dnsmasq { network: network.clone(), dir: dir.clone(), supervisor };
                let task = async move { keep_alive(&mut kept, Some(process)).await };
                Ok(Self { network, task: tokio::task::spawn_local(task), dir })
            }
            Err(error) => {
                remove(&network.name, &network.bridge, &dir, &links).await;
                Err(error)
            }
        }
    }

    /// Removes everything of it.
    pub async fn stop(self) {
        // Dropping it kills dnsmasq; awaiting that it is dropped makes sure.
        self.task.abort();
        let _ = self.task.await;
        if let Ok(links) = Links::open() {
            remove(&self.network.name, &self.network.bridge, &self.dir, &links).await;
        }
    }

    /// Its leases.
    pub fn leases(&self) -> Vec<dnsmasq::Lease> {
        dnsmasq::leases(&fs::read_to_string(self.dir.join("leases")).unwrap_or_default())
    }
}

impl Network {
    fn io(&self, act: &str, source: impl Into<io::Error>) -> NetworkError {
        NetworkError::Io { network: self.name.clone(), act: act.into(), source: source.into() }
    }

    /// The address of its bridge: locally administered, always the same.
    fn mac(&self) -> Option<MacAddress> {
        const NETWORKS: Uuid = uuid::uuid!("6f0a7f0d-58f4-4b7a-9a53-2f1f8a0d7c11");
        let [a, b, c, d, e, g, ..] = Uuid::new_v5(&NETWORKS, self.name.as_str().as_bytes()).into_bytes();
        MacAddress::new([a & 0xfc | 0x02, b, c, d, e, g]).ok()
    }
}

async fn set_up(
    network: &Network,
    dir: &Path,
    links: &Links,
    supervisor: &Rc<dyn Supervisor>,
) -> Result<Process, NetworkError> {
    let bridge = &network.bridge;
    // Looked for before anything is made.
    let nft = programs::find("nft", "nftables")?;
    programs::find("dnsmasq", "dnsmasq-base")?;
    let left = left(network, dir, supervisor).await;
    if left.is_none() {
        proc::end(&dir.join("dnsmasq.json"));
    }
    match links.find(bridge).await.map_err(|error| network.io("look for the bridge", error))? {
        None => {
            let mac =
                network.mac().ok_or_else(|| network.io("make an address", io::ErrorKind::InvalidData))?;
            let made = links.add_bridge(bridge, mac, rules::GROUP).await;
            made.map_err(|error| network.io(&format!("make the bridge {bridge}"), error))?;
        }
        // One of ours, left by a dom0 that was killed.
        Some(link) if link.kind == Kind::Bridge && link.group == rules::GROUP => {}
        Some(_) => return Err(NetworkError::BridgeTaken(network.name.clone(), bridge.clone())),
    }
    let gone = || network.io("find the bridge", io::ErrorKind::NotFound);
    let found = links.find(bridge).await.map_err(|error| network.io("look for the bridge", error))?;
    let index = found.ok_or_else(gone)?.index;
    for AddressRange { address, prefix } in &network.addresses {
        match links.add_address(index, *address, *prefix).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => {
                other.map_err(|error| {
                    network.io(&format!("give {bridge} the address {address}/{prefix}"), error)
                })?;
            }
        }
    }
    if network.forward != Forward::Isolated {
        forward_packets(network)?;
    }
    filter(&nft, rules::rules(network)).await.map_err(|error| network.io("load the packet filter", error))?;
    if let Some(process) = left {
        return Ok(process);
    }
    let process = start_dnsmasq(network, dir, supervisor).await?;
    match timeout(START, process.ended()).await {
        Err(_) => Ok(process),
        Ok(how) => Err(NetworkError::Dnsmasq(network.name.clone(), how)),
    }
}

/// Lets the host pass packets on, and says so: it concerns more than this network, and stays so.
fn forward_packets(network: &Network) -> Result<(), NetworkError> {
    let switches =
        [("/proc/sys/net/ipv4/ip_forward", true), ("/proc/sys/net/ipv6/conf/all/forwarding", false)];
    for (switch, four) in switches {
        let needed = network.addresses.iter().any(|range| range.address.is_ipv4() == four);
        let on = fs::read_to_string(switch).is_ok_and(|text| text.trim() != "0");
        if needed && !on {
            fs::write(switch, "1").map_err(|error| network.io(&format!("switch {switch} on"), error))?;
            let more =
                if four { "" } else { "; if it takes its own addresses from a router, set accept_ra to 2" };
            crate::log::stderr::line(format_args!(
                "network {}: this host passes packets on from now on ({switch} is 1{more})",
                network.name
            ));
        }
    }
    Ok(())
}

/// Gives nft a text. On a thread of its own: it is waited for.
async fn filter(nft: &Path, text: String) -> io::Result<()> {
    let nft = nft.to_owned();
    let run = move || {
        let mut child = Command::new(nft)
            .args(["-f", "-"])
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(text.as_bytes())?;
        }
        let out = child.wait_with_output()?;
        if out.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&out.stderr);
        Err(io::Error::other(crate::value::text::one_line(said.lines().next().unwrap_or("nft has failed"))))
    };
    tokio::task::spawn_blocking(run).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

fn arguments(network: &Network, dir: &Path) -> Vec<String> {
    // Debian's package dnsmasq makes a user for it, dnsmasq-base does not.
    let user = if let Ok(Some(_)) = User::from_name("dnsmasq") { "dnsmasq" } else { "nobody" };
    dnsmasq::arguments(network, &dir.join("leases"), user)
}

/// The dnsmasq that a dom0 before this one has started, if it lives and does what this one would have it do.
async fn left(network: &Network, dir: &Path, supervisor: &Rc<dyn Supervisor>) -> Option<Process> {
    let known = proc::read(&dir.join("dnsmasq.json"))?;
    let mut process = Process::found(known)?;
    let cmdline = fs::read(format!("/proc/{}/cmdline", known.pid)).unwrap_or_default();
    let has = cmdline.split(|byte| *byte == 0).skip(1).filter(|word| !word.is_empty());
    if !has.eq(arguments(network, dir).iter().map(String::as_bytes)) {
        // It is ended by its record, and not by being dropped here.
        process.leave();
        return None;
    }
    supervisor.adopt(&mut process).await;
    Some(process)
}

async fn start_dnsmasq(
    network: &Network,
    dir: &Path,
    supervisor: &Rc<dyn Supervisor>,
) -> Result<Process, NetworkError> {
    let program = programs::find("dnsmasq", "dnsmasq-base")?;
    let args = arguments(network, dir);
    let whom = format!("network {}", network.name);
    let helper = HelperProgram { whom: &whom, program: &program, args: &args, gives: None, domain: None };
    let process = supervisor.start_helper(helper).await?;
    let written = proc::write(&dir.join("dnsmasq.json"), process.pid());
    written.map_err(|error| network.io("write the network's state", error))?;
    Ok(process)
}

/// dnsmasq of a network that runs. Dropped when the network stops, which kills it.
struct Dnsmasq {
    network: Rc<Network>,
    dir: PathBuf,
    supervisor: Rc<dyn Supervisor>,
}

impl KeptAlive for Dnsmasq {
    type Running = Process;
    type Error = NetworkError;
    const SAID: u32 = 1;

    async fn start(&mut self) -> Result<Process, NetworkError> {
        start_dnsmasq(&self.network, &self.dir, &self.supervisor).await
    }

    fn not_started(&mut self, _: NetworkError, _: bool) {
        // Its end has been said, and that it is started again.
    }

    async fn serve(&mut self, process: Process) -> Option<String> {
        let how = process.ended().await;
        process.reap().await;
        Some(how)
    }

    fn say_ended(&self, how: &str) {
        crate::log::stderr::line(format_args!(
            "network {}: dnsmasq {how}: it is started again",
            self.network.name
        ));
    }

    fn is_needed(&self) -> bool {
        true
    }
}

/// Removes what there is of a network. What fails is said: nobody waits for more.
pub async fn remove(name: &NetworkName, bridge: &str, dir: &Path, links: &Links) {
    proc::end(&dir.join("dnsmasq.json"));
    if let Ok(nft) = programs::find("nft", "nftables")
        && let Err(error) = filter(&nft, rules::removal(name)).await
    {
        crate::log::stderr::line(format_args!("network {name}: its packet filter stays: {error}"));
    }
    if let Ok(Some(link)) = links.find(bridge).await
        && (link.kind, link.group) == (Kind::Bridge, rules::GROUP)
        && let Err(error) = links.remove(link.index).await
    {
        crate::log::stderr::line(format_args!("network {name}: the bridge {bridge} stays: {error}"));
    }
    let _ = fs::remove_dir_all(dir);
}
