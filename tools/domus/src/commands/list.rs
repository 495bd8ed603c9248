//! Lists of domains, and the translation of names to IDs and back.

use std::path::Path;

use anyhow::bail;
use clap::Args;
use domus_api::{Dom0Client, DomainInfo};
use serde_json::json;

use crate::client::{answer, connect};
use crate::output::print;
use crate::selection::expand;

/// The command line of `list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Only these: names, IDs, or patterns such as 'web*'
    names: Vec<String>,
    /// Print UUIDs, and how the last machine ended, too
    #[arg(short, long)]
    verbose: bool,
    /// Print a JSON array
    #[arg(short = 'l', long, visible_alias = "long")]
    json: bool,
}

/// The command line of `vm-list`.
#[derive(Debug, Args)]
pub struct VmListArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// The command line of `domid`.
#[derive(Debug, Args)]
pub struct DomidArgs {
    /// The domain's name
    name: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// The command line of `domname`.
#[derive(Debug, Args)]
pub struct DomnameArgs {
    /// The domain's ID
    id: u32,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// `domus list`.
pub async fn list(dir: Option<&Path>, args: ListArgs) -> anyhow::Result<()> {
    let ListArgs { names, verbose, json } = args;
    let mut connection = connect(dir).await?;
    let mut domains = answer(connection.list().await)?.domains;
    if !names.is_empty() {
        let mut wanted = Vec::new();
        for name in expand(&names, &domains)? {
            wanted.push(answer(connection.get(&name).await)?.domain);
        }
        domains = wanted;
    }
    print(&if json { serde_json::to_string_pretty(&domains)? } else { table(&domains, verbose) })
}

/// The list in xl's columns.
fn table(domains: &[DomainInfo], verbose: bool) -> String {
    let mut text = format!("{:<40} {:>5} {:>5} {:>5}     State   Time(s)", "Name", "ID", "Mem", "VCPUs");
    if verbose {
        text += &format!("   {:<36} Ended", "UUID");
    }
    for domain in domains {
        let DomainInfo { name, id, uuid, memory_mib, vcpus, flags, cpu_seconds, ended, .. } = domain;
        text += &format!("\n{name:<40} {id:>5} {memory_mib:>5} {vcpus:>5}     {flags} {cpu_seconds:>8.1}");
        if verbose {
            let [uuid, ended] = [uuid, ended].map(|it| it.as_deref().unwrap_or("-"));
            text += &format!("   {uuid:<36} {ended}");
        }
    }
    text
}

/// `domus vm-list`.
pub async fn vm_list(dir: Option<&Path>, VmListArgs { json }: VmListArgs) -> anyhow::Result<()> {
    let domains = answer(connect(dir).await?.list().await)?.domains;
    let guests = domains.iter().filter(|domain| domain.id != 0);
    if json {
        let list: Vec<_> =
            guests.map(|guest| json!({ "uuid": guest.uuid, "id": guest.id, "name": guest.name })).collect();
        return print(&serde_json::to_string_pretty(&list)?);
    }
    let mut text = format!("{:<36}  {:>5}    name", "UUID", "ID");
    for DomainInfo { uuid, id, name, .. } in guests {
        text += &format!("\n{:<36}  {id:>5}    {name}", uuid.as_deref().unwrap_or("-"));
    }
    print(&text)
}

/// `domus domid`.
pub async fn domid(dir: Option<&Path>, args: DomidArgs) -> anyhow::Result<()> {
    let DomidArgs { name, json } = args;
    if name.parse::<u32>().is_ok() {
        bail!("\"{name}\" is an ID already, and no name: domus domname tells whose it is");
    }
    let domain = answer(connect(dir).await?.get(&name).await)?.domain;
    tell(&domain, json, domain.id.to_string())
}

/// `domus domname`.
pub async fn domname(dir: Option<&Path>, args: DomnameArgs) -> anyhow::Result<()> {
    let DomnameArgs { id, json } = args;
    let domain = answer(connect(dir).await?.get(&id.to_string()).await)?.domain;
    tell(&domain, json, domain.name.clone())
}

fn tell(domain: &DomainInfo, json: bool, text: String) -> anyhow::Result<()> {
    print(&if json { json!({ "name": domain.name, "id": domain.id }).to_string() } else { text })
}
