//! The command line: the commands of [`crate::commands`], put together in the order that help lists them.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::commands::{
    backend, block, check, cleanup_process, console, cpus, create, disk, events, guests, host, import,
    lifecycle, list, logs, machine, network, run, service, shell, top, update, why,
};
use crate::output::until_unread;
use crate::selection::Selection;

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
    Create(create::CreateArgs),
    /// Run a domain in the foreground, with its console here; no service is needed
    Run(run::RunArgs),
    /// Clean up after a `run` that was killed
    #[command(hide = true)]
    RunShadow(cleanup_process::CleanupArgs),
    /// Check a config and what it needs of the host, and change nothing
    Check(check::CheckArgs),
    /// Print xl's config of a domain, or libvirt's, as one of Domus, and on standard error what has no counterpart
    Import(import::ImportArgs),
    /// Show what domains use and do, live
    Top(top::TopArgs),
    /// List domains
    List(list::ListArgs),
    /// List domains by UUID, ID and name, without the host
    VmList(list::VmListArgs),
    /// Print the ID of a domain
    Domid(list::DomidArgs),
    /// Print the name of a domain
    Domname(list::DomnameArgs),
    /// Print what the host is and has
    Info(host::InfoArgs),
    /// Attach to a domain's console; Ctrl-] leaves
    Console(console::ConsoleArgs),
    /// Stop a domain's vCPUs
    Pause(Selection),
    /// Let a paused domain run again
    Unpause(Selection),
    /// Make, look at, convert, resize and snapshot disk images
    Disk(disk::DiskArgs),
    /// Work on a disk image behind a closed sandbox
    #[command(hide = true)]
    DiskSealed,
    /// Ask a guest to switch itself off
    Shutdown(lifecycle::ShutdownArgs),
    /// Ask a guest to switch itself off, and start it again then
    Reboot(lifecycle::RebootArgs),
    /// Remove a domain at once
    Destroy(Selection),
    /// Press a button of a domain's machine, give it an NMI, or reset it
    Trigger(machine::TriggerArgs),
    /// Write a core of a domain's machine, for gdb and crash
    DumpCore(machine::DumpCoreArgs),
    /// Send a magic SysRq key to a guest's kernel
    Sysrq(machine::SysrqArgs),
    /// Give a running domain another name
    Rename(update::RenameArgs),
    /// Have the next machine of a domain made from another config
    ConfigUpdate(update::ConfigUpdateArgs),
    /// List vCPUs, where they run and may run
    VcpuList(cpus::VcpuListArgs),
    /// Let a vCPU run on some of the host's CPUs only
    VcpuPin(cpus::VcpuPinArgs),
    /// Change what a domain has of the CPUs beside other domains
    SchedSet(cpus::SchedSetArgs),
    /// List the weights and caps of domains
    SchedList(cpus::SchedListArgs),
    /// Tell how long domains have been running
    Uptime(cpus::UptimeArgs),
    /// Say what is amiss with a domain, why, and what to do
    Why(why::WhyArgs),
    /// Tell what happens to domains, as it does, until it is interrupted
    Events(events::EventsArgs),
    /// Print what dom0 and a domain's own processes have said about it
    Logs(logs::LogsArgs),
    /// List a domain's disks with what they have done
    BlockList(block::ListArgs),
    /// Change what a disk, or all disks of a domain together, may do a second
    BlockSet(block::SetArgs),
    /// Give a disk another size; the guest is told
    BlockResize(block::ResizeArgs),
    /// List networks, or with a domain its NICs with what they have done
    NetworkList(network::ListArgs),
    /// Define a network: a bridge with addresses for guests and a way out
    NetworkDefine(network::DefineArgs),
    /// Forget a network that does not run
    NetworkUndefine(network::NetworkArgs),
    /// Start a network
    NetworkStart(network::NetworkArgs),
    /// Stop a network that no NIC is on
    NetworkStop(network::NetworkArgs),
    /// Stop a network even if there are NICs on it
    NetworkDestroy(network::NetworkArgs),
    /// List the addresses that a network has lent
    NetworkLeases(network::LeasesArgs),
    /// Plug a NIC's cable in or pull it, change its limits, have its guest announce itself
    NetworkSet(network::SetArgs),
    /// Shut all guests down, those first that were started last, and destroy what still runs then
    GuestsStop(guests::GuestsStopArgs),
    /// Exchange dom0 itself
    Dom0(service::Dom0Args),
    /// Print a shell's completions for this command
    Completions(shell::CompletionsArgs),
    /// Write this command's man pages into a directory
    #[command(hide = true)]
    Manual(shell::ManualArgs),
    /// Exchange backends
    Backend(backend::BackendArgs),
}

impl Args {
    /// Does what the command line says.
    ///
    /// # Errors
    /// One line for the user.
    pub async fn run(self) -> anyhow::Result<ExitCode> {
        let dir = self.run_dir.as_deref();
        match self.command {
            Command::Create(args) => create::run(dir, args).await?,
            Command::Run(args) => return run::run(dir, args).await,
            Command::RunShadow(args) => cleanup_process::run(dir, &args)?,
            Command::Check(args) => check::run(dir, args).await?,
            Command::Import(args) => import::run(&args)?,
            Command::Top(args) => until_unread(top::run(dir, args)).await?,
            Command::List(args) => list::list(dir, args).await?,
            Command::VmList(args) => list::vm_list(dir, args).await?,
            Command::Domid(args) => list::domid(dir, args).await?,
            Command::Domname(args) => list::domname(dir, args).await?,
            Command::Info(args) => host::info(dir, args).await?,
            Command::Console(args) => until_unread(console::run(dir, args)).await?,
            Command::Pause(args) => return lifecycle::pause(dir, &args).await,
            Command::Unpause(args) => return lifecycle::unpause(dir, &args).await,
            Command::Disk(args) => disk::run(args)?,
            Command::Shutdown(args) => return lifecycle::shutdown(dir, &args).await,
            Command::Reboot(args) => return lifecycle::reboot(dir, &args).await,
            Command::Destroy(args) => return lifecycle::destroy(dir, &args).await,
            Command::Trigger(args) => machine::trigger(dir, args).await?,
            Command::DumpCore(args) => machine::dump_core(dir, args).await?,
            Command::Sysrq(args) => machine::sysrq(dir, args).await?,
            Command::Rename(args) => update::rename(dir, args).await?,
            Command::ConfigUpdate(args) => update::config_update(dir, args).await?,
            Command::VcpuList(args) => cpus::vcpu_list(dir, args).await?,
            Command::VcpuPin(args) => cpus::vcpu_pin(dir, args).await?,
            Command::SchedSet(args) => cpus::sched_set(dir, args).await?,
            Command::SchedList(args) => cpus::sched_list(dir, args).await?,
            Command::Uptime(args) => cpus::uptime(dir, args).await?,
            Command::Why(args) => why::run(dir, args).await?,
            Command::Events(args) => until_unread(events::follow(dir, args)).await?,
            Command::Logs(args) => until_unread(logs::run(dir, args)).await?,
            Command::BlockList(args) => block::list(dir, args).await?,
            Command::BlockSet(args) => block::set(dir, args).await?,
            Command::BlockResize(args) => block::resize(dir, args).await?,
            Command::NetworkList(args) => network::list(dir, args).await?,
            Command::NetworkDefine(args) => network::define(dir, args).await?,
            Command::NetworkUndefine(args) => network::undefine(dir, args).await?,
            Command::NetworkStart(args) => network::start(dir, args).await?,
            Command::NetworkStop(args) => network::stop(dir, args, false).await?,
            Command::NetworkDestroy(args) => network::stop(dir, args, true).await?,
            Command::NetworkLeases(args) => network::leases(dir, args).await?,
            Command::NetworkSet(args) => network::set(dir, args).await?,
            Command::GuestsStop(args) => guests::stop(dir, args).await?,
            Command::Dom0(args) => service::run(dir, args).await?,
            Command::Completions(args) => shell::completions(&args, &mut Self::command())?,
            Command::Manual(args) => shell::manual(args, Self::command())?,
            Command::Backend(args) => backend::run(dir, args).await?,
            Command::DiskSealed => anyhow::bail!("this command is of use to domus itself only"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_two_options_of_a_command_are_called_the_same() {
        Args::command().debug_assert();
    }
}
