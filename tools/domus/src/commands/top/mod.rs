//! `domus top`: the resources that domains use, as rates over an interval, live on a terminal or line by line.
//!
//! dom0 keeps counters and no rates: a rate is the difference of two samples. A counter that is smaller in the second
//! sample was reset, because its backend was started again, and counts from zero.

mod live;
mod rates;

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;
use clap::Args;
use domus_api::{Dom0Client, DomainStatistics};
use tokio::time::{Instant, sleep};

use crate::client::{Connection, answer, connect};
use crate::output::print;
use rates::{Row, rates};

/// The command line of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 3)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=3600))]
    delay: u64,
    /// Print the list each time, in place of showing it
    #[arg(short, long)]
    batch: bool,
    /// How many times; without it, for ever
    #[arg(short = 'n', long, value_name = "N")]
    iterations: Option<u64>,
    /// What the list is sorted by
    #[arg(short, long, value_enum, default_value_t = SortKey::Cpu)]
    sort: SortKey,
    /// Print a JSON array each time, in a line of its own
    #[arg(long, requires = "batch")]
    json: bool,
}

/// The column that the list is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SortKey {
    /// Those that use the most CPU time
    Cpu,
    /// Those whose vCPUs wait most for a CPU
    Steal,
    /// Those with the most memory
    Memory,
    /// Those whose disks do most
    Disk,
    /// Those whose NICs do most
    Net,
    /// By name
    Name,
}

/// The last sample of the counters, and the connection for the next one.
struct Watch {
    connection: Connection,
    before: Vec<DomainStatistics>,
    at: Instant,
}

impl Watch {
    async fn begin(dir: Option<&Path>) -> anyhow::Result<Self> {
        let mut connection = connect(dir).await?;
        let before = answer(connection.statistics().await)?.domains;
        Ok(Self { connection, before, at: Instant::now() })
    }

    /// Takes a sample; returns the rates since the one before.
    async fn look(&mut self, order: SortKey) -> anyhow::Result<Vec<Row>> {
        let now = answer(self.connection.statistics().await)?.domains;
        let at = Instant::now();
        let rows = rates(&self.before, &now, at - self.at, order);
        (self.before, self.at) = (now, at);
        Ok(rows)
    }
}

/// Shows it until the user has seen enough.
///
/// # Errors
/// One line.
pub async fn run(dir: Option<&Path>, args: TopArgs) -> anyhow::Result<()> {
    let TopArgs { delay, batch, iterations, sort, json } = args;
    let delay = Duration::from_secs(delay);
    if !batch && !std::io::stdout().is_terminal() {
        bail!("top: standard output is no terminal: add --batch");
    }
    let mut watch = Watch::begin(dir).await?;
    if !batch {
        return live::show(&mut watch, delay, iterations, sort).await;
    }
    let mut left = iterations;
    while left != Some(0) {
        left = left.map(|left| left - 1);
        sleep(delay).await;
        let rows = watch.look(sort).await?;
        let text = if json { serde_json::to_string(&rows)? } else { rates::table(&rows) };
        print(&text)?;
    }
    Ok(())
}
