//! QEMU as the frontend: it boots Debian kernels with `domus-block` and `domus-net` as its vhost-user backends,
//! unmodified.
//!
//! `reconnect` kills the block backend of a running QEMU, again and again.
//!
//! QEMU's TCG needs no /dev/kvm, so these tests run on any machine. They run in a network namespace of their own and do
//! not touch the host's network.

mod reconnect;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::checks;
use crate::guest::Guest;
use crate::images::{Images, KernelId};
use crate::link::{self, Link};
use crate::report::Tally;
use domus_driver::process::{Running, poll_until, tied};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);
const BOOT: Duration = Duration::from_secs(120);

/// Runs every scenario; `bin` holds the binaries, `folder` is theirs to fill.
pub fn run(bin: &Path, images: &Images, folder: &Path) -> Tally {
    let mut tally = Tally::default();
    for kernel in [KernelId::V6_1Cloud, KernelId::V6_12Cloud] {
        tally.run(&format!("stranger-qemu-{}", kernel.name()), || {
            let folder = folder.join(kernel.name());
            fs::create_dir_all(&folder)?;
            qemu_boots(bin, images, kernel, &folder)
        });
    }
    tally.run("stranger-qemu-reconnects", || {
        let folder = folder.join("reconnect");
        fs::create_dir_all(&folder)?;
        reconnect::nothing_is_lost_when_the_disk_backend_is_killed(bin, images, &folder)
    });
    tally
}

fn qemu_boots(bin: &Path, images: &Images, kernel: KernelId, folder: &Path) -> Result<()> {
    link::ip("link set lo up")?;
    let bridge = Link::bridge("stranger", HOST)?;
    let tap = Link::tap("stranger-tap", Some(&bridge))?;
    let block = block(bin, &guest_disk(images, folder)?, "writeback", folder)?;
    let net = Backend::start(bin, "domus-net", folder, &["--tap", tap.name()])?;
    let machine = QemuMachine {
        images,
        kernel,
        block: &block.socket,
        reconnect: false,
        net: Some(&net.socket),
        folder,
    };
    {
        let (mut qemu, mut guest) = machine.boot()?;
        let ready = guest.wait_ready(BOOT)?;
        if ready.cpus != 2 {
            bail!("{} processors came up, 2 were asked for", ready.cpus);
        }
        checks::disk(&mut guest).context("disk")?;
        checks::network(&mut guest, HOST, GUEST).context("network")?;
        // QEMU resets its devices and goes on: the same two connections serve the next boot.
        guest.start("sync; reboot -f")?;
        guest.wait_ready(BOOT).context("after the reboot")?;
        checks::disk_again(&mut guest).context("disk after the reboot")?;
        guest.start("sync; poweroff -f")?;
        if qemu.wait(Duration::from_secs(60))?.is_none() {
            bail!("QEMU runs on after the guest's power-off");
        }
    }
    Ok(())
}

/// A copy of the guest's disk.
fn guest_disk(images: &Images, folder: &Path) -> Result<PathBuf> {
    let disk = folder.join("disk.ext4");
    fs::copy(&images.guest, &disk).context("cannot copy the guest's disk")?;
    Ok(disk)
}

/// `domus-block` with that disk.
fn block(bin: &Path, disk: &Path, cache: &str, folder: &Path) -> Result<Backend> {
    let disk = disk.display().to_string();
    let args = ["--blk-file", &disk, "--queues", "2", "--cache", cache];
    Backend::start(bin, "domus-block", folder, &args)
}

/// A backend that runs alone, by the vhost-user backend program conventions.
struct Backend {
    socket: PathBuf,
    _process: Running,
}

impl Backend {
    fn start(bin: &Path, name: &str, folder: &Path, args: &[&str]) -> Result<Self> {
        let socket = folder.join(format!("{name}.sock"));
        let _ = fs::remove_file(&socket);
        let log = fs::File::create(folder.join(format!("{name}.log")))?;
        let mut command = tied(bin.join(name));
        command
            .arg("--socket-path")
            .arg(&socket)
            .args(args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log);
        let mut process = Running::start(name, &mut command)?;
        let appeared =
            poll_until(Duration::from_secs(10), || socket.exists() || !matches!(process.ended(), Ok(None)));
        if !appeared || !socket.exists() {
            let log = fs::read_to_string(folder.join(format!("{name}.log"))).unwrap_or_default();
            bail!("{name} did not listen on {}; it said: {}", socket.display(), log.trim());
        }
        Ok(Self { socket, _process: process })
    }
}

struct QemuMachine<'a> {
    images: &'a Images,
    kernel: KernelId,
    block: &'a Path,
    /// QEMU connects to the disk's backend again when that has gone.
    reconnect: bool,
    net: Option<&'a Path>,
    folder: &'a Path,
}

impl QemuMachine<'_> {
    fn boot(&self) -> Result<(Running, Guest)> {
        let kernel = self.images.kernel(self.kernel)?;
        let console = self.folder.join("console.sock");
        let _ = fs::remove_file(&console);
        let mut qemu = tied("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-M", "q35,memory-backend=ram", "-smp", "2", "-m", "512"]);
        qemu.args(["-nodefaults", "-no-user-config", "-display", "none"]);
        qemu.args(["-object", "memory-backend-memfd,id=ram,size=512M,share=on"]);
        let again = if self.reconnect { ",reconnect=1" } else { "" };
        qemu.args(["-chardev", &format!("socket,id=block,path={}{again}", self.block.display())]);
        qemu.args(["-device", "vhost-user-blk-pci,chardev=block,num-queues=2"]);
        if let Some(net) = self.net {
            qemu.args(["-chardev", &format!("socket,id=net,path={}", net.display())]);
            qemu.args(["-netdev", "vhost-user,id=net,chardev=net,queues=1"]);
            // vectors=0: QEMU 7.2 without KVM dereferences a null pointer when the guest unmasks MSI-X vectors of
            // vhost-user-net.
            qemu.args(["-device", "virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,vectors=0"]);
        }
        qemu.args(["-chardev", &format!("socket,id=console,path={},server=on,wait=on", console.display())]);
        qemu.args(["-serial", "chardev:console"]);
        qemu.arg("-kernel").arg(&kernel.vmlinuz).arg("-initrd").arg(&kernel.initrd);
        qemu.args(["-append", "console=ttyS0 quiet root=/dev/vda rw panic=-1"]);
        let log = fs::File::create(self.folder.join("qemu.log"))?;
        let mut qemu =
            Running::start("QEMU", qemu.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log))?;
        let mut stream = None;
        poll_until(Duration::from_secs(10), || {
            stream = UnixStream::connect(&console).ok();
            stream.is_some() || !matches!(qemu.ended(), Ok(None))
        });
        let Some(stream) = stream else {
            let log = fs::read_to_string(self.folder.join("qemu.log")).unwrap_or_default();
            bail!("QEMU did not start: {}", log.trim());
        };
        Ok((qemu, Guest::new(stream.try_clone()?, stream)))
    }
}
