//! `cargo xtask demo`: a Debian guest on the terminal, with nothing prepared beforehand.
//!
//! Directly where the machine has VT-x or SVM, otherwise inside the nested lab; it says which in one line.

use std::fs;
use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use domus_tests::environment::Environment;
use domus_tests::images::{Images, KernelId};
use domus_tests::lab_vm::{LabVm, Serial};
use serde_json::json;

use crate::command::{command, run, run_quiet};
use crate::images::debian_only;
use crate::lab::{STEP_HEAD, lab_vm, tells};
use crate::packages::{Consent, Need, install_packages, is_root};
use crate::terminal::Terminal;
use crate::workspace;

/// The demo's kernel: Debian's newest for clouds.
const KERNEL: KernelId = KernelId::V6_12Cloud;

const BRIDGE: &str = "domus-demo";

/// Makes the bridge that the demo's NIC is put on, with the host's address.
const BRIDGE_UP: &str = "ip link add domus-demo type bridge && ip addr add 192.168.77.1/24 dev domus-demo && \
                         ip link set domus-demo up\n";

/// Waits for the guest's eth0 in the background and says so on the terminal.
const PING: &str = "(until ping -c 1 -W 1 192.168.77.2 >/run/domus-demo.ping 2>&1; do sleep 1; done; \
                    printf '\\r\\nhost: %s\\r\\n' \"$(grep ttl= /run/domus-demo.ping)\") &\n";

/// An hour on the terminal is a long look; a smoke run has no reason to take a tenth of it.
const TERMINAL_LIMIT: Duration = Duration::from_secs(4 * 3600);
const SMOKE_LIMIT: Duration = Duration::from_secs(600);

/// Installs, builds, makes the images, and runs the guest.
pub fn demo(consent: Consent, smoke: bool) -> Result<()> {
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    if !smoke && !terminal {
        bail!("the demo needs a terminal; `cargo xtask demo --smoke` runs and checks it without one");
    }
    let environment = Environment::detect();
    let nested: &[Need] = if environment == Environment::Hardware { &[] } else { &[Need::Qemu] };
    install_packages(consent, &[&[Need::Images, Need::Guest], nested].concat())?;
    let bin = workspace::build_binaries()?;
    let images = debian_only(KERNEL)?;
    smoke_or_terminal(environment, &images, &bin, smoke)
}

fn smoke_or_terminal(environment: Environment, images: &Images, bin: &Path, smoke: bool) -> Result<()> {
    match environment {
        Environment::Hardware => direct(images, bin, smoke),
        Environment::Paravirtual | Environment::None => {
            println!(
                "This machine cannot run ordinary guests itself ({environment}); the demo runs inside it, a little slowly."
            );
            nested(images, bin, smoke)
        }
    }
}

/// The demo's config; paths start at its folder.
fn config() -> String {
    let config = json!({
        "name": "demo",
        "vcpus": 1,
        "memory": "512MiB",
        "boot": {
            "kernel": "vmlinuz",
            "initrd": "initrd.img",
            "cmdline": "root=/dev/vda rw console=ttyS0 net.ifnames=0 mitigations=off audit=0",
        },
        "disks": [{ "id": "root", "path": "guest.ext4", "format": "raw" }],
        "nets": [{ "id": "eth0", "bridge": BRIDGE }],
    });
    format!("{config:#}\n")
}

fn nested(images: &Images, bin: &Path, smoke: bool) -> Result<()> {
    let limit = if smoke { SMOKE_LIMIT } else { TERMINAL_LIMIT };
    let vm = lab_vm(images, bin, "demo", true, false, limit)?;
    let mut step = format!("{STEP_HEAD}{}", prepare(&vm)?);
    if smoke {
        step.push_str("exec /run/bin/domus-lab smoke --bin /run/bin demo.json\n");
        let status = vm.run(&step, Serial::Lines(&mut print_line))?;
        return verdict(status);
    }
    step.push_str(PING);
    step.push_str("exec /run/bin/domus run demo.json\n");
    let terminal = Terminal::save()?;
    let status = vm.run(&step, Serial::Terminal);
    drop(terminal);
    match status? {
        0 => Ok(()),
        status => bail!("`domus run` ended with status {status}"),
    }
}

/// Writes the demo's config into the machine, which must have a second disk, and returns the shell commands that
/// prepare the rest there.
fn prepare(vm: &LabVm<'_>) -> Result<String> {
    fs::write(vm.share().join("demo.json"), config())?;
    let kernel = KERNEL.name();
    Ok(format!(
        "{BRIDGE_UP}mkdir /run/demo\ncd /run/demo\ncp /lab/demo.json .\n\
         ln -s /lab/images/vmlinuz-{kernel} vmlinuz\nln -s /lab/images/initrd-{kernel} initrd.img\n\
         ln -s /dev/nvme1n1 guest.ext4\n"
    ))
}

/// What checks the demo in a machine where the package is installed.
pub fn installed(vm: &LabVm<'_>) -> Result<String> {
    Ok(format!("{}/run/bin/domus-lab smoke --bin /usr/bin demo.json\n", prepare(vm)?))
}

fn direct(images: &Images, bin: &Path, smoke: bool) -> Result<()> {
    let folder = workspace::target().join("lab/runs/demo-direct");
    fs::create_dir_all(&folder)?;
    let kernel = images.kernel(KERNEL)?;
    for (file, name) in
        [(&kernel.vmlinuz, "vmlinuz"), (&kernel.initrd, "initrd.img"), (&images.debian, "guest.ext4")]
    {
        run_quiet(command("cp", ["--sparse=always"]).arg(file).arg(folder.join(name)))?;
    }
    let path = folder.join("demo.json");
    fs::write(&path, config())?;
    let bin = bin.display();
    let action =
        if smoke { format!("{bin}/domus-lab smoke --bin {bin}") } else { format!("{bin}/domus run") };
    let ping = if smoke { "" } else { PING };
    let script = format!(
        "{BRIDGE_UP}trap 'ip link del domus-demo; kill $! 2>/dev/null' EXIT\n{ping}{action} {}\n",
        path.display()
    );
    let mut shell =
        if is_root() { command("sh", ["-c", &script]) } else { command("sudo", ["sh", "-c", &script]) };
    run(&mut shell)
}

fn print_line(line: &str) {
    if tells(line) {
        println!("{line}");
    }
}

fn verdict(status: i32) -> Result<()> {
    match status {
        0 => Ok(()),
        _ => bail!("the demo's guest did not pass"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_demo_config_is_json_with_a_disk_and_a_nic() {
        let value: serde_json::Value = serde_json::from_str(&config()).unwrap();
        assert_eq!(value["disks"].as_array().map(Vec::len), Some(1));
        assert_eq!(value["nets"][0]["bridge"], BRIDGE);
    }
}
