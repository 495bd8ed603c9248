//! A domain of a test: its config file, its disk, its console.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::{BRIDGE, Lab};
use crate::guest::{Guest, Ready};
use crate::images::KernelId;
use domus_driver::process::{Running, poll_until, tied};

/// A guest under emulation twice over.
pub const BOOT: Duration = Duration::from_secs(180);

/// What a test's domain is made of.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name, and the last number of its address.
    pub name: String,
    /// 2 to 254.
    pub number: u8,
    /// Which of Debian's kernels.
    pub kernel: KernelId,
    /// How many vCPUs.
    pub vcpus: u32,
    /// As the config writes it: `256MiB`.
    pub memory: String,
    /// What `/dev/vda` is.
    pub disk: Disk,
}

/// What `/dev/vda` is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Disk {
    /// A fresh copy of the test guests' image.
    Copy,
    /// The vhost-user socket of somebody else's backend.
    Socket(PathBuf),
}

impl Spec {
    /// One vCPU, 256 MiB, 6.12-cloud, a fresh disk.
    pub fn new(name: &str, number: u8) -> Self {
        Self {
            name: name.to_owned(),
            number,
            kernel: KernelId::V6_12Cloud,
            vcpus: 1,
            memory: "256MiB".to_owned(),
            disk: Disk::Copy,
        }
    }

    /// The address its NIC gets.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, self.number)
    }

    /// Where its disk's copy is.
    pub fn image(&self, lab: &Lab) -> PathBuf {
        lab.folder().join(format!("{}.ext4", self.name))
    }

    /// Makes the disk, and returns the config.
    pub fn config(&self, lab: &Lab) -> Result<Value> {
        let kernel = lab.images.kernel(self.kernel)?;
        let disk = match &self.disk {
            Disk::Copy => {
                copy_sparse(&lab.images.guest, &self.image(lab))?;
                json!({ "id": "root", "path": self.image(lab), "format": "raw" })
            }
            Disk::Socket(socket) => json!({ "id": "root", "vhost_user_socket": socket }),
        };
        Ok(json!({
            "name": self.name,
            "vcpus": self.vcpus,
            "memory": self.memory,
            "boot": {
                "kernel": kernel.vmlinuz,
                "initrd": kernel.initrd,
                "cmdline": "console=ttyS0 quiet root=/dev/vda rw panic=-1",
            },
            "disks": [disk],
            "nets": [{ "id": "eth0", "bridge": BRIDGE }],
            "on_reboot": "restart",
        }))
    }

    /// Writes the config beside the disk.
    pub fn write(&self, lab: &Lab) -> Result<PathBuf> {
        let path = lab.folder().join(format!("{}.json", self.name));
        fs::write(&path, serde_json::to_string_pretty(&self.config(lab)?)?)?;
        Ok(path)
    }
}

/// Copies a file and keeps its holes.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let status = std::process::Command::new("cp").arg("--sparse=always").arg(from).arg(to).status()?;
    if !status.success() {
        bail!("cannot copy {} to {}", from.display(), to.display());
    }
    Ok(())
}

/// A domain that has been created; destroyed when dropped.
pub struct Domain<'a> {
    lab: &'a Lab,
    /// What it was made from.
    pub spec: Spec,
}

impl<'a> Domain<'a> {
    /// `domus create`.
    pub fn create(lab: &'a Lab, spec: Spec) -> Result<Self> {
        let config = spec.write(lab)?;
        Self::create_from(lab, spec, &config)
    }

    /// `domus create` with a config that [`Spec::write`] has written.
    pub fn create_from(lab: &'a Lab, spec: Spec, config: &Path) -> Result<Self> {
        lab.domus(&["create", &config.display().to_string()])?;
        Ok(Self { lab, spec })
    }

    /// A new `domus console` on it.
    pub fn console(&self) -> Result<Console> {
        Console::attach(self.lab, &self.spec.name)
    }

    /// Creates it, attaches a console, and waits for its init; checks what it says of itself.
    pub fn boot(lab: &'a Lab, spec: Spec) -> Result<(Self, Console)> {
        let domain = Self::create(lab, spec)?;
        let mut console = domain.console()?;
        let ready = console.guest.wait_ready(BOOT).context("the first boot")?;
        domain.check_ready(&ready)?;
        Ok((domain, console))
    }

    /// Compares what the guest found with what it was given.
    pub fn check_ready(&self, ready: &Ready) -> Result<()> {
        if ready.cpus != self.spec.vcpus {
            bail!("{} processors came up, {} were asked for", ready.cpus, self.spec.vcpus);
        }
        let mib: u64 = match self.spec.memory.strip_suffix("GiB") {
            Some(gib) => gib.parse::<u64>()? * 1024,
            None => self.spec.memory.trim_end_matches("MiB").parse()?,
        };
        // The kernel keeps its own image and the page structs to itself.
        let found = ready.memory_kib / 1024;
        if found > mib || found * 100 < mib * 70 {
            bail!("the guest found {found} MiB of its {mib}");
        }
        let version = self.spec.kernel.name().split('-').next().unwrap_or_default().to_owned() + ".";
        if !ready.kernel.starts_with(&version) {
            bail!("the guest runs kernel {}, not {version}", ready.kernel);
        }
        Ok(())
    }

    /// Waits until `domus list` knows it no more.
    pub fn wait_gone(&self) -> Result<()> {
        if poll_until(Duration::from_secs(30), || matches!(self.lab.listed(&self.spec.name), Ok(None))) {
            return Ok(());
        }
        bail!("30 s after its end the domain is still listed: {:?}", self.lab.listed(&self.spec.name)?);
    }
}

impl Drop for Domain<'_> {
    fn drop(&mut self) {
        if !matches!(self.lab.listed(&self.spec.name), Ok(None)) {
            let _ = self.lab.domus_output(&["destroy", &self.spec.name]);
        }
        let _ = fs::remove_file(self.spec.image(self.lab));
    }
}

/// A `domus console` and the guest behind it.
pub struct Console {
    /// The guest.
    pub guest: Guest,
    /// The command.
    pub process: Running,
}

impl Console {
    /// Starts `domus console NAME` with pipes for its terminal.
    pub fn attach(lab: &Lab, name: &str) -> Result<Self> {
        let log = fs::File::create(lab.folder().join(format!("{name}.console.log")))?;
        let mut command = tied(lab.bin.join("domus"));
        command.args(["console", name]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut process = Running::start("domus console", &mut command)?;
        let output = process.child().stdout.take().context("no pipe")?;
        let input = process.child().stdin.take().context("no pipe")?;
        Ok(Self { guest: Guest::new(output, input), process })
    }
}
