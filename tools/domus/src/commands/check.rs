//! `domus check`: a config, and what it needs of the host: as dom0 sees it, which knows the other domains, or without a
//! service as this command does.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::anyhow;
use clap::Args;
use dom0::config::DomainConfig;
use dom0::domain::error::StartError;
use dom0::domain::error::{Attempted, explain};
use dom0::host::run_dir::CONFIG;
use dom0::network::managed::Networks;
use dom0::process::Direct;
use dom0::{config, domain};
use domus_api::{ApiError, Dom0Client, default_run_dir};

use super::plan::Plan;
use crate::client::{answer, connect, utf8};
use crate::output::print;

/// The command line of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The config
    file: PathBuf,
    /// Where domu-runner and the backends are if the dom0 service does not run [default: beside this program, then
    /// /usr/libexec/domus]
    #[arg(long, value_name = "DIR")]
    libexec_dir: Option<PathBuf>,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Has the service check it. False if there is none, or it does not for this user.
async fn check_with_service(dir: Option<&Path>, config: &DomainConfig) -> anyhow::Result<bool> {
    let Ok(mut connection) = connect(dir).await else { return Ok(false) };
    let DomainConfig { text, file, directory, .. } = config;
    match connection.check(text, &utf8(file)?, &utf8(directory)?).await {
        Ok(Err(ApiError::NotAllowed { .. })) => Ok(false),
        checked => answer(checked).map(|()| true),
    }
}

/// `domus check`.
///
/// # Errors
/// What is wrong with the config.
pub async fn run(dir: Option<&Path>, args: CheckArgs) -> anyhow::Result<()> {
    check(dir, &args.file, args.libexec_dir, args.json).await
}

/// Checks a config and what it needs of the host; prints what the domain would be made of.
///
/// # Errors
/// What is wrong with it.
pub async fn check(
    dir: Option<&Path>,
    file: &Path,
    libexec: Option<PathBuf>,
    json: bool,
) -> anyhow::Result<()> {
    let config = config::load(file)?;
    let run = dir.map_or_else(default_run_dir, Path::to_owned);
    let mut owner = dom0::domain::directory::owner(&run, &config.name);
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
        return Err(dom0::value::place::ConfigError::new(file, "name", problem).into());
    }
    if !check_with_service(dir, &config).await? {
        let networks = Rc::new(Networks::of_others(Path::new(CONFIG), &run));
        let direct = Rc::new(Direct::new(libexec, true));
        let checked = domain::check::check(&config, networks, direct, Rc::default(), 0).await;
        checked.map_err(|error| match error {
            StartError::Config(error) => anyhow!(error),
            error => anyhow!(explain(&Attempted::from(&config), &error)),
        })?;
    }
    let plan = Plan::of(&config);
    print(&if json { serde_json::to_string(&plan)? } else { plan.text() })
}
