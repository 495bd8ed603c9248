//! `domus check`: a config, and what it needs of the host, looked at without dom0.

use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::Args;
use dom0::domain::error::StartError;
use dom0::domain::error::{Attempted, explain};
use dom0::host::run_dir::CONFIG;
use dom0::network::managed::Networks;
use dom0::{config, domain};
use domus_api::{Dom0Client, default_run_dir};

use super::plan::Plan;
use crate::client::{answer, connect};
use crate::output::print;

/// The command line of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The config
    file: PathBuf,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// `domus check`.
///
/// # Errors
/// What is wrong with the config.
pub async fn run(dir: Option<&Path>, args: CheckArgs) -> anyhow::Result<()> {
    check(dir, &args.file, args.json).await
}

/// Checks a config and what it needs of the host; prints what the domain would be made of.
///
/// # Errors
/// What is wrong with it.
pub async fn check(dir: Option<&Path>, file: &Path, json: bool) -> anyhow::Result<()> {
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
    let networks = Networks::of_others(Path::new(CONFIG), &run);
    domain::check::check(&config, &networks).await.map_err(|error| match error {
        StartError::Config(error) => anyhow!(error),
        error => anyhow!(explain(&Attempted::from(&config), &error)),
    })?;
    let plan = Plan::of(&config);
    print(&if json { serde_json::to_string(&plan)? } else { plan.text() })
}
