//! Measures a start, from `domus create` to the guest's first instruction and to its init, and the memory of the
//! processes.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use super::domain::{BOOT, Domain, Spec};
use super::traces::children;
use super::{Lab, SOCKET};
use crate::images::Images;
use domus_driver::process::{Running, poll_until, tied};

/// The figure of each start is one of so many; the median is told.
const STARTS: usize = 5;

/// The beginning of a line with a figure, among the output lines of the lab's machine.
pub const FIGURE: &str = "FIGURE ";

/// Prints a line `FIGURE {"case", "ours", "unit"}` for each figure.
pub fn run(bin: &Path, images: &Images, folder: &Path) -> Result<()> {
    let lab = Lab::start(bin, images.clone(), folder)?;
    let mut first = Vec::new();
    let mut init = Vec::new();
    let mut weights = BTreeMap::new();
    for _ in 0..STARTS {
        let spec = Spec::new("measured", 2);
        let config = spec.write(&lab)?;
        let clock = monotonic_ns()?;
        let start = Instant::now();
        let domain = Domain::create_from(&lab, spec, &config)?;
        let mut console = domain.console()?;
        console.guest.wait_for("domus-guest: initrd", BOOT)?;
        init.push(start.elapsed().as_secs_f64() * 1e3);
        first.push((first_run_ns(Path::new(SOCKET), "measured")?.saturating_sub(clock)) as f64 / 1e6);
        console.guest.wait_ready(BOOT)?;
        for child in children()? {
            weights.entry(child.role).or_insert_with(Vec::new).push(private_kib(child.pid)? as f64 / 1024.0);
        }
        drop(console);
        drop(domain);
    }
    figure("create to first guest instruction, Debian 6.12", first, "ms");
    figure("create to guest's init, Debian 6.12", init, "ms");
    for (role, weight) in weights {
        figure(&format!("private memory of {role}"), weight, "MiB");
    }
    Ok(())
}

fn figure(case: &str, mut values: Vec<f64>, unit: &str) {
    values.sort_by(f64::total_cmp);
    let median = values.get(values.len() / 2).copied().unwrap_or_default();
    println!("{FIGURE}{}", json!({ "case": case, "ours": (median * 100.0).round() / 100.0, "unit": unit }));
}

/// The same figure for the mini guest, a plain ELF kernel with a disk, under a dom0 of its own. Where any /dev/kvm is.
pub fn plain(bin: &Path, folder: &Path) -> Result<()> {
    let folder = tempfile::Builder::new().prefix("bench").tempdir_in(folder)?;
    // Sockets need a short path, which the folder may not be.
    let sockets = tempfile::tempdir()?;
    let (run, file) = (sockets.path().join("run"), folder.path().join("plain.json"));
    let (kernel, disk) = (folder.path().join("kernel"), folder.path().join("disk"));
    fs::write(&kernel, mini_guest::IMAGE)?;
    fs::File::create(&disk)?.set_len(64 << 20)?;
    let config = json!({
        "name": "plain", "memory": "256MiB", "boot": { "kernel": kernel, "cmdline": "mini.test=shell" },
        "disks": [{ "id": "root", "path": disk }],
    });
    fs::write(&file, config.to_string())?;
    let log = fs::File::create(folder.path().join("dom0.log"))?;
    let mut dom0 = tied(bin.join("dom0"));
    let dom0 = dom0.arg("--run-dir").arg(&run).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
    let _dom0 = Running::start("dom0", dom0).context("cannot start dom0")?;
    let socket = run.join("dom0.sock");
    if !poll_until(Duration::from_secs(20), || UnixStream::connect(&socket).is_ok()) {
        bail!("dom0 does not listen on {}", socket.display());
    }
    let domus = |words: &[&str]| -> Result<()> {
        let mut domus = Command::new(bin.join("domus"));
        let status = domus.arg("--run-dir").arg(&run).args(words).stdout(Stdio::null()).status()?;
        if status.success() { Ok(()) } else { bail!("domus {} ended with {status}", words.join(" ")) }
    };
    let mut first = Vec::new();
    for _ in 0..4 * STARTS {
        let clock = monotonic_ns()?;
        domus(&["create", &file.display().to_string()])?;
        let mut ran = None;
        poll_until(Duration::from_secs(20), || {
            ran = first_run_ns(&socket, "plain").ok();
            ran.is_some()
        });
        let ran = ran.context("the guest has not run within 20 s")?;
        first.push(ran.saturating_sub(clock) as f64 / 1e6);
        domus(&["destroy", "plain"])?;
    }
    figure("create to first guest instruction, plain kernel", first, "ms");
    Ok(())
}

/// When the domain's first vCPU first ran, by the `Get` of the dom0 behind `socket`.
fn first_run_ns(socket: &Path, name: &str) -> Result<u64> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let call = json!({ "method": "org.domus.Dom0.Get", "parameters": { "name": name } });
    stream.write_all(format!("{call}\0").as_bytes())?;
    let mut reply = Vec::new();
    BufReader::new(stream).read_until(0, &mut reply)?;
    reply.pop();
    let reply: serde_json::Value = serde_json::from_slice(&reply)?;
    reply["parameters"]["first_run_ns"].as_u64().with_context(|| format!("dom0 answered {reply}"))
}

/// `CLOCK_MONOTONIC` in nanoseconds.
fn monotonic_ns() -> Result<u64> {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC)?;
    Ok(u64::try_from(now.num_nanoseconds())?)
}

/// KiB of private pages of a process, without the guest's RAM, which is the mapping of a memfd.
pub fn private_kib(pid: u32) -> Result<u64> {
    let mut total = 0;
    let mut guest_memory = false;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if !first.ends_with(':') {
            guest_memory = line.contains("/memfd:");
        } else if !guest_memory && (first == "Private_Clean:" || first == "Private_Dirty:") {
            total += words.next().unwrap_or_default().parse::<u64>()?;
        }
    }
    Ok(total)
}
