//! A running domain's machine: its buttons, SysRq keys and cores.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use domus_api::Dom0Client;
use tokio::time::sleep;

use crate::client::{answer, connect};
use crate::output::print;

/// What `domus trigger` does to a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Trigger {
    /// Give a non-maskable interrupt
    Nmi,
    /// Press the power button
    Power,
    /// Press the sleep button
    Sleep,
    /// Reset the machine, as if the guest had
    Reset,
}

impl Trigger {
    /// Its name in the API.
    pub fn name(self) -> &'static str {
        match self {
            Self::Nmi => "nmi",
            Self::Power => "power",
            Self::Sleep => "sleep",
            Self::Reset => "reset",
        }
    }
}

/// The command line of `trigger`.
#[derive(Debug, Args)]
pub struct TriggerArgs {
    /// The domain's name or ID
    name: String,
    /// What to do
    what: Trigger,
    /// The vCPU that gets the NMI; without it, all do
    vcpu: Option<u32>,
}

/// The command line of `sysrq`.
#[derive(Debug, Args)]
pub struct SysrqArgs {
    /// The domain's name or ID
    name: String,
    /// The key, such as h
    key: String,
}

/// The command line of `dump-core`.
#[derive(Debug, Args)]
pub struct DumpCoreArgs {
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
}

/// `domus trigger`.
pub async fn trigger(dir: Option<&Path>, args: TriggerArgs) -> anyhow::Result<()> {
    answer(connect(dir).await?.trigger(&args.name, args.what.name(), args.vcpu).await)
}

/// `domus sysrq`.
pub async fn sysrq(dir: Option<&Path>, args: SysrqArgs) -> anyhow::Result<()> {
    answer(connect(dir).await?.sysrq(&args.name, &args.key).await)
}

/// `domus dump-core`. Says where the core is; on a terminal, how much of it is written meanwhile.
pub async fn dump_core(dir: Option<&Path>, args: DumpCoreArgs) -> anyhow::Result<()> {
    let DumpCoreArgs { name, file, live, crash, reset, json } = args;
    let then = match (crash, reset) {
        (true, _) => "destroy",
        (false, true) => "reset",
        (false, false) => "go-on",
    };
    let file = file.map(std::path::absolute).transpose().context("cannot find the current directory")?;
    let path =
        file.as_deref().map(|file| file.to_str().context("the path of the core is no UTF-8: rename it"));
    let path = path.transpose()?;
    let mut connection = connect(dir).await?;
    let dumped = tokio::select! {
        dumped = connection.dump_core(&name, path, live, then) => dumped,
        never = progress(file.as_deref()) => match never {},
    };
    if file.is_some() && std::io::stderr().is_terminal() {
        // Over what the progress has left.
        let _ = write!(std::io::stderr(), "\r\x1b[K");
    }
    let dumped = answer(dumped)?;
    print(&if json { serde_json::to_string(&dumped)? } else { dumped.file })
}

/// Shows on a terminal how much of the file is there.
async fn progress(file: Option<&Path>) -> std::convert::Infallible {
    let Some(file) = file.filter(|_| std::io::stderr().is_terminal()) else {
        return std::future::pending().await;
    };
    loop {
        sleep(Duration::from_millis(500)).await;
        let bytes = std::fs::metadata(file).map_or(0, |meta| meta.blocks() * 512);
        let _ = write!(std::io::stderr(), "\r{} MiB written", bytes >> 20);
    }
}
