//! What is asked of a running domain's disks and backends.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use domus_api::{DiskInfo, Dom0Client, Limit, OpInfo};

use crate::client::{answer, connect};
use crate::commands::print;

/// Limits on the command line: `RATE[:BURST[:SECONDS]]` such as 500, 50MiB, 100MiB:400MiB:10; `none` lifts one.
#[derive(Debug, Args)]
pub struct Limits {
    /// Requests a second
    #[arg(long, value_name = "RATE")]
    iops: Option<String>,
    /// Requests to read a second
    #[arg(long, value_name = "RATE")]
    read_iops: Option<String>,
    /// Requests to write a second
    #[arg(long, value_name = "RATE")]
    write_iops: Option<String>,
    /// Bytes a second
    #[arg(long, value_name = "RATE")]
    bytes: Option<String>,
    /// Bytes read a second
    #[arg(long, value_name = "RATE")]
    read_bytes: Option<String>,
    /// Bytes written a second
    #[arg(long, value_name = "RATE")]
    write_bytes: Option<String>,
}

impl Limits {
    fn given(self) -> Vec<Limit> {
        let all = [
            ("iops", self.iops),
            ("read_iops", self.read_iops),
            ("write_iops", self.write_iops),
            ("bytes", self.bytes),
            ("read_bytes", self.read_bytes),
            ("write_bytes", self.write_bytes),
        ];
        let given = all.into_iter().filter_map(|(name, rate)| Some((name, rate?)));
        given.map(|(name, rate)| Limit { name: name.into(), rate }).collect()
    }
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

/// `domus block-list`.
pub async fn list(dir: Option<&Path>, name: &str, json: bool) -> anyhow::Result<()> {
    let disks = answer(connect(dir).await?.block_list(name).await)?.disks;
    print(&if json { serde_json::to_string_pretty(&disks)? } else { table(&disks) })
}

fn table(disks: &[DiskInfo]) -> String {
    let mut text = format!(
        "{:<12} {:<10} {:<9} {:>12} {:>10} {:>10} {:>8} {:>8}  Source",
        "Disk", "Format", "State", "Bytes", "Reads", "Writes", "Errors", "PID"
    );
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for disk in disks {
        let DiskInfo { id, format, state, .. } = disk;
        let count = |of: fn(&domus_api::DiskCounters) -> u64| {
            or_dash(disk.counters.as_ref().map(|counters| of(counters).to_string()))
        };
        let errors = |it: &domus_api::DiskCounters| {
            [&it.read, &it.write, &it.flush, &it.discard].iter().map(|op: &&OpInfo| op.errors).sum()
        };
        let bytes = or_dash(disk.bytes.map(|bytes| bytes.to_string()));
        let pid = or_dash(disk.backend_pid.map(|pid| pid.to_string()));
        let read_only = if disk.read_only { " (read-only)" } else { "" };
        text += &format!(
            "\n{id:<12} {format:<10} {state:<9} {bytes:>12} {:>10} {:>10} {:>8} {pid:>8}  {}{read_only}",
            count(|it| it.read.ops),
            count(|it| it.write.ops),
            count(errors),
            disk.source,
        );
        for limit in &disk.limits {
            text += &format!("\n{:<12} limit {} {}", "", limit.name, limit.rate);
        }
    }
    text
}

/// `domus block-set`.
pub async fn set(dir: Option<&Path>, name: &str, disk: Option<&str>, limits: Limits) -> anyhow::Result<()> {
    let limits = limits.given();
    if limits.is_empty() {
        bail!("nothing to set: name a limit, such as --iops 500 or --bytes none");
    }
    answer(connect(dir).await?.block_set(name, disk, &limits).await)
}

/// `domus block-resize`.
pub async fn resize(
    dir: Option<&Path>,
    name: &str,
    disk: &str,
    size: Option<u64>,
    json: bool,
) -> anyhow::Result<()> {
    let resized = answer(connect(dir).await?.block_resize(name, disk, size).await)?;
    if json { print(&serde_json::to_string(&resized)?) } else { print(&format!("{} bytes", resized.bytes)) }
}

/// `domus backend`.
pub async fn backend(dir: Option<&Path>, command: BackendCommand) -> anyhow::Result<()> {
    let BackendCommand::Upgrade { name, device, exe, json } = command;
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

/// `domus why`.
pub async fn why(dir: Option<&Path>, name: &str, json: bool) -> anyhow::Result<()> {
    let why = answer(connect(dir).await?.why(name).await)?;
    if json {
        return print(&serde_json::to_string_pretty(&why)?);
    }
    let mut text = format!("{name} is {}", why.state);
    if why.troubles.is_empty() {
        text += ", and nothing is amiss";
    }
    for trouble in &why.troubles {
        text += &format!("\n{}: {}\n  next: {}", trouble.layer, trouble.cause, trouble.next);
    }
    print(&text)
}
