//! `domus console`: one domain's console through reboots, until the user leaves or the domain is gone.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use domus_api::{Console, Dom0Client};
use domus_startup::say;
use shared_abi::console::Mode;
use tokio::time::{Instant, sleep};

use crate::attach::{Copy, End, Keys, attach};
use crate::client::{Connection, answer, connect};
use crate::terminal::Raw;

/// Upper bound of the time without a console while the domain runs, and of the time without dom0.
const MAX_AWAY: Duration = Duration::from_secs(30);

/// Interval between two attempts to reach them.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// Which console of a domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The serial line, ttyS0 to the guest: all that there is
    Serial,
}

/// The command line of `console`.
#[derive(Debug, Args)]
pub struct ConsoleArgs {
    /// The domain's name or ID
    name: String,
    /// Do not write to it
    #[arg(long, conflicts_with = "take")]
    read_only: bool,
    /// Write to it even if somebody else does
    #[arg(long)]
    take: bool,
    /// Which one
    #[arg(short = 't', long = "type", value_enum, default_value_t = Kind::Serial)]
    kind: Kind,
    /// Append what is shown to this file, too
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

/// `domus console`.
///
/// # Errors
/// That there is no such domain, or that its console cannot be reached.
pub async fn run(dir: Option<&Path>, args: ConsoleArgs) -> anyhow::Result<()> {
    let Kind::Serial = args.kind;
    let mode = match (args.read_only, args.take) {
        (true, _) => Mode::Read,
        (false, true) => Mode::Take,
        (false, false) => Mode::Write,
    };
    let copy = args.log.as_deref().map(Copy::open).transpose()?;
    follow(dir, &args.name, mode, copy).await
}

/// Follows the console of `name`: through reboots, and through the death of the console's process and of dom0.
///
/// # Errors
/// That there is no such domain, or that its console cannot be reached.
pub async fn follow(
    dir: Option<&Path>,
    name: &str,
    mode: Mode,
    mut copy: Option<Copy>,
) -> anyhow::Result<()> {
    let mut connection = connect(dir).await?;
    let mut console = answer(connection.console(name).await)?;
    let raw = Raw::enter()?;
    let mut keys = Keys::read(raw.is_some());
    loop {
        let how = attach(Path::new(&console.path), mode, &mut keys, copy.as_mut()).await?;
        if how == End::Left {
            drop(raw);
            say("");
            return Ok(());
        }
        match next(dir, &mut connection, name, console.id, how).await {
            Some(again) => console = again,
            None => return Ok(()),
        }
    }
}

/// The console to attach to next: that of the domain's next machine, however long its start takes, or the same
/// console again, if only its process died. None if the domain does not start again.
async fn next(
    dir: Option<&Path>,
    connection: &mut Connection,
    name: &str,
    ended: u32,
    how: End,
) -> Option<Console> {
    let mut running = Instant::now();
    loop {
        let domain = match connection.get(name).await {
            Ok(answer) => answer.ok()?.domain,
            // dom0 is not there: the next one takes its domains over.
            Err(_) => {
                *connection = again(dir).await?;
                continue;
            }
        };
        let lost = how == End::Lost && domain.id == ended;
        match domain.state.as_str() {
            // Its socket outlives the process: the next one serves who waits there.
            "running" | "stopping" | "paused" if domain.id != ended || lost => {
                sleep(RETRY_INTERVAL).await;
                return answer(connection.console(name).await).ok();
            }
            // Its end is not known yet.
            "running" | "stopping" | "paused" if running.elapsed() > MAX_AWAY => return None,
            "running" | "stopping" | "paused" => {}
            "building" | "dying" => running = Instant::now(),
            _ => return None,
        }
        sleep(RETRY_INTERVAL).await;
    }
}

/// A connection to the next dom0, if there is one soon.
async fn again(dir: Option<&Path>) -> Option<Connection> {
    let since = Instant::now();
    loop {
        match connect(dir).await {
            Ok(connection) => return Some(connection),
            Err(_) if since.elapsed() > MAX_AWAY => return None,
            Err(_) => sleep(RETRY_INTERVAL).await,
        }
    }
}
