//! What each command does.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::CommandFactory;
use dom0::api::{self, start_message};
use dom0::config;
use dom0::domain::build::StartError;
use dom0::domain::check;
use dom0::networks::Networks;
use dom0::resources::run_dir;
use domus_api::Dom0Client;
use shared_abi::console::Mode;

use crate::args::{Args, Command};
use crate::block;
use crate::client::{answer, connect};
use crate::console;
use crate::cpus;
use crate::dom0_upgrade;
use crate::events;
use crate::guests;
use crate::host;
use crate::listing;
use crate::logs;
use crate::machine;
use crate::network;
use crate::plan::Plan;
use crate::run::{self, Options};
use crate::shadow;
use crate::timing;
use crate::verbs;

/// Does what the command line says.
///
/// # Errors
/// One line for the user.
pub async fn run(args: Args) -> anyhow::Result<ExitCode> {
    let dir = args.run_dir.as_deref();
    match args.command {
        Command::Create { file, dry_run: true, json, .. } => self::check(dir, &file, json).await?,
        Command::Create { file, console, timing, json, .. } => {
            create(dir, &file, console, timing, json).await?
        }
        Command::Run { file, no_console, grace, libexec_dir } => {
            let grace = Duration::from_secs(grace);
            let run_dir = args.run_dir;
            return run::run(Options { file, run_dir, libexec_dir, console: !no_console, grace }).await;
        }
        Command::RunShadow { name } => {
            shadow::shadow(dir.unwrap_or(&dom0::resources::run_dir::default_path()), &name)?;
        }
        Command::Check { file, json } => self::check(dir, &file, json).await?,
        Command::Import { file, json } => crate::import::run(&file, json)?,
        Command::Top(options) => crate::top::run(dir, options).await?,
        Command::List { names, verbose, json } => listing::list(dir, &names, verbose, json).await?,
        Command::VmList { json } => listing::vm_list(dir, json).await?,
        Command::Domid { name, json } => listing::domid(dir, &name, json).await?,
        Command::Domname { id, json } => listing::domname(dir, id, json).await?,
        Command::Info { numa, json } => host::info(dir, numa, json).await?,
        Command::Console { name, options } => console::run(dir, &name, &options).await?,
        Command::Pause(which) => return verbs::pause(dir, &which).await,
        Command::Unpause(which) => return verbs::unpause(dir, &which).await,
        Command::Disk { command } => crate::disk::run(command)?,
        Command::DiskSealed => anyhow::bail!("this command is of use to domus itself only"),
        Command::Shutdown { which, how } => return verbs::shutdown(dir, &which, &how).await,
        Command::Reboot { which, patience } => return verbs::reboot(dir, &which, &patience).await,
        Command::Trigger { name, what, vcpu } => {
            answer(connect(dir).await?.trigger(&name, what.name(), vcpu).await)?
        }
        Command::DumpCore { name, file, live, crash, reset, json } => {
            let then = match (crash, reset) {
                (true, _) => "destroy",
                (false, true) => "reset",
                (false, false) => "go-on",
            };
            machine::dump_core(dir, &name, file.as_deref(), live, then, json).await?;
        }
        Command::Sysrq { name, key } => answer(connect(dir).await?.sysrq(&name, &key).await)?,
        Command::Events { names, since_start, json } => {
            events::follow(dir, &names, since_start, json).await?
        }
        Command::Logs { name, follow, json } => logs::logs(dir, &name, follow, json).await?,
        Command::Rename { name, to } => answer(connect(dir).await?.rename(&name, &to).await)?,
        Command::ConfigUpdate { name, file } => config_update(dir, &name, &file).await?,
        Command::VcpuList { name, json } => cpus::vcpu_list(dir, name.as_deref(), json).await?,
        Command::VcpuPin { name, vcpu, cpus } => cpus::vcpu_pin(dir, &name, &vcpu, &cpus).await?,
        Command::SchedSet { name, weight, cap } => cpus::sched_set(dir, &name, weight, cap).await?,
        Command::SchedList { name, json } => cpus::sched_list(dir, name.as_deref(), json).await?,
        Command::Uptime { name, json } => cpus::uptime(dir, name.as_deref(), json).await?,
        Command::Why { name, json } => block::why(dir, &name, json).await?,
        Command::BlockList { name, json } => block::list(dir, &name, json).await?,
        Command::BlockSet { name, disk, limits } => block::set(dir, &name, disk.as_deref(), limits).await?,
        Command::BlockResize { name, disk, size, json } => {
            block::resize(dir, &name, &disk, size.map(|size| size.0), json).await?;
        }
        Command::NetworkList { domain, json } => network::list(dir, domain.as_deref(), json).await?,
        Command::NetworkDefine { file } => network::define(dir, &file).await?,
        Command::NetworkUndefine { network } => answer(connect(dir).await?.network_undefine(&network).await)?,
        Command::NetworkStart { network } => answer(connect(dir).await?.network_start(&network).await)?,
        Command::NetworkStop { network } => answer(connect(dir).await?.network_stop(&network, false).await)?,
        Command::NetworkDestroy { network } => {
            answer(connect(dir).await?.network_stop(&network, true).await)?
        }
        Command::NetworkLeases { network, json } => network::leases(dir, &network, json).await?,
        Command::NetworkSet { name, nic, settings } => network::set(dir, &name, &nic, settings).await?,
        Command::GuestsStop { grace, action, json } => guests::stop(dir, grace, action, json).await?,
        Command::Dom0 { command } => dom0_upgrade::run(dir, command).await?,
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Args::command(), "domus", &mut std::io::stdout());
        }
        Command::Manual { directory } => clap_mangen::generate_to(Args::command(), directory)?,
        Command::Backend { command } => block::backend(dir, command).await?,
        Command::Destroy(which) => return verbs::destroy(dir, &which).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn create(
    dir: Option<&Path>,
    file: &Path,
    console: bool,
    timing: bool,
    json: bool,
) -> anyhow::Result<()> {
    let asked = timing::now();
    let (text, directory) = config::read(file)?;
    let mut connection = connect(dir).await?;
    let created = answer(connection.create(&text, &utf8(file)?, &utf8(&directory)?).await)?;
    match timing {
        true => {
            let devices = config::parse(file, &directory, &text)
                .is_ok_and(|config| config.disks.len() + config.nets.len() + config.devices.len() > 0);
            timing::tell(&mut connection, &created, asked, devices, json).await?;
        }
        false if json => print(&serde_json::to_string(&created)?)?,
        false => {}
    }
    if console {
        console::follow(dir, &created.name, Mode::Write, None).await?;
    }
    Ok(())
}

async fn config_update(dir: Option<&Path>, name: &str, file: &Path) -> anyhow::Result<()> {
    let (text, directory) = config::read(file)?;
    let mut connection = connect(dir).await?;
    answer(connection.config_update(name, &text, &utf8(file)?, &utf8(&directory)?).await)
}

/// A path as the API takes it.
fn utf8(path: &Path) -> anyhow::Result<String> {
    path.to_str().map(str::to_owned).context("the path of the config is no UTF-8: rename it")
}

async fn check(dir: Option<&Path>, file: &Path, json: bool) -> anyhow::Result<()> {
    let config = config::load(file)?;
    let run = dir.map_or_else(run_dir::default_path, Path::to_owned);
    let mut owner = run_dir::owner(&run, &config.name);
    // The run directory is root's; the service tells others.
    if owner.is_none()
        && let Ok(mut connection) = connect(dir).await
        && let Ok(there) = answer(connection.get(config.name.as_str()).await)
    {
        owner = Some(format!("ID {}", there.domain.id));
    }
    if let Some(owner) = owner {
        let problem = format!(
            "a domain named \"{}\" runs already ({owner}): destroy it, or change the name",
            config.name
        );
        return Err(config::ConfigError::new(file, "name", problem).into());
    }
    let networks = Networks::of_others(Path::new(run_dir::CONFIG), &run);
    check::check(&config, &networks).await.map_err(|error| match error {
        StartError::Config(error) => anyhow!(error),
        error => anyhow!(start_message(&api::Plan::from(&config), &error)),
    })?;
    let plan = Plan::of(&config, notes(&config));
    print(&if json { serde_json::to_string(&plan)? } else { plan.text() })
}

/// What somebody should know who starts this domain.
fn notes(config: &config::DomainConfig) -> Vec<String> {
    let at_switch = |(n, net): (usize, &config::Net)| match &net.link {
        config::NetLink::Switch(switch) => Some(format!(
            "nets[{n}].switch: the process of the switch \"{switch}\" can read and write all memory of this domain and of \
             every other domain on it: put only domains there that may know each other's secrets"
        )),
        _ => None,
    };
    config.nets.iter().enumerate().filter_map(at_switch).collect()
}

/// Prints a line. A reader that has gone is no failure of the command.
pub fn print(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to standard output"),
    }
}
