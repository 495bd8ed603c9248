//! Domus as a Debian package under a real systemd: units, their entries in the journal, restarts of dom0, guests that
//! start and stop with the host.
//!
//! Runs in a machine of its own whose first process is systemd. The first scenario installs the package.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::domain::{BOOT, Console, Domain, Spec};
use super::{BRIDGE, HOST, Lab};
use crate::checks;
use crate::images::Images;
use crate::link::Link;
use crate::report::Tally;
use domus_driver::process::poll_until;

/// Within this time systemd and dom0 have done what they were asked for, under emulation.
const SOON: Duration = Duration::from_secs(60);

/// A name with a `-`, which means something to systemd.
const NAME: &str = "web-1";
const INSTANCE: &str = "web\\x2d1";

/// Installs `package` and runs everything; the lines are counted.
pub fn run(package: &Path, images: &Images, folder: &Path) -> Tally {
    let mut tally = Tally::default();
    let mut lab = None;
    tally.run("package", || {
        install(package)?;
        lab = Some(Lab::installed(images.clone(), folder)?);
        Ok(())
    });
    let Some(lab) = lab else { return tally };
    tally.run("units", || units(&lab));
    tally.run("network-unit", || network(&lab));
    if let Err(error) = lab.clean() {
        println!("cannot clean up: {error:#}");
    }
    tally.run("guests-of-the-host", || guests(&lab));
    tally
}

/// Runs a program of the host's and returns what it printed; a status other than 0 is an error.
fn host(words: &[&str]) -> Result<String> {
    let (program, arguments) = words.split_first().context("no program")?;
    let output = Command::new(program).args(arguments).env("SYSTEMD_COLORS", "0").output()?;
    if !output.status.success() {
        let said = [output.stdout, output.stderr].concat();
        bail!("{} ended with {}: {}", words.join(" "), output.status, String::from_utf8_lossy(&said).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A property of a unit.
fn show(unit: &str, property: &str) -> Result<String> {
    Ok(host(&["systemctl", "show", "--value", "--property", property, unit])?.trim().to_owned())
}

/// The process of a unit.
fn pid(unit: &str) -> Result<u32> {
    show(unit, "MainPID")?.parse().with_context(|| format!("{unit} has no process"))
}

/// Waits until `what` holds.
fn wait(what: &str, holds: impl FnMut() -> bool) -> Result<()> {
    ensure!(poll_until(SOON, holds), "{} s later: not {what}", SOON.as_secs());
    Ok(())
}

/// The package alone makes a running service.
fn install(package: &Path) -> Result<()> {
    host(&["dpkg", "--install", &package.display().to_string()])?;
    for unit in ["dom0.service", "dom0.socket", "domus-guests.service"] {
        wait(&format!("{unit} is active"), || {
            show(unit, "ActiveState").is_ok_and(|state| state == "active")
        })?;
        ensure!(show(unit, "UnitFileState")? == "enabled", "{unit} is not enabled");
    }
    ensure!(host(&["stat", "--format", "%G %a", "/run/domus/dom0.sock"])?.trim() == "domus 660");
    for file in ["/usr/share/bash-completion/completions/domus", "/usr/share/domus/schema/domain.schema.json"]
    {
        ensure!(Path::new(file).exists(), "{file} is not there");
    }
    Ok(())
}

impl Lab {
    /// The service of the installed package.
    fn installed(images: Images, folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let bridge = Link::bridge(BRIDGE, HOST)?;
        Ok(Self {
            bin: PathBuf::from("/usr/bin"),
            images,
            folder: folder.to_path_buf(),
            _bridge: bridge,
            dom0: None.into(),
        })
    }
}

/// A domain's processes as systemd sees them, through the death of a backend, an upgrade, and dom0's own ends.
fn units(lab: &Lab) -> Result<()> {
    let (domain, mut console) = Domain::boot(lab, Spec::new(NAME, 2))?;
    let unit = |role: &str| format!("domus-{role}@{INSTANCE}.service");
    let slice = format!("domus-{INSTANCE}.slice");
    for role in ["runner", "block", "net", "console"] {
        ensure!(show(&unit(role), "ActiveState")? == "active", "{} is not active", unit(role));
        ensure!(show(&unit(role), "Slice")? == slice, "{} is in {}", unit(role), show(&unit(role), "Slice")?);
    }
    ensure!(show(&slice, "MemoryMax")? == (512_u64 << 20).to_string(), "MemoryMax of {slice}");
    let status = host(&["systemctl", "status", "--no-pager", "--full", &format!("domus-*@{INSTANCE}*")])?;
    ensure!(status.contains("Domus: disks of web-1"), "{status}");
    wait("listed by machinectl", || host(&["machinectl", "list"]).is_ok_and(|list| list.contains(NAME)))?;

    let block = unit("block");
    killed(&block, &block).context("a backend is killed")?;
    checks::disk(&mut console.guest).context("the disk after its backend's end")?;
    lab.domus(&["backend", "upgrade", NAME, "root"])?;
    let second = format!("domus-block@{INSTANCE}-2.service");
    ensure!(show(&second, "ActiveState")? == "active", "{second} is not active");
    wait("gone from systemd's list: the backend before the upgrade", || {
        show(&block, "ActiveState").is_ok_and(|state| state == "inactive")
    })?;
    ensure!(show(&second, "Slice")? == format!("domus-{INSTANCE}-2.slice"));

    let runner = pid(&unit("runner"))?;
    for ways in [&["domus", "dom0", "upgrade"][..], &["systemctl", "kill", "-s", "KILL", "dom0.service"]] {
        let before = pid("dom0.service")?;
        host(ways)?;
        wait("started again: dom0", || pid("dom0.service").is_ok_and(|now| now > 0 && now != before))?;
        wait("taken over: the domain", || {
            lab.listed(NAME).ok().flatten().is_some_and(|domain| domain["state"] == "running")
        })
        .with_context(|| ways.join(" "))?;
        ensure!(pid(&unit("runner"))? == runner, "the runner is another one after {}", ways.join(" "));
        checks::disk_again(&mut console.guest)
            .with_context(|| format!("the disk after {}", ways.join(" ")))?;
    }
    // The usual name is free again.
    killed(&second, &block).context("a backend that was taken over is killed")?;
    checks::disk_again(&mut console.guest).context("the disk after that")?;
    story(&second)?;

    drop(console);
    drop(domain);
    wait("gone: every unit of the domain", || {
        let units =
            ["systemctl", "list-units", "--all", "--plain", "--no-legend", "domus-*@*", "domus-*.slice"];
        host(&units).is_ok_and(|list| list.trim().is_empty())
    })?;
    wait("gone: the machine", || host(&["machinectl", "list"]).is_ok_and(|list| !list.contains(NAME)))?;
    let left: Vec<_> = fs::read_dir("/run/domus/units")?.flatten().map(|entry| entry.path()).collect();
    ensure!(left.is_empty(), "{left:?} are left");
    Ok(())
}

/// What serves a managed network is held by its unit.
fn network(lab: &Lab) -> Result<()> {
    const UNIT: &str = "domus-dnsmasq@network-lan.service";
    let file = lab.folder().join("lan.network.json");
    fs::write(&file, r#"{ "name": "lan", "addresses": [ "10.79.1.1/24" ] }"#)?;
    lab.domus(&["network-define", &file.display().to_string()])?;
    lab.domus(&["network-start", "lan"])?;
    for (property, wanted) in [
        ("ActiveState", "active"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("MemoryMax", "67108864"),
        ("TasksMax", "64"),
    ] {
        let found = show(UNIT, property)?;
        ensure!(found == wanted, "{property} of {UNIT} is {found}");
    }
    let before = pid(UNIT)?;
    let status = fs::read_to_string(format!("/proc/{before}/status"))?;
    ensure!(!status.contains("Uid:\t0\t"), "{UNIT} runs as root");
    // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW, and no way to others.
    for set in ["CapPrm", "CapBnd"] {
        ensure!(
            status.contains(&format!("{set}:\t0000000000003400")),
            "{UNIT} has other capabilities:\n{status}"
        );
    }
    killed(UNIT, UNIT).context("dnsmasq is killed")?;
    lab.domus(&["network-stop", "lan"])?;
    lab.domus(&["network-undefine", "lan"]).map(drop)
}

/// Kills a unit's process and waits for another one as `next`.
fn killed(unit: &str, next: &str) -> Result<()> {
    let before = pid(unit)?;
    ensure!(before > 1, "{unit} has no process");
    host(&["kill", "-9", &before.to_string()])?;
    wait("started again", || pid(next).is_ok_and(|now| now > 1 && now != before))
}

/// What the journal tells of a domain: what systemd has seen of a backend that was killed, and what dom0 made of it.
fn story(unit: &str) -> Result<()> {
    let told =
        || host(&["journalctl", "--no-pager", "-u", &format!("domus-*@{INSTANCE}*")]).unwrap_or_default();
    wait("told in the journal", || {
        let told = told();
        told.contains(&format!("{unit}: Main process exited, code=killed, status=9/KILL"))
            && told.matches("web-1: domus-block was killed by SIGKILL and is back").count() >= 2
            && told.contains("web-1: goes on under this dom0")
    })
    .with_context(|| told().replace('\n', " | "))
}

/// A guest that starts with the host, once, and is shut down with it.
fn guests(lab: &Lab) -> Result<()> {
    let spec = Spec::new("early", 3);
    let mut config = spec.config(lab)?;
    config["autostart"] = serde_json::json!({ "order": 5 });
    let file = "/etc/domus/domains/early.json";
    fs::write(file, config.to_string())?;
    // The run directory of a host that has just been started has no such mark.
    fs::remove_file("/run/domus/autostarted")?;
    host(&["systemctl", "restart", "dom0.service"])?;
    wait("started with the host", || {
        lab.listed("early").ok().flatten().is_some_and(|domain| domain["state"] == "running")
    })?;
    let mut console = Console::attach(lab, "early")?;
    console.guest.wait_ready(BOOT)?;
    host(&["systemctl", "stop", "domus-guests.service"])?;
    console.guest.wait_for("domus-guest: power button", SOON).context("`domus-guests.service` stops")?;
    ensure!(matches!(lab.listed("early"), Ok(None)), "it is still there");
    host(&["systemctl", "restart", "dom0.service"])?;
    wait("listening again", || lab.list().is_ok())?;
    ensure!(lab.list()?.is_empty(), "it was started once more, without a start of the host");
    Ok(fs::remove_file(file)?)
}
