//! `domus logs`: the log lines of dom0 and of a domain's processes about that domain.
//!
//! If dom0 logs to the journal, `journalctl` prints the lines, systemd's among them. Otherwise dom0 keeps a log file
//! for each domain, and this command reads it with the caller's own rights.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::Args;
use dom0::log;
use domus_api::Dom0Client;
use serde_json::json;
use shared_abi::DomainName;

use crate::client::{answer, connect};
use crate::output::print;

/// Interval at which `--follow` looks for new lines.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The command line of `logs`.
#[derive(Debug, Args)]
pub struct LogsArgs {
    /// The domain's name; it may be gone
    name: String,
    /// Print what is said from now on, too, until it is interrupted
    #[arg(short, long)]
    follow: bool,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

/// Prints the lines about a domain, which may be gone; with `follow` those that come, too, until it is interrupted.
///
/// # Errors
/// That there are none, or that they may not be read.
pub async fn run(dir: Option<&Path>, args: LogsArgs) -> anyhow::Result<()> {
    let LogsArgs { name, follow, json } = args;
    let host = answer(connect(dir).await?.info().await)?;
    let name: DomainName =
        name.parse().map_err(|error| anyhow!("\"{name}\" is no domain's name: {error}"))?;
    let Some(folder) = host.log_dir else {
        let mut journal = Command::new("journalctl");
        journal
            .arg("--no-pager")
            .args(dom0::value::names::units(&name).iter().flat_map(|unit| ["--unit", unit]));
        journal.args(follow.then_some("--follow")).args(json.then_some("--output=json"));
        let error = journal.exec();
        return Err(error).context("cannot start journalctl, where dom0's words about its domains go");
    };
    let [older, newer] = log::file::files(Path::new(&folder), &name);
    let mut files = [older, newer.clone()].into_iter().filter_map(|path| open(&path).transpose());
    let mut last = None;
    for file in &mut files {
        let mut file = BufReader::new(file?);
        rest(&mut file, json)?;
        last = Some(file);
    }
    if last.is_none() && !follow {
        bail!("nothing was said about a domain \"{name}\" yet: see domus list");
    }
    if !follow {
        return Ok(());
    }
    loop {
        tokio::time::sleep(POLL_INTERVAL).await;
        if let Some(file) = &mut last {
            rest(file, json)?;
        }
        // A full file is followed by another one.
        let there = open(&newer)?;
        let number = |file: &File| file.metadata().map(|it| it.ino()).ok();
        if let Some(there) = there
            && last.as_ref().is_none_or(|last| number(last.get_ref()) != number(&there))
        {
            last = Some(BufReader::new(there));
        }
    }
}

fn open(path: &Path) -> anyhow::Result<Option<File>> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!("{} is for root only: use sudo", path.display())
        }
        Err(error) => Err(error).with_context(|| format!("cannot open {}", path.display())),
    }
}

/// Prints the lines of a file from its current position to its end.
fn rest(file: &mut BufReader<File>, json: bool) -> anyhow::Result<()> {
    let mut line = String::new();
    while file.read_line(&mut line).context("cannot read what was said")? > 0 {
        let text = line.trim_end();
        if json {
            let (time, text) = text.split_once(' ').unwrap_or(("", text));
            print(&json!({ "time": time, "text": text }).to_string())?;
        } else {
            print(text)?;
        }
        line.clear();
    }
    Ok(())
}
