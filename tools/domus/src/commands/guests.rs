//! `domus guests-stop`: shuts all guests down before the host stops.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use clap::{Args, ValueEnum};
use domus_api::{Dom0Client, GuestsStopped};
use tokio::time::timeout;

use crate::client::{answer, connect};
use crate::output::print;

/// How much longer than the guests dom0 may take: it destroys those that have not switched themselves off.
const BEYOND: Duration = Duration::from_secs(60);

/// The way that guests are stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Action {
    /// Each one's power button is pressed
    Shutdown,
    /// Each one is written to a file, to go on later; there is no such thing yet
    Save,
}

/// The command line of `guests-stop`.
#[derive(Debug, Args)]
pub struct GuestsStopArgs {
    /// How long they may take, all together
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    grace: u32,
    /// What becomes of them
    #[arg(long, value_enum, default_value_t = Action::Shutdown)]
    action: Action,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// Shuts all guests down.
///
/// # Errors
/// One line.
pub async fn stop(dir: Option<&Path>, args: GuestsStopArgs) -> anyhow::Result<()> {
    let GuestsStopArgs { grace, action, json } = args;
    if action == Action::Save {
        anyhow::bail!(
            "guests-stop --action save: guests cannot be saved yet: set ON_SHUTDOWN=shutdown in /etc/default/domus"
        );
    }
    // dom0 itself keeps to `grace`; the host's shutdown must not wait for a dom0 that does not answer.
    let patience = Duration::from_secs(grace.into()) + BEYOND;
    let stopped = async { answer(connect(dir).await?.guests_stop(grace).await) };
    let stopped = timeout(patience, stopped).await.unwrap_or_else(|_| {
        let seconds = patience.as_secs();
        Err(anyhow!("dom0 has not answered within {seconds} s: guests that still run end with the host"))
    })?;
    if json {
        return print(&serde_json::to_string_pretty(&stopped)?);
    }
    let GuestsStopped { shut_down, destroyed } = stopped;
    shut_down.iter().try_for_each(|name| print(&format!("{name}: has switched itself off")))?;
    destroyed
        .iter()
        .try_for_each(|name| print(&format!("{name}: did not switch itself off in time: destroyed")))
}
