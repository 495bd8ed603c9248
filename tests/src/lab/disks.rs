//! Linux on disks whose backend is killed and replaced, or whose host device fails: the guest sees pauses and no error.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Lab;
use super::domain::{Domain, Spec};
use crate::guest::Guest;
use domus_driver::process::poll_until;

const PATIENCE: Duration = Duration::from_secs(240);

/// How often the backend is killed under the guest's load.
const KILLS: usize = 6;

/// Writes files of random bytes until it is told to stop, each with its sum.
pub(super) const LOAD: &str = "mkdir -p /data/load; rm -f /tmp/stop; \
    (n=0; while ! test -e /tmp/stop; do n=$((n+1)); f=/data/load/$((n%16)); \
     dd if=/dev/urandom of=$f bs=64k count=8 conv=fsync 2>/dev/null || exit 1; md5sum $f >$f.md5 || exit 1; \
     echo $n >/tmp/rounds; done; sync; touch /tmp/stopped) >/tmp/load.log 2>&1 &";

/// The root disk's backend is killed and upgraded while the guest writes. The data is whole, and ext4 has seen no
/// error.
pub fn recovery(lab: &Lab) -> Result<()> {
    let (domain, mut console) = Domain::boot(lab, Spec::new("phoenix", 2))?;
    let name = domain.spec.name.as_str();
    let guest = &mut console.guest;
    guest.run(LOAD, PATIENCE)?;
    let mut pid = 0;
    for kill in 0..KILLS {
        pid = backend(lab, name, pid)?;
        // Into the middle of the load, each time elsewhere.
        guest.run("n=$(cat /tmp/rounds || echo 0); while test $(cat /tmp/rounds || echo 0) = $n; do sleep 0.1; done", PATIENCE)?;
        if kill == KILLS / 2 {
            lab.domus(&["backend", "upgrade", name, "root"])?;
        } else {
            kill_process(pid)?;
        }
    }
    backend(lab, name, pid)?;
    check_load(guest)?;
    let restarts = lab.listed(name)?.context("it is gone")?["restarts"].as_u64();
    if restarts != Some(KILLS as u64 - 1) {
        bail!("{restarts:?} restarts after {} kills", KILLS - 1);
    }
    guest.start("sync; poweroff -f")?;
    domain.wait_gone()
}

/// Stops the load: what it has written is whole, and the guest's kernel has seen no error.
pub(super) fn check_load(guest: &mut Guest) -> Result<()> {
    guest.run(
        "touch /tmp/stop; while ! test -e /tmp/stopped; do sleep 0.1; done; cat /tmp/load.log",
        PATIENCE,
    )?;
    guest.run("echo 3 >/proc/sys/vm/drop_caches; cd /data/load && md5sum -c *.md5 >/dev/null", PATIENCE)?;
    let errors =
        guest.run("dmesg | grep -ciE 'I/O error|EXT4-fs error|Aborting journal' || true", PATIENCE)?;
    if errors.trim() != "0" {
        bail!("the guest's kernel has seen {} errors", errors.trim());
    }
    Ok(())
}

/// A disk on a host device that fails at times pauses the domain; the guest sees that a disk grows; a discard gives
/// space back to the host.
pub fn failing_disk(lab: &Lab) -> Result<()> {
    let faulty = Faulty::new(lab.folder())?;
    let grows = lab.folder().join("grows.qcow2");
    let text = |path: &Path| path.display().to_string();
    lab.domus(&["disk", "create", &text(&grows), "64MiB", "--format", "qcow2"])?;
    let thin = lab.folder().join("thin.img");
    fs::File::create(&thin)?.set_len(64 << 20)?;

    let spec = Spec::new("unlucky", 3);
    let mut config = spec.config(lab)?;
    let disks = config["disks"].as_array_mut().context("no disks")?;
    disks.push(json!({ "id": "faulty", "path": faulty.path(), "werror": "pause", "rerror": "pause" }));
    disks.push(json!({ "id": "grows", "path": grows, "format": "qcow2" }));
    disks.push(json!({ "id": "thin", "path": thin, "cache": "writeback" }));
    let file = lab.folder().join("unlucky.json");
    fs::write(&file, serde_json::to_string(&config)?)?;
    let domain = Domain::create_from(lab, spec, &file)?;
    let mut console = domain.console()?;
    let guest = &mut console.guest;
    guest.wait_ready(super::domain::BOOT)?;
    let name = domain.spec.name.as_str();

    faulty.becomes("error")?;
    let write = "dd if=/dev/urandom of=/tmp/r bs=4k count=64 2>/dev/null; dd if=/tmp/r of=/dev/vdb bs=4k oflag=direct 2>&1";
    let id = guest.start(write)?;
    wait_paused(lab, name)?;
    let why = lab.domus(&["why", name])?;
    if !why.contains("disk faulty: a write at byte") || !why.contains("errno 5") {
        bail!("domus why says {why:?}");
    }
    // A second up, a second down: the domain is paused and unpaused until all is written.
    faulty.becomes("flakey")?;
    lab.domus(&["unpause", name])?;
    let mut pauses = 0;
    let limit = std::time::Instant::now() + PATIENCE;
    while guest.finish(id, write, Duration::from_millis(500)).is_err() {
        if std::time::Instant::now() > limit {
            bail!("the write never ends, after {pauses} more pauses");
        }
        if paused(lab, name) {
            pauses += 1;
            lab.domus(&["unpause", name])?;
        }
    }
    faulty.becomes("linear")?;
    poll_until(Duration::from_secs(5), || !paused(lab, name) || lab.domus(&["unpause", name]).is_err());
    guest.run(
        "dd if=/dev/vdb of=/tmp/s bs=4k count=64 iflag=direct 2>/dev/null && cmp /tmp/r /tmp/s",
        PATIENCE,
    )?;

    guest.run("test $(cat /sys/block/vdc/size) = 131072", PATIENCE).context("the size before")?;
    lab.domus(&["block-resize", name, "grows", "96MiB"])?;
    guest
        .run("for i in $(seq 100); do test $(cat /sys/block/vdc/size) = 196608 && exit; sleep 0.1; done; exit 1", PATIENCE)
        .context("the guest does not see the new size")?;
    guest.run("dd if=/tmp/r of=/dev/vdc bs=4k seek=24000 count=64 oflag=direct 2>/dev/null", PATIENCE)?;

    guest.run("dd if=/dev/zero of=/dev/vdd bs=1M count=32 conv=fsync 2>/dev/null", PATIENCE)?;
    let blocks = |path: &Path| fs::metadata(path).map(|meta| std::os::unix::fs::MetadataExt::blocks(&meta));
    let full = blocks(&thin)?;
    guest.run("blkdiscard /dev/vdd && sync", PATIENCE)?;
    let (full, empty) = (full, blocks(&thin)?);
    if full < 60_000 || empty > 1000 {
        bail!("the image has {full} blocks before the discard, and {empty} after it");
    }
    guest.start("sync; poweroff -f")?;
    domain.wait_gone()?;
    fs::remove_file(grows)?;
    fs::remove_file(thin)?;
    Ok(())
}

fn block_list(lab: &Lab, name: &str) -> Result<Value> {
    serde_json::from_str(&lab.domus(&["block-list", name, "--json"])?).context("block-list --json")
}

/// The process that serves the disks, once there is one that is not `old`.
fn backend(lab: &Lab, name: &str, old: u64) -> Result<u64> {
    let mut pid = 0;
    let found = poll_until(PATIENCE, || {
        pid = block_list(lab, name).ok().and_then(|disks| disks[0]["backend_pid"].as_u64()).unwrap_or(0);
        pid != 0 && pid != old
    });
    if found { Ok(pid) } else { bail!("no backend takes the place of {old}") }
}

pub(super) fn kill_process(pid: u64) -> Result<()> {
    run("kill", &["-KILL", &pid.to_string()])
}

fn paused(lab: &Lab, name: &str) -> bool {
    lab.listed(name).ok().flatten().is_some_and(|domain| domain["state"] == "paused")
}

fn wait_paused(lab: &Lab, name: &str) -> Result<()> {
    if poll_until(PATIENCE, || paused(lab, name)) { Ok(()) } else { bail!("{name} is not paused") }
}

fn run(program: &str, args: &[&str]) -> Result<()> {
    let output =
        Command::new(program).args(args).output().with_context(|| format!("cannot run {program}"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A device-mapper device over a loop device, which can be made to fail. Removed when dropped.
struct Faulty {
    image: std::path::PathBuf,
    device: String,
}

/// Sectors of the device.
const SECTORS: u64 = 65_536;

impl Faulty {
    fn new(folder: &Path) -> Result<Self> {
        for module in ["loop", "dm-mod"] {
            run("modprobe", &[module])?;
        }
        let image = folder.join("faulty.img");
        fs::File::create(&image)?.set_len(SECTORS * 512)?;
        let output = Command::new("losetup").args(["--find", "--show"]).arg(&image).output()?;
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if device.is_empty() {
            bail!("losetup: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let faulty = Self { image, device };
        run("dmsetup", &["create", "faulty", "--noudevsync", "--table", &faulty.table("linear")])?;
        run("dmsetup", &["mknodes", "faulty"])?;
        Ok(faulty)
    }

    fn path(&self) -> &'static str {
        "/dev/mapper/faulty"
    }

    fn table(&self, target: &str) -> String {
        match target {
            "error" => format!("0 {SECTORS} error"),
            // Up for a second, down for a second.
            "flakey" => format!("0 {SECTORS} flakey {} 0 1 1", self.device),
            _ => format!("0 {SECTORS} linear {} 0", self.device),
        }
    }

    /// From now on every request of it is treated so.
    fn becomes(&self, target: &str) -> Result<()> {
        if target == "flakey" {
            run("modprobe", &["dm-flakey"])?;
        }
        run("dmsetup", &["suspend", "--noflush", "--nolockfs", "faulty"])?;
        run("dmsetup", &["load", "faulty", "--table", &self.table(target)])?;
        run("dmsetup", &["resume", "--noudevsync", "faulty"])
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        let _ = run("dmsetup", &["remove", "--force", "--noudevsync", "faulty"]);
        let _ = run("losetup", &["--detach", &self.device]);
        let _ = fs::remove_file(&self.image);
    }
}
