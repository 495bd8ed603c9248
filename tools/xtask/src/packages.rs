//! The Debian packages that the host needs, and their installation.
//!
//! Each command installs what it needs itself ([`Need`]). The one transaction is computed first (`apt-get -s`), from
//! the host's own Debian sources. Asks before it changes the host; on machines without an operator `--yes`, or
//! `CI=true` in the environment, is the answer. What would be removed or set back to an older version is named, and
//! needs an answer of its own, typed on a terminal: `--yes` does not agree to it.

use std::collections::BTreeSet;
use std::io::{self, IsTerminal, Write};

use anyhow::{Context, Result, bail};

use crate::command::{command, read, run, run_quiet, succeeds};

/// What packages are installed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Kernels, initrds and Debian's root file system.
    Images,
    /// The test guests' root file system, which has programs of the host's.
    TestGuest,
    /// A guest of one's own on this host, with a bridge.
    Guest,
    /// The nested lab, or QEMU as the other VMM.
    Qemu,
    /// The lab's scenarios on this host.
    Lab,
    /// The block bench.
    BlockBench,
    /// The net bench.
    NetBench,
    /// The density bench.
    DensityBench,
    /// All tests: everything.
    Tests,
}

use Need::{BlockBench, DensityBench, Guest, Images, Lab, NetBench, Qemu, TestGuest};

/// Debian package, what of it is used, and by what besides the tests.
const PACKAGES: &[(&str, &str, &[Need])] = &[
    ("binutils", "objcopy makes a unified kernel image", &[TestGuest]),
    ("busybox-static", "the guests' initrd", &[Images]),
    ("bzip2", "packs a kernel", &[TestGuest]),
    ("dnsmasq-base", "addresses and names for the networks that dom0 manages", &[Lab]),
    ("dpdk-dev", "testpmd, which NICs are tested against and the net bench compares with", &[NetBench]),
    ("e2fsprogs", "mke2fs makes disk images without mounting them", &[Images]),
    ("fio", "the limit that the block bench compares with", &[BlockBench]),
    ("gdb", "reads the cores of machines in the tests", &[]),
    ("iproute2", "bridges and taps", &[Guest, Lab, NetBench, DensityBench]),
    ("iputils-ping", "asks the guest's NIC", &[Guest, Lab]),
    ("iperf3", "traffic of guests", &[TestGuest, Lab]),
    ("kmod", "depmod orders the guests' modules", &[Images]),
    ("lz4", "packs a kernel", &[TestGuest]),
    ("lzop", "packs a kernel", &[TestGuest]),
    ("mmdebstrap", "the guests' root file system", &[Images]),
    ("nbdkit", "an NBD server that disks are tested against", &[Lab]),
    ("nmap", "nping, with which a test guest pretends to be another", &[TestGuest]),
    ("nftables", "keeps the networks that dom0 manages apart", &[Lab]),
    ("passt", "the network of a NIC that names none", &[Lab]),
    ("qemu-system-common", "virtiofsd and qemu-storage-daemon", &[Lab, BlockBench]),
    ("qemu-system-x86", "the nested lab, and the other VMM in the tests", &[Qemu]),
    ("qemu-utils", "qemu-img and qemu-nbd, which qcow2 and NBD disks are tested against", &[Lab]),
    ("socat", "with which a test guest sends any frame", &[TestGuest]),
    ("systemd-boot-efi", "the stub of a unified kernel image", &[TestGuest]),
    ("systemd", "systemd-analyze, which judges the package's units, and systemd-socket-activate", &[]),
    (
        "util-linux",
        "setpriv ties children to their parent",
        &[Guest, Qemu, Lab, BlockBench, NetBench, DensityBench],
    ),
    ("xz-utils", "unpacks kernel modules", &[Images]),
    ("zstd", "unpacks a kernel, and packs it", &[TestGuest]),
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

/// Installs the Debian packages that are missing for these.
pub fn install_packages(consent: Consent, needs: &[Need]) -> Result<()> {
    let missing = missing_packages(needs)?;
    if missing.is_empty() {
        return Ok(());
    }
    println!("These Debian packages are needed and missing:");
    for (name, purpose) in &missing {
        println!("  {name:<20} {purpose}");
    }
    let names: Vec<&str> = missing.iter().map(|(name, _)| *name).collect();
    // As far as it is known before apt's lists are brought up to date, which is a change of the host.
    let before = compute(&names).map(|(_, changes)| changes).unwrap_or_default();
    before.print();
    agree(consent, "Install them with apt-get?")?;
    run_quiet(&mut apt_get(&["update"]))?;
    let (arguments, changes) = compute(&names)?;
    if changes != before {
        changes.print();
    }
    agree_to_losses(&changes, &names, io::stdin().is_terminal().then_some(&mut io::stdin().lock()))?;
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    run_quiet(&mut apt_get(&[&["install", "--yes"], &arguments[..]].concat()))?;
    let still: Vec<&str> = missing_packages(needs)?.into_iter().map(|(name, _)| name).collect();
    if !still.is_empty() {
        bail!("apt-get ended well, yet these packages are not installed: {}", still.join(" "));
    }
    Ok(())
}

/// What a transaction of apt's would change.
#[derive(Debug, Default, PartialEq, Eq)]
struct Changes {
    /// New, or newer than now.
    installed: Vec<String>,
    removed: Vec<String>,
    set_back: Vec<String>,
}

impl Changes {
    fn print(&self) {
        if !self.installed.is_empty() {
            println!("apt-get installs or upgrades {}: {}", self.installed.len(), self.installed.join(" "));
        }
    }

    /// Reads what `apt-get -s` says.
    fn of(simulated: &str) -> Self {
        let mut changes = Self::default();
        let mut set_back = false;
        for line in simulated.lines() {
            // A list's lines are indented.
            if line.starts_with("  ") {
                if set_back {
                    changes.set_back.extend(line.split_whitespace().map(str::to_owned));
                }
                continue;
            }
            set_back = line.contains("will be DOWNGRADED");
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("Inst"), Some(name)) => changes.installed.push(name.to_owned()),
                (Some("Remv" | "Purg"), Some(name)) => changes.removed.push(name.to_owned()),
                _ => {}
            }
        }
        changes.installed.retain(|name| !changes.set_back.contains(name));
        changes
    }
}

/// The first transaction that apt can make, and what it would change: one that takes nothing away; one that sets QEMU's
/// backports back to the release's version; one that removes what is in the way.
fn compute(names: &[&str]) -> Result<(Vec<String>, Changes)> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    let plain = [words(&["--no-install-recommends"]), words(names)].concat();
    let without = |more: &[&str], rest: &[String]| [words(more), rest.to_vec()].concat();
    let back = [without(&["--no-remove", "--allow-downgrades"], &plain), backports()?].concat();
    let mut first = None;
    for arguments in [without(&["--no-remove"], &plain), back, plain] {
        // Whoever may look at the host's packages may ask.
        let mut asked = command("apt-get", ["-s", "install"]);
        match read(asked.args(&arguments).env("LC_ALL", "C")) {
            Ok(simulated) => return Ok((arguments, Changes::of(&simulated))),
            Err(error) => first = first.or(Some(error)),
        }
    }
    Err(first.unwrap_or_else(|| anyhow::anyhow!("apt-get was not asked")))
        .context("apt-get knows no way to install them")
}

/// Has somebody agree to what would be taken away: with `--yes` too, and never without being asked.
fn agree_to_losses(changes: &Changes, names: &[&str], terminal: Option<&mut impl io::BufRead>) -> Result<()> {
    let lists = [("remove", &changes.removed), ("set back to an older version", &changes.set_back)];
    let losses: Vec<String> = lists
        .into_iter()
        .filter(|(_, packages)| !packages.is_empty())
        .map(|(what, packages)| format!("{what}: {}", packages.join(" ")))
        .collect();
    if losses.is_empty() {
        return Ok(());
    }
    let losses = losses.join("; ");
    let Some(terminal) = terminal else {
        bail!(
            "to install {} apt-get would {losses}; --yes does not agree to that: run it again on a terminal and answer, or \
             install them by hand",
            names.join(" ")
        );
    };
    print!("To install these, apt-get would {losses}. Agreed? Only \"yes\" is: ");
    io::stdout().flush()?;
    let mut answer = String::new();
    terminal.read_line(&mut answer)?;
    if answer.trim() == "yes" {
        return Ok(());
    }
    bail!("not agreed, so nothing was changed: apt-get would {losses}");
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

/// The packages that these need.
fn needed(needs: &[Need]) -> Vec<(&'static str, &'static str)> {
    let is_needed = |by: &[Need]| needs.contains(&Need::Tests) || by.iter().any(|need| needs.contains(need));
    PACKAGES.iter().filter(|(.., by)| is_needed(by)).map(|(name, purpose, _)| (*name, *purpose)).collect()
}

fn missing_packages(needs: &[Need]) -> Result<Vec<(&'static str, &'static str)>> {
    let needed = needed(needs);
    // dpkg-query fails when it does not know one of the names, and still prints the others.
    let mut query = command("dpkg-query", ["--show", "--showformat", "${Package} ${db:Status-Status}\n"]);
    query.args(needed.iter().map(|(name, _)| name));
    let output = query.output().context("cannot start dpkg-query: Domus' tools set up Debian hosts only")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_suffix(" installed")).collect();
    Ok(needed.into_iter().filter(|(name, _)| !installed.contains(name)).collect())
}

/// QEMU's packages from backports, which conflict with the release's own, as apt is told to set them back.
fn backports() -> Result<Vec<String>> {
    let release = codename()?;
    let format = "${Package} ${Version} ${db:Status-Status}\n";
    let known = read(&mut command("dpkg-query", ["--show", "--showformat", format]))?;
    let newer = known.lines().filter_map(|line| {
        let mut words = line.split(' ');
        let (name, version, status) = (words.next()?, words.next()?, words.next()?);
        let is = name.starts_with("qemu-") && version.contains("~bpo") && status == "installed";
        is.then(|| format!("{name}/{release}"))
    });
    Ok(newer.collect())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_command_installs_what_it_needs_and_no_more() {
        let names = |needs: &[Need]| needed(needs).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(
            names(&[Images, Guest, Qemu]),
            [
                "busybox-static",
                "e2fsprogs",
                "iproute2",
                "iputils-ping",
                "kmod",
                "mmdebstrap",
                "qemu-system-x86",
                "util-linux",
                "xz-utils"
            ]
        );
        assert_eq!(names(&[BlockBench]), ["fio", "qemu-system-common", "util-linux"]);
        assert_eq!(names(&[Need::Tests]).len(), PACKAGES.len());
        for alone in ["dpdk-dev", "gdb", "nmap", "socat", "fio"] {
            assert!(!names(&[Images, Guest, Qemu, Lab, DensityBench]).contains(&alone), "{alone}");
        }
    }

    /// As apt 2.6 writes it, with LC_ALL=C.
    const SIMULATED: &str = "\
Reading package lists...
The following additional packages will be installed:
  libslirp0 qemu-system-data
The following packages will be REMOVED:
  qemu-utils
The following NEW packages will be installed:
  libslirp0 qemu-system-data qemu-system-x86
The following packages will be DOWNGRADED:
  qemu-block-extra qemu-system-common
  qemu-system-gui
0 upgraded, 3 newly installed, 3 downgraded, 1 to remove and 5 not upgraded.
Remv qemu-utils [1:9.2.0-1~bpo12+1]
Inst qemu-system-common [1:9.2.0-1~bpo12+1] (1:7.2+dfsg-7 Debian:12/stable [amd64])
Inst libslirp0 (4.7.0-1 Debian:12/stable [amd64])
Inst qemu-system-x86 (1:7.2+dfsg-7 Debian:12/stable [amd64])
Conf libslirp0 (4.7.0-1 Debian:12/stable [amd64])
";

    #[test]
    fn what_would_be_removed_or_set_back_is_named_and_yes_does_not_agree_to_it() {
        let changes = Changes::of(SIMULATED);
        assert_eq!(changes.removed, ["qemu-utils"]);
        assert_eq!(changes.set_back, ["qemu-block-extra", "qemu-system-common", "qemu-system-gui"]);
        assert_eq!(changes.installed, ["libslirp0", "qemu-system-x86"]);
        let agreed = |answer: Option<&str>| {
            let mut answer = answer.map(str::as_bytes);
            agree_to_losses(&changes, &["qemu-system-x86"], answer.as_mut())
                .map_err(|error| error.to_string())
        };
        // No terminal: nobody has been asked, whatever was agreed to before.
        for answer in [None, Some("y\n"), Some("\n"), Some("no\n"), Some("")] {
            let refused = agreed(answer).unwrap_err();
            assert!(
                refused.contains("remove: qemu-utils; set back to an older version: qemu-block-extra"),
                "{refused}"
            );
        }
        assert!(agreed(None).unwrap_err().contains("--yes does not agree"));
        assert_eq!(agreed(Some("yes\n")), Ok(()));
        let harmless = Changes::of("Inst fio (3.33-3 Debian:12/stable [amd64])\nConf fio (3.33-3)\n");
        assert!(agree_to_losses(&harmless, &["fio"], None::<&mut &[u8]>).is_ok());
    }
}
