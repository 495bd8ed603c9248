//! The Debian packages that the host needs, and their installation.
//!
//! Asks before it changes the host; on machines without an operator `--yes`, or `CI=true` in the environment, is the
//! answer. Installs from the host's own Debian sources only, and prints a line when it has to replace a newer version
//! by an older one.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result, bail};

use crate::command::{command, read, run, run_quiet, succeeds};

/// Debian package, what of it is used.
const PACKAGES: &[(&str, &str)] = &[
    ("busybox-static", "the guests' initrd"),
    ("dnsmasq-base", "addresses and names for the networks that dom0 manages"),
    ("dpdk-dev", "testpmd, which NICs are tested against and the net bench compares with"),
    ("e2fsprogs", "mke2fs makes disk images without mounting them"),
    ("fio", "the limit that the block bench compares with"),
    ("gdb", "reads the cores of machines in the tests"),
    ("iproute2", "bridges and taps"),
    ("iputils-ping", "asks the guest's NIC"),
    ("iperf3", "traffic of guests"),
    ("kmod", "depmod orders the guests' modules"),
    ("mmdebstrap", "the guests' root file system"),
    ("nbdkit", "an NBD server that disks are tested against"),
    ("nmap", "nping, with which a test guest pretends to be another"),
    ("nftables", "keeps the networks that dom0 manages apart"),
    ("passt", "the network of a NIC that names none"),
    ("qemu-system-common", "virtiofsd and qemu-storage-daemon"),
    ("qemu-system-x86", "the nested lab, and the other VMM in the tests"),
    ("qemu-utils", "qemu-img and qemu-nbd, which qcow2 and NBD disks are tested against"),
    ("socat", "with which a test guest sends any frame"),
    ("systemd", "systemd-analyze, which judges the package's units, and systemd-socket-activate"),
    ("util-linux", "setpriv ties children to their parent"),
    ("xz-utils", "unpacks kernel modules"),
];

/// Cargo subcommand, crate that holds it.
const CARGO_TOOLS: &[(&str, &str)] =
    &[("nextest", "cargo-nextest"), ("fuzz", "cargo-fuzz"), ("deb", "cargo-deb")];

/// Whether the caller has agreed beforehand to changes of the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// Ask on the terminal.
    Ask,
    /// Agreed: `--yes`, or CI.
    Given,
}

impl Consent {
    /// `--yes` or `CI=true` is consent.
    pub fn from_flag(yes: bool) -> Self {
        let ci = std::env::var("CI").is_ok_and(|value| value == "true" || value == "1");
        if yes || ci { Self::Given } else { Self::Ask }
    }
}

/// Installs the missing Debian packages.
pub fn install_packages(consent: Consent) -> Result<()> {
    let missing = missing_packages()?;
    if missing.is_empty() {
        return Ok(());
    }
    println!("These Debian packages are needed and missing:");
    for (name, purpose) in &missing {
        println!("  {name:<20} {purpose}");
    }
    agree(consent, "Install them with apt-get?")?;
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    run_quiet(&mut apt_get(&["update"]))?;
    // Without leave to remove anything: apt would rather take a newer package of the host's away than set it back.
    let mut install = vec!["install", "--yes", "--no-install-recommends", "--no-remove"];
    install.extend(&names);
    if let Err(plain) = run_quiet(&mut apt_get(&install)) {
        install_with_downgrades(&names)
            .with_context(|| format!("the plain install had failed: {plain:#}"))?;
    }
    let still: Vec<&str> = missing_packages()?.into_iter().map(|(name, _)| name).collect();
    if !still.is_empty() {
        bail!("apt-get ended well, yet these packages are not installed: {}", still.join(" "));
    }
    Ok(())
}

/// Installs the missing cargo subcommands.
pub fn install_cargo_tools(consent: Consent) -> Result<()> {
    CARGO_TOOLS.iter().try_for_each(|(subcommand, _)| install_cargo_tool(consent, subcommand))
}

/// Installs one of them if it is missing.
pub fn install_cargo_tool(consent: Consent, wanted: &str) -> Result<()> {
    for (subcommand, package) in CARGO_TOOLS.iter().filter(|(subcommand, _)| *subcommand == wanted) {
        if succeeds(&mut command("cargo", [subcommand, "--version"])) {
            continue;
        }
        agree(consent, &format!("{package} is missing. Install it with cargo?"))?;
        run(&mut command("cargo", ["install", "--locked", package]))?;
    }
    Ok(())
}

fn missing_packages() -> Result<Vec<(&'static str, &'static str)>> {
    // dpkg-query fails when it does not know one of the names, and still prints the others.
    let mut query = command("dpkg-query", ["--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
    query.args(PACKAGES.iter().map(|(name, _)| name));
    let output = query.output().context("cannot start dpkg-query: Domus' tools set up Debian hosts only")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(PACKAGES.iter().copied().filter(|(name, _)| !installed.contains(name)).collect())
}

/// Some hosts have a package from backports that conflicts with the release's own QEMU. This sets it back to the
/// release's version.
fn install_with_downgrades(names: &[&str]) -> Result<()> {
    let release = codename()?;
    let mut blockers = Vec::new();
    for line in read(&mut command(
        "dpkg-query",
        ["--show", "--showformat", "${Package} ${Version} ${db:Status-Status}\n"],
    ))?
    .lines()
    {
        let mut words = line.split(' ');
        if let (Some(name), Some(version), Some("installed")) = (words.next(), words.next(), words.next())
            && name.starts_with("qemu-")
            && version.contains("~bpo")
        {
            blockers.push(format!("{name}/{release}"));
        }
    }
    let mut install =
        vec!["install", "--yes", "--no-install-recommends", "--no-remove", "--allow-downgrades"];
    install.extend(names);
    install.extend(blockers.iter().map(String::as_str));
    println!("The plain install failed; setting back to {release}'s version: {}", blockers.join(" "));
    run_quiet(&mut apt_get(&install))
}

/// The release's code name, by which apt knows its suite.
pub fn codename() -> Result<String> {
    let text = std::fs::read_to_string("/etc/os-release").context("cannot read /etc/os-release")?;
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.map(|name| name.trim_matches('"').to_owned()).context("/etc/os-release has no VERSION_CODENAME")
}

/// `apt-get`, through sudo for a user who is not root, with no questions asked.
pub fn apt_get(args: &[&str]) -> std::process::Command {
    let mut apt =
        if is_root() { command("apt-get", args) } else { command("sudo", ["apt-get"].iter().chain(args)) };
    apt.env("DEBIAN_FRONTEND", "noninteractive").env("LC_ALL", "C");
    apt
}

/// Whether this process runs as root.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

fn agree(consent: Consent, question: &str) -> Result<()> {
    if consent == Consent::Given {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("{question} There is no terminal to ask on: run it again with --yes");
    }
    print!("{question} [Y/n] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "" | "y" | "Y" | "yes") {
        return Ok(());
    }
    bail!("not installed, so nothing was started");
}
