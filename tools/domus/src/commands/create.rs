//! `domus create`: a domain from a config, built and started by the dom0 service.

use std::path::{Path, PathBuf};

use clap::Args;
use domus_api::{Dom0Client, read_config};
use serde_json::Value;
use shared_abi::console::Mode;

use super::{check, console, timing};
use crate::client::{answer, connect, utf8};
use crate::output::print;

/// The command line of `create`.
#[derive(Debug, Args)]
pub struct CreateArgs {
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
}

/// `domus create`.
///
/// # Errors
/// That the config is refused, or that the domain cannot be started.
pub async fn run(dir: Option<&Path>, args: CreateArgs) -> anyhow::Result<()> {
    let CreateArgs { file, console, dry_run, timing, json } = args;
    if dry_run {
        return check::check(dir, &file, None, json).await;
    }
    let asked = timing::now();
    let (text, directory) = read_config(&file)?;
    let mut connection = connect(dir).await?;
    let created = answer(connection.create(&text, &utf8(&file)?, &utf8(&directory)?).await)?;
    match timing {
        true => {
            timing::tell(&mut connection, &created, asked, has_devices(&text), json).await?;
        }
        false if json => print(&serde_json::to_string(&created)?)?,
        false => {}
    }
    if console {
        console::follow(dir, &created.name, Mode::Write, None).await?;
    }
    Ok(())
}

/// Whether a config that dom0 has taken gives its guest a device that a driver may take into use.
fn has_devices(config: &str) -> bool {
    let config: Value = serde_json::from_str(config).unwrap_or_default();
    ["disks", "nets", "devices"].iter().any(|key| config[key].as_array().is_some_and(|list| !list.is_empty()))
}
