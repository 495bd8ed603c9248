//! A Debian root file system, made by mmdebstrap from Debian's packages, for the lab's machine and the demo's guest.

use std::fs;
use std::path::Path;

use anyhow::Result;

use super::ext4;
use super::guest_root::write_program;
use super::kernels::Kernel;
use crate::command::{command, run_quiet};
use crate::packages::{codename, is_root};

/// This file: whatever changes here changes the image.
const SOURCE: &str = include_str!("debian.rs");

const PACKAGES: &str = "systemd,systemd-sysv,dbus,udev,kmod,iproute2,iputils-ping,e2fsprogs,procps,busybox-static,qemu-system-common,dmsetup,dnsmasq-base,iperf3,nftables,passt,socat,systemd-container";

const SIZE: &str = "1G";

/// First process of the lab's machine.
const LAB_INIT: &str = include_str!("outer-init.sh");

/// What systemd starts in its place, when the lab's machine is to be a whole Debian.
const LAB_STEP: &str = include_str!("outer-step.sh");

/// Started by the kernel's command line only: the same image is the demo's guest.
const LAB_SERVICE: &str = "[Unit]\nAfter=multi-user.target\n\n[Service]\nExecStart=/usr/lib/domus-lab/outer-step\n\
    StandardOutput=null\nKillMode=process\n";

/// udev loads the module before anybody else does.
const KVM: &str = "options kvm-amd nested=0\n";

const NETWORK: &str = "[Match]\nName=eth0\n\n[Network]\nAddress=192.168.77.2/24\nGateway=192.168.77.1\n";

const AUTOLOGIN: &str =
    "[Service]\nExecStart=\nExecStart=-/sbin/agetty --autologin root --noclear --keep-baud 115200 %I linux\n";

const GREETING: &str = "\nA Debian guest under Domus: disk /dev/vda, NIC eth0 at 192.168.77.2. Ctrl-] leaves, `poweroff` ends it.\n\n";

/// What the image is made of, for its hash.
pub fn recipe() -> Vec<&'static [u8]> {
    vec![SOURCE.as_bytes(), LAB_INIT.as_bytes(), LAB_STEP.as_bytes()]
}

/// Makes the image at `image` from a tree in `tree`; `kernel` is the lab machine's.
pub fn build(tree: &Path, image: &Path, kernel: &Kernel) -> Result<()> {
    println!("Making a Debian root file system (about half a minute)");
    let mode = if is_root() { "root" } else { "unshare" };
    let mut mmdebstrap = command("mmdebstrap", ["--variant=minbase", "--quiet", &format!("--mode={mode}")]);
    mmdebstrap.arg(format!("--include={PACKAGES}")).arg("--aptopt=Acquire::Languages \"none\"");
    for unused in ["doc", "man", "locale", "info", "zoneinfo"] {
        mmdebstrap.arg(format!("--dpkgopt=path-exclude=/usr/share/{unused}/*"));
    }
    run_quiet(mmdebstrap.arg(codename()?).arg(tree))?;

    let version = kernel.modules.file_name().unwrap_or_default();
    let modules = tree.join("usr/lib/modules");
    fs::create_dir_all(&modules)?;
    run_quiet(command("cp", ["--recursive"]).arg(&kernel.modules).arg(modules.join(version)))?;

    write_program(&tree.join("usr/lib/domus-lab/outer-init"), LAB_INIT)?;
    let write = |path: &str, text: &str| -> Result<()> {
        let path = tree.join(path);
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        Ok(fs::write(path, text)?)
    };
    write_program(&tree.join("usr/lib/domus-lab/outer-step"), LAB_STEP)?;
    write("etc/systemd/system/domus-lab.service", LAB_SERVICE)?;
    write("etc/modprobe.d/lab.conf", KVM)?;
    write("etc/hostname", "guest\n")?;
    write("etc/fstab", "/dev/vda / ext4 rw,relatime 0 1\n")?;
    write("etc/motd", GREETING)?;
    write("etc/systemd/network/eth0.network", NETWORK)?;
    write("etc/systemd/system/serial-getty@ttyS0.service.d/autologin.conf", AUTOLOGIN)?;
    let enable = ["systemd-networkd.service", "serial-getty@ttyS0.service"];
    run_quiet(command("systemctl", ["--root"]).arg(tree).arg("enable").args(enable))?;
    // Nothing of these is needed by a guest that is looked at for a minute, and under emulation they take seconds.
    let mask = [
        "systemd-networkd-wait-online.service",
        "systemd-udev-settle.service",
        "e2scrub_reap.service",
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "dpkg-db-backup.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
    ];
    run_quiet(command("systemctl", ["--root"]).arg(tree).arg("mask").args(mask))?;
    ext4(tree, image, SIZE)
}
