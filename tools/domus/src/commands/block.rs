//! A running domain's disks: their counters, limits and sizes.

use std::path::Path;

use anyhow::bail;
use clap::Args;
use domus_api::{DiskCounters, DiskInfo, Dom0Client, OpInfo};
use shared_abi::size::DiskSize;

use crate::client::{answer, connect};
use crate::limits::DiskLimits;
use crate::output::print;
use crate::shrink::would_lose;

/// The command line of `block-list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The domain's name or ID
    name: String,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// The command line of `block-set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The domain's name or ID
    name: String,
    /// The disk's id; without it, all disks together
    disk: Option<String>,
    /// What is to change
    #[command(flatten)]
    limits: DiskLimits,
}

/// The command line of `block-resize`.
#[derive(Debug, Args)]
pub struct ResizeArgs {
    /// The domain's name or ID
    name: String,
    /// The disk's id
    disk: String,
    /// Its new size, such as 20GiB; without it, the disk is measured again
    size: Option<DiskSize>,
    /// Let it become shorter: what is behind its new end is lost
    #[arg(long, requires = "size")]
    shrink: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// `domus block-list`.
pub async fn list(dir: Option<&Path>, args: ListArgs) -> anyhow::Result<()> {
    let ListArgs { name, json } = args;
    let disks = answer(connect(dir).await?.block_list(&name).await)?.disks;
    print(&match disks.as_slice() {
        [] if !json => format!("{name} has no disks"),
        _ if json => serde_json::to_string_pretty(&disks)?,
        _ => table(&disks),
    })
}

fn table(disks: &[DiskInfo]) -> String {
    let mut text = format!(
        "{:<12} {:<10} {:<9} {:>12} {:>10} {:>10} {:>8} {:>8}  Source",
        "Disk", "Format", "State", "Bytes", "Reads", "Writes", "Errors", "PID"
    );
    let or_dash = |value: Option<String>| value.unwrap_or_else(|| "-".into());
    for disk in disks {
        let DiskInfo { id, format, state, .. } = disk;
        let count = |of: fn(&DiskCounters) -> u64| {
            or_dash(disk.counters.as_ref().map(|counters| of(counters).to_string()))
        };
        let errors = |it: &DiskCounters| {
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
pub async fn set(dir: Option<&Path>, args: SetArgs) -> anyhow::Result<()> {
    let SetArgs { name, disk, limits: DiskLimits(limits) } = args;
    if limits.is_empty() {
        bail!("nothing to set: name a limit, such as --iops 500 or --bytes none");
    }
    answer(connect(dir).await?.block_set(&name, disk.as_deref(), &limits).await)
}

/// `domus block-resize`.
pub async fn resize(dir: Option<&Path>, args: ResizeArgs) -> anyhow::Result<()> {
    let ResizeArgs { name, disk, size, shrink, json } = args;
    let size = size.map(|DiskSize(bytes)| bytes);
    let mut connection = connect(dir).await?;
    if let Some(bytes) = size.filter(|_| !shrink) {
        // dom0 refuses, too; one of before knew only how to do it.
        let disks = answer(connection.block_list(&name).await)?.disks;
        let before = disks.iter().find(|known| known.id == disk).and_then(|known| known.bytes);
        if let Some(before) = before.filter(|before| *before > bytes) {
            bail!("{}", would_lose(format_args!("{name}: disk {disk}"), before, bytes));
        }
    }
    let resized = answer(connection.block_resize(&name, &disk, size, shrink.then_some(true)).await)?;
    if json { print(&serde_json::to_string(&resized)?) } else { print(&format!("{} bytes", resized.bytes)) }
}
