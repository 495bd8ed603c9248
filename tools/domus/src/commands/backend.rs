//! `domus backend`: the process behind a device, exchanged while its guest runs.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use domus_api::Dom0Client;

use crate::client::{answer, connect};
use crate::output::print;

/// The command line of `backend`.
#[derive(Debug, Args)]
pub struct BackendArgs {
    /// What to do
    #[command(subcommand)]
    command: BackendCommand,
}

/// What is done with a backend.
#[derive(Debug, Subcommand)]
pub enum BackendCommand {
    /// Exchange the process that serves a device for a new one, while the guest runs
    ///
    /// The old one finishes what it has in flight, the new one goes on; the guest sees a pause. All devices of the
    /// domain that the same process serves go along.
    Upgrade {
        /// The domain's name or ID
        name: String,
        /// The device's id
        device: String,
        /// The program to start in place of the installed one, also when it has to be started again later
        #[arg(long, value_name = "PATH")]
        exe: Option<PathBuf>,
        /// Print a JSON object
        #[arg(long)]
        json: bool,
    },
}

/// `domus backend`.
pub async fn run(dir: Option<&Path>, args: BackendArgs) -> anyhow::Result<()> {
    let BackendCommand::Upgrade { name, device, exe, json } = args.command;
    let exe = match exe {
        None => None,
        Some(exe) => {
            let exe = std::path::absolute(&exe).with_context(|| format!("cannot find {}", exe.display()))?;
            if !exe.is_file() {
                bail!("{} is no program: name the new domus-block or domus-net", exe.display());
            }
            Some(exe.to_str().context("the path of the program is no UTF-8: rename it")?.to_owned())
        }
    };
    let upgraded = answer(connect(dir).await?.backend_upgrade(&name, &device, exe.as_deref()).await)?;
    if json {
        return print(&serde_json::to_string(&upgraded)?);
    }
    print(&format!("upgraded: the devices stood still for {} µs", upgraded.stalled_us))
}
