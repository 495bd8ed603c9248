//! Which domains there are.

use std::path::Path;

use anyhow::bail;
use domus_api::{Dom0Client, DomainInfo};
use serde_json::json;

use crate::client::{answer, connect};
use crate::commands::print;
use crate::many::expand;

/// `domus list`.
pub async fn list(dir: Option<&Path>, names: &[String], verbose: bool, json: bool) -> anyhow::Result<()> {
    let mut connection = connect(dir).await?;
    let mut domains = answer(connection.list().await)?.domains;
    if !names.is_empty() {
        let mut wanted = Vec::new();
        for name in expand(names, &domains)? {
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
pub async fn vm_list(dir: Option<&Path>, json: bool) -> anyhow::Result<()> {
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
pub async fn domid(dir: Option<&Path>, name: &str, json: bool) -> anyhow::Result<()> {
    if name.parse::<u32>().is_ok() {
        bail!("\"{name}\" is an ID already, and no name: domus domname tells whose it is");
    }
    let domain = answer(connect(dir).await?.get(name).await)?.domain;
    tell(&domain, json, domain.id.to_string())
}

/// `domus domname`.
pub async fn domname(dir: Option<&Path>, id: u32, json: bool) -> anyhow::Result<()> {
    let domain = answer(connect(dir).await?.get(&id.to_string()).await)?.domain;
    tell(&domain, json, domain.name.clone())
}

fn tell(domain: &DomainInfo, json: bool, text: String) -> anyhow::Result<()> {
    print(&if json { json!({ "name": domain.name, "id": domain.id }).to_string() } else { text })
}
