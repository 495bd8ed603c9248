//! The command line.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::block::{BackendCommand, Limits};
use crate::machine::Trigger;
use crate::many::Which;
use crate::network::NicSettings;
use crate::size::Size;
use crate::verbs::{Ending, Patience};

/// Creates and drives domains.
#[derive(Debug, Parser)]
#[command(name = "domus", version, disable_help_subcommand = true)]
pub struct Args {
    /// The run directory of dom0 [default: /run/domus]
    #[arg(long, value_name = "DIR", global = true)]
    pub run_dir: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// A command.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create and start a domain
    Create {
        /// Its config
        file: PathBuf,
        /// Attach to its console
        #[arg(short = 'c', long)]
        console: bool,
        /// Check the config and what it needs of the host, and create nothing
        #[arg(short = 'n', long, conflicts_with_all = ["console", "timing"])]
        dry_run: bool,
        /// Tell how long each phase of the start took; waits for the guest's first output and device, 10 s at most
        #[arg(long)]
        timing: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Run a domain in the foreground, with its console here; no service is needed
    Run {
        /// Its config
        file: PathBuf,
        /// Do not attach to its console
        #[arg(long)]
        no_console: bool,
        /// How long the guest may take to shut down when the command is ended
        #[arg(long, value_name = "SECONDS", default_value_t = 10)]
        grace: u64,
        /// Where domu-runner and the backends are [default: beside this program, then /usr/libexec/domus]
        #[arg(long, value_name = "DIR")]
        libexec_dir: Option<PathBuf>,
    },
    /// Clean up after a `run` that was killed
    #[command(hide = true)]
    RunShadow {
        /// The domain's name
        name: shared_abi::DomainName,
    },
    /// Check a config and what it needs of the host, and change nothing
    Check {
        /// The config
        file: PathBuf,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print xl's config of a domain, or libvirt's, as one of Domus, and on standard error what has no counterpart
    Import {
        /// An xl.cfg, or XML as `virsh dumpxml` writes it
        file: PathBuf,
        /// Print a JSON object with both
        #[arg(long)]
        json: bool,
    },
    /// Show what domains use and do, live
    Top(crate::top::Options),
    /// List domains
    List {
        /// Only these: names, IDs, or patterns such as 'web*'
        names: Vec<String>,
        /// Print UUIDs, and how the last machine ended, too
        #[arg(short, long)]
        verbose: bool,
        /// Print a JSON array
        #[arg(short = 'l', long, visible_alias = "long")]
        json: bool,
    },
    /// List domains by UUID, ID and name, without the host
    VmList {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Print the ID of a domain
    Domid {
        /// The domain's name
        name: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print the name of a domain
    Domname {
        /// The domain's ID
        id: u32,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Print what the host is and has
    Info {
        /// Which CPUs and how much memory each of its nodes has, too
        #[arg(short, long)]
        numa: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Attach to a domain's console; Ctrl-] leaves
    Console {
        /// The domain's name or ID
        name: String,
        /// How
        #[command(flatten)]
        options: crate::console::Options,
    },
    /// Stop a domain's vCPUs
    Pause(Which),
    /// Let a paused domain run again
    Unpause(Which),
    /// Make, look at, convert, resize and snapshot disk images
    Disk {
        /// What to do
        #[command(subcommand)]
        command: crate::disk::Command,
    },
    /// Work on a disk image behind a closed sandbox
    #[command(hide = true)]
    DiskSealed,
    /// Ask a guest to switch itself off
    Shutdown {
        /// Which domains
        #[command(flatten)]
        which: Which,
        /// How
        #[command(flatten)]
        how: Ending,
    },
    /// Ask a guest to switch itself off, and start it again then
    Reboot {
        /// Which domains
        #[command(flatten)]
        which: Which,
        /// How long it may take
        #[command(flatten)]
        patience: Patience,
    },
    /// Remove a domain at once
    Destroy(Which),
    /// Press a button of a domain's machine, give it an NMI, or reset it
    Trigger {
        /// The domain's name or ID
        name: String,
        /// What to do
        what: Trigger,
        /// The vCPU that gets the NMI; without it, all do
        vcpu: Option<u32>,
    },
    /// Write a core of a domain's machine, for gdb and crash
    DumpCore {
        /// The domain's name or ID
        name: String,
        /// A file that does not exist yet; without it, one in dom0's directory of cores
        file: Option<PathBuf>,
        /// Let the guest run meanwhile
        #[arg(short = 'L', long)]
        live: bool,
        /// Destroy the domain then
        #[arg(short = 'C', long)]
        crash: bool,
        /// Reset the machine then
        #[arg(short = 'R', long, conflicts_with = "crash")]
        reset: bool,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Send a magic SysRq key to a guest's kernel
    Sysrq {
        /// The domain's name or ID
        name: String,
        /// The key, such as h
        key: String,
    },
    /// Give a running domain another name
    Rename {
        /// The domain's name or ID
        name: String,
        /// Its new name
        to: String,
    },
    /// Have the next machine of a domain made from another config
    ConfigUpdate {
        /// The domain's name or ID
        name: String,
        /// The config
        file: PathBuf,
    },
    /// List vCPUs, where they run and may run
    VcpuList {
        /// The domain's name or ID; without it, all domains
        name: Option<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Let a vCPU run on some of the host's CPUs only
    VcpuPin {
        /// The domain's name or ID
        name: String,
        /// The vCPU's number, or all
        vcpu: String,
        /// The CPUs: 0-3, 0,2, 0-7,^4 or all
        cpus: String,
    },
    /// Change what a domain has of the CPUs beside other domains
    SchedSet {
        /// The domain's name or ID
        name: String,
        /// Its weight where CPUs are short, 1 to 10000; 100 is usual
        #[arg(short, long)]
        weight: Option<u32>,
        /// What all its processes may use together, in percent of one CPU; 0 is no cap
        #[arg(short, long, value_name = "PERCENT")]
        cap: Option<u32>,
    },
    /// List the weights and caps of domains
    SchedList {
        /// The domain's name or ID; without it, all domains
        name: Option<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Tell how long domains have been running
    Uptime {
        /// The domain's name or ID; without it, all domains
        name: Option<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Say what is amiss with a domain, why, and what to do
    Why {
        /// The domain's name or ID
        name: String,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Tell what happens to domains, as it does, until it is interrupted
    Events {
        /// Only to these: names, or patterns such as 'web*'
        names: Vec<String>,
        /// What dom0 remembers comes first
        #[arg(long)]
        since_start: bool,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// Print what dom0 and a domain's own processes have said about it
    Logs {
        /// The domain's name; it may be gone
        name: String,
        /// Print what is said from now on, too, until it is interrupted
        #[arg(short, long)]
        follow: bool,
        /// Print a JSON object a line
        #[arg(long)]
        json: bool,
    },
    /// List a domain's disks with what they have done
    BlockList {
        /// The domain's name or ID
        name: String,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Change what a disk, or all disks of a domain together, may do a second
    BlockSet {
        /// The domain's name or ID
        name: String,
        /// The disk's id; without it, all disks together
        disk: Option<String>,
        /// What is to change
        #[command(flatten)]
        limits: Limits,
    },
    /// Give a disk another size; the guest is told
    BlockResize {
        /// The domain's name or ID
        name: String,
        /// The disk's id
        disk: String,
        /// Its new size, such as 20GiB; without it, the disk is measured again
        size: Option<Size>,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// List networks, or with a domain its NICs with what they have done
    NetworkList {
        /// The domain's name or ID
        domain: Option<String>,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Define a network: a bridge with addresses for guests and a way out
    NetworkDefine {
        /// Its definition, a JSON file
        file: PathBuf,
    },
    /// Forget a network that does not run
    NetworkUndefine {
        /// The network
        network: String,
    },
    /// Start a network
    NetworkStart {
        /// The network
        network: String,
    },
    /// Stop a network that no NIC is on
    NetworkStop {
        /// The network
        network: String,
    },
    /// Stop a network even if there are NICs on it
    NetworkDestroy {
        /// The network
        network: String,
    },
    /// List the addresses that a network has lent
    NetworkLeases {
        /// The network
        network: String,
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Plug a NIC's cable in or pull it, change its limits, have its guest announce itself
    NetworkSet {
        /// The domain's name or ID
        name: String,
        /// The NIC's id
        nic: String,
        /// What is to change
        #[command(flatten)]
        settings: NicSettings,
    },
    /// Shut all guests down, those first that were started last, and destroy what still runs then
    GuestsStop {
        /// How long they may take, all together
        #[arg(long, value_name = "SECONDS", default_value_t = 60)]
        grace: u32,
        /// What becomes of them
        #[arg(long, value_enum, default_value_t = crate::guests::Action::Shutdown)]
        action: crate::guests::Action,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
    /// Exchange dom0 itself
    Dom0 {
        /// What to do
        #[command(subcommand)]
        command: crate::dom0_upgrade::Dom0Command,
    },
    /// Print a shell's completions for this command
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write this command's man pages into a directory
    #[command(hide = true)]
    Manual {
        /// The directory
        directory: PathBuf,
    },
    /// Exchange backends
    Backend {
        /// What to do
        #[command(subcommand)]
        command: BackendCommand,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn no_two_options_of_a_command_are_called_the_same() {
        Args::command().debug_assert();
    }
}
