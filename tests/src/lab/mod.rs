//! The scenarios that run where ordinary guests can: a service of the lab's own, domains, and what is asked of them.

mod bad_input;
pub mod bench;
mod boot;
mod chaos;
mod commands;
mod disks;
mod domain;
mod isolation;
mod linux_boot;
mod nets;
mod sandbox;
pub mod services;
mod spoof;
mod storage_daemon;
mod traces;

use std::cell::RefCell;
use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::images::Images;
use crate::link::Link;
use crate::report::Tally;
use domus_driver::process::{Running, poll_until, tied};

pub use domain::{Disk, Domain, Spec};
pub use traces::Traces;

/// The bridge's address.
pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);

/// The bridge that the guests' NICs are put on.
pub const BRIDGE: &str = "lab0";

/// Where dom0 listens.
const SOCKET: &str = "/run/domus/dom0.sock";

/// A running dom0 and what guests need.
#[derive(Debug)]
pub struct Lab {
    bin: PathBuf,
    images: Images,
    folder: PathBuf,
    _bridge: Link,
    /// None where systemd has started it.
    dom0: RefCell<Option<Running>>,
}

type Run = Box<dyn Fn(&Lab) -> Result<()>>;

/// A scenario and its name.
pub struct Scenario {
    /// One word, as it is reported.
    pub name: String,
    run: Run,
}

impl Scenario {
    fn new(name: impl Into<String>, run: impl Fn(&Lab) -> Result<()> + 'static) -> Self {
        Self { name: name.into(), run: Box::new(run) }
    }
}

/// Every scenario, in the order they run: those that fail fastest first.
pub fn scenarios() -> Vec<Scenario> {
    let mut all = vec![Scenario::new("bad-input", bad_input::bad_input)];
    all.extend(boot::scenarios());
    all.push(Scenario::new("linux-boot", linux_boot::linux_boot));
    all.push(Scenario::new("commands", commands::commands));
    all.push(Scenario::new("console", commands::console));
    all.push(Scenario::new("sandbox", sandbox::sandbox));
    all.push(Scenario::new("two-domains", isolation::two_domains));
    all.push(Scenario::new("networks", nets::networks));
    all.push(Scenario::new("spoofing", spoof::spoofing));
    all.push(Scenario::new("storage-daemon", storage_daemon::storage_daemon));
    all.push(Scenario::new("recovery", disks::recovery));
    all.push(Scenario::new("failing-disk", disks::failing_disk));
    all.push(Scenario::new("chaos", chaos::chaos));
    all
}

/// Runs those of the scenarios that `wanted` names (all when it is empty).
pub fn run(bin: &Path, images: &Images, folder: &Path, wanted: &[String]) -> Tally {
    let mut tally = Tally::default();
    let mut lab = None;
    tally.run("service", || {
        lab = Some(Lab::start(bin, images.clone(), folder)?);
        Ok(())
    });
    let Some(lab) = lab else { return tally };
    for scenario in scenarios() {
        if wanted.is_empty() || wanted.contains(&scenario.name) {
            tally.run(&scenario.name, || {
                let before = Traces::take()?;
                (scenario.run)(&lab).and_then(|()| before.wait_until_back())
            });
            if let Err(error) = lab.clean() {
                println!("cannot clean up after {}: {error:#}", scenario.name);
            }
        }
    }
    tally
}

/// Starts a dom0, whose log goes on in `folder`, and waits until it serves.
fn dom0(bin: &Path, folder: &Path) -> Result<Running> {
    // What a dom0 that was killed has left there listens no more.
    let _ = fs::remove_file(SOCKET);
    let log = fs::File::options().create(true).append(true).open(folder.join("dom0.log"))?;
    let mut command = tied(bin.join("dom0"));
    let mut dom0 = Running::start("dom0", command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))
        .context("cannot start dom0")?;
    let listens = poll_until(Duration::from_secs(20), || {
        std::os::unix::net::UnixStream::connect(SOCKET).is_ok() || !matches!(dom0.ended(), Ok(None))
    });
    if !listens || !Path::new(SOCKET).exists() {
        let log = fs::read_to_string(folder.join("dom0.log")).unwrap_or_default();
        bail!("dom0 does not listen on {SOCKET}; it said: {}", log.trim());
    }
    Ok(dom0)
}

impl Lab {
    /// Makes the bridge and starts dom0 in the foreground, its log in `folder`.
    fn start(bin: &Path, images: Images, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        // In a new namespace it is down.
        crate::link::ip("link set lo up")?;
        let bridge = Link::bridge(BRIDGE, HOST)?;
        let _ = fs::remove_file(folder.join("dom0.log"));
        let dom0 = dom0(bin, folder)?;
        Ok(Self {
            bin: bin.to_path_buf(),
            images,
            folder: folder.to_path_buf(),
            _bridge: bridge,
            dom0: Some(dom0).into(),
        })
    }

    /// Kills dom0, and starts the next one a while later.
    pub fn restart_dom0(&self, later: Duration) -> Result<()> {
        let mut dom0 = self.dom0.borrow_mut();
        let old = dom0.as_mut().context("systemd has started dom0")?.child();
        old.kill()?;
        old.wait()?;
        std::thread::sleep(later);
        *dom0 = Some(self::dom0(&self.bin, &self.folder)?);
        Ok(())
    }

    /// Runs `domus` with these arguments, whatever comes of it.
    pub fn domus_output(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", "180"]).arg(self.bin.join("domus")).args(args).stdin(Stdio::null());
        command.output().context("cannot start domus")
    }

    /// Runs `domus` with these arguments and returns what it printed; a status other than 0 is an error.
    pub fn domus(&self, args: &[&str]) -> Result<String> {
        let output = self.domus_output(args)?;
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("domus {} ended with {}: {}", args.join(" "), output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The running domains as `domus list --json` tells them, without Domain-0.
    pub fn list(&self) -> Result<Vec<serde_json::Value>> {
        let text = self.domus(&["list", "--json"])?;
        let value: serde_json::Value =
            serde_json::from_str(&text).with_context(|| format!("domus list --json printed {text:?}"))?;
        let list =
            value.as_array().or_else(|| value.get("domains")?.as_array()).context("it is not a list")?;
        Ok(list.iter().filter(|domain| domain["name"] != "Domain-0").cloned().collect())
    }

    /// What `list` says of `name`.
    pub fn listed(&self, name: &str) -> Result<Option<serde_json::Value>> {
        Ok(self.list()?.into_iter().find(|domain| domain["name"] == name))
    }

    /// A folder of the lab's own on a real file system.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Destroys whatever a failed scenario left running, so that the next one is judged alone.
    fn clean(&self) -> Result<()> {
        for domain in self.list()? {
            if let Some(name) = domain["name"].as_str() {
                self.domus(&["destroy", name])?;
            }
        }
        Ok(())
    }
}
