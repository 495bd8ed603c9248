//! `domus dom0 upgrade`: replaces the running dom0 by the installed program.

use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::{Args, Subcommand};
use domus_api::{Dom0Client, HostInfo};
use serde_json::json;
use tokio::time::{Instant, sleep, timeout_at};

use crate::client::{answer, connect};
use crate::output::print;

/// Within this time one dom0 has ended and the next one answers.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often the next one is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(50);

/// The command line of `dom0`.
#[derive(Debug, Args)]
pub struct Dom0Args {
    /// What to do
    #[command(subcommand)]
    command: Dom0Command,
}

/// What to do with dom0.
#[derive(Debug, Subcommand)]
pub enum Dom0Command {
    /// Put the installed program in the place of the dom0 that runs; domains go on
    Upgrade {
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

/// `domus dom0`.
///
/// # Errors
/// One line.
pub async fn run(dir: Option<&Path>, args: Dom0Args) -> anyhow::Result<()> {
    let Dom0Command::Upgrade { json } = args.command;
    let mut old = connect(dir).await?;
    let before = answer(old.info().await)?;
    answer(old.succeed().await)?;
    let deadline = Instant::now() + PATIENCE;
    // It hangs up when it ends.
    while let Ok(Ok(Ok(_))) = timeout_at(deadline, old.info()).await {
        sleep(POLL_INTERVAL).await;
    }
    let next = async {
        loop {
            if let Ok(mut new) = connect(dir).await
                && let Ok(Ok(info)) = new.info().await
            {
                return info;
            }
            sleep(POLL_INTERVAL).await;
        }
    };
    let Ok(after) = timeout_at(deadline, next).await else {
        bail!("no dom0 answers {} s after the one before has ended: see its log", PATIENCE.as_secs());
    };
    let HostInfo { version, pid, domains, .. } = after;
    if json {
        let before = json!({ "version": before.version, "pid": before.pid });
        return print(
            &json!({ "version": version, "pid": pid, "domains": domains, "before": before }).to_string(),
        );
    }
    print(&format!(
        "dom0 {version} (pid {pid}) is in the place of {} (pid {}), with {domains} domain(s)",
        before.version, before.pid
    ))
}
