//! The programs that are measured, on their CPU, killed when they are dropped.

use std::fs::File;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domus_driver::process::{Running, poll_until, tied};
use domus_startup::fds::Outgoing;
use domus_startup::memfd;
use domus_tests::mini::child::Child;
use nix::unistd::geteuid;
use shared_abi::control::{
    BackendEvent, BackendReply, Identity, NetCard, NetNic, NetRequest, NetStart, NetWire, SwitchEvent,
    SwitchRequest, SwitchStart,
};
use shared_abi::limits::NIC_STATE_LEN;
use shared_abi::{DomId, MacAddress};

use super::frames::{FIRST, SECOND};
use super::wire::Tap;
use crate::cpu::{Places, pin};

/// The user that the sealed processes become.
const UID: u32 = 1_950_000_000;

/// A backend with one or two NICs, each connected to a driver to be.
pub struct Backend {
    process: Process,
    /// The drivers' ends.
    pub sockets: Vec<UnixStream>,
}

enum Process {
    Net(Child<BackendReply, BackendEvent>),
    Switch(Child<BackendReply, SwitchEvent>),
    Testpmd(Running),
}

impl Backend {
    /// `domus-net` with a NIC on each of these taps.
    pub fn net(bin: &Path, folder: &Path, taps: &[&Tap]) -> Result<Self> {
        let mut fds = Outgoing::default();
        let (mut nics, mut sockets) = (Vec::new(), Vec::new());
        for (n, tap) in taps.iter().enumerate() {
            let (card, socket) = card(n, &mut fds)?;
            sockets.push(socket);
            let queues = vec![fds.add(tap.clone_queue()?)];
            nics.push(NetNic { card, wire: NetWire::Tap { queues, steering: None } });
        }
        let identity = Identity { domain: "bench".parse()?, domid: DomId(1), uid: uid() };
        let start = NetRequest::Start(NetStart { identity, nics });
        let (child, answer) = Child::start(bin, "domus-net", folder, &start, fds)?;
        ready(&answer)?;
        Ok(Self { process: Process::Net(child), sockets })
    }

    /// `domus-switch` with two ports.
    pub fn switch(bin: &Path, folder: &Path) -> Result<Self> {
        let start = SwitchRequest::Start(SwitchStart { name: "bench".parse()?, uid: uid() });
        let (mut child, answer) = Child::start(bin, "domus-switch", folder, &start, Outgoing::default())?;
        ready(&answer)?;
        let mut sockets = Vec::new();
        for n in 0..2 {
            let mut fds = Outgoing::default();
            let (card, socket) = card(n, &mut fds)?;
            child.ask(&SwitchRequest::Plug { domain: format!("bench{n}").parse()?, card }, fds)?;
            sockets.push(socket);
        }
        Ok(Self { process: Process::Switch(child), sockets })
    }

    /// testpmd between a vhost-user port and a tap that it makes, or between two vhost-user ports.
    pub fn testpmd(folder: &Path, places: Places, tap: Option<&str>) -> Result<Self> {
        let ports = if tap.is_some() { 1 } else { 2 };
        let paths: Vec<_> = (0..ports).map(|n| folder.join(format!("vhost{n}.sock"))).collect();
        // What the one before has left.
        paths.iter().for_each(|path| drop(std::fs::remove_file(path)));
        let log = folder.join("testpmd.log");
        let output = File::create(&log)?;
        let mut command = tied("dpdk-testpmd");
        command.args(words(places, tap)).current_dir(folder);
        command.stdin(Stdio::piped()).stdout(output.try_clone()?).stderr(output);
        let mut process = Running::start("dpdk-testpmd", &mut command).context("install dpdk-dev")?;
        // A path is there before anybody listens on it.
        let mut sockets = Vec::new();
        poll_until(Duration::from_secs(20), || {
            let connected = paths.iter().map(UnixStream::connect).collect::<Result<Vec<_>, _>>();
            sockets = connected.unwrap_or_default();
            !sockets.is_empty() || !matches!(process.ended(), Ok(None))
        });
        if sockets.is_empty() {
            let text = std::fs::read_to_string(&log)?;
            let end = process.ended()?.map(|status| status.to_string()).unwrap_or_default();
            bail!("it does not listen: {end} {}", text.lines().rev().take(3).collect::<Vec<_>>().join(" / "));
        }
        Ok(Self { process: Process::Testpmd(process), sockets })
    }

    /// Its process.
    pub fn pid(&mut self) -> u32 {
        match &mut self.process {
            Process::Net(child) => child.process().pid(),
            Process::Switch(child) => child.process().pid(),
            Process::Testpmd(process) => process.pid(),
        }
    }

    /// Ties it to one CPU. testpmd has tied its threads itself.
    pub fn pin(&mut self, cpu: usize) -> Result<()> {
        if matches!(self.process, Process::Testpmd(_)) { Ok(()) } else { pin(self.pid(), cpu) }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        if matches!(self.process, Process::Testpmd(_)) {
            // What it shares with other processes, and leaves behind when it is killed.
            let _ = std::fs::remove_dir_all(format!("/var/run/dpdk/{PREFIX}"));
            // Only if it was made for this one.
            let _ = std::fs::remove_dir("/var/run/dpdk");
        }
    }
}

/// The name of what testpmd keeps beside its work.
const PREFIX: &str = "domus-bench";

/// testpmd's words after its name, in the folder where its sockets shall be.
pub fn words(places: Places, tap: Option<&str>) -> Vec<String> {
    let (main, other) = (places.client, places.backend);
    let second = match tap {
        Some(name) => format!("net_tap0,iface={name}"),
        None => "net_vhost1,iface=vhost1.sock,queues=1".into(),
    };
    // Its main thread does nothing but wait for a line, which never comes.
    let cores = format!("-l {main},{other} --main-lcore {main}");
    format!(
        "{cores} --no-pci --no-huge -m 1024 --no-telemetry --file-prefix={PREFIX} \
         --vdev net_vhost0,iface=vhost0.sock,queues=1 --vdev {second} -- \
         --forward-mode=io --auto-start --nb-cores=1 --total-num-mbufs=65536"
    )
    .split_whitespace()
    .map(str::to_owned)
    .collect()
}

fn uid() -> u32 {
    let own = geteuid();
    if own.is_root() { UID } else { own.as_raw() }
}

/// The `n`th NIC as dom0 makes it, and the driver's end of its socket.
fn card(n: usize, fds: &mut Outgoing) -> Result<(NetCard, UnixStream)> {
    let (ours, theirs) = UnixStream::pair()?;
    let state = fds.add(memfd::sealed("state", NIC_STATE_LEN)?);
    let mac = MacAddress::new(if n == 0 { FIRST } else { SECOND })?;
    Ok((NetCard::plain(format!("eth{n}").parse()?, mac, state, fds.add(theirs)), ours))
}

fn ready(answer: &BackendReply) -> Result<()> {
    match answer {
        BackendReply::Ready => Ok(()),
        other => bail!("it answered the start with {other:?}"),
    }
}
