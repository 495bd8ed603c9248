//! vCPUs, each domain's share of the host's CPUs, and domains' uptimes.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use domus_api::{Dom0Client, DomainInfo, VcpuPlace};
use serde_json::json;

use crate::client::{Connection, answer, connect};
use crate::clock::monotonic;
use crate::output::print;

/// The command line of `vcpu-list`.
#[derive(Debug, Args)]
pub struct VcpuListArgs {
    /// The domain's name or ID; without it, all domains
    name: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// The command line of `vcpu-pin`.
#[derive(Debug, Args)]
pub struct VcpuPinArgs {
    /// The domain's name or ID
    name: String,
    /// The vCPU's number, or all
    vcpu: String,
    /// The CPUs: 0-3, 0,2, 0-7,^4 or all
    cpus: String,
}

/// The command line of `sched-set`.
#[derive(Debug, Args)]
pub struct SchedSetArgs {
    /// The domain's name or ID
    name: String,
    /// Its weight where CPUs are short, 1 to 10000; 100 is usual
    #[arg(short, long)]
    weight: Option<u32>,
    /// What all its processes may use together, in percent of one CPU; 0 is no cap
    #[arg(short, long, value_name = "PERCENT")]
    cap: Option<u32>,
}

/// The command line of `sched-list`.
#[derive(Debug, Args)]
pub struct SchedListArgs {
    /// The domain's name or ID; without it, all domains
    name: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// The command line of `uptime`.
#[derive(Debug, Args)]
pub struct UptimeArgs {
    /// The domain's name or ID; without it, all domains
    name: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Domains: the one that is named, or all but the host.
async fn domains(connection: &mut Connection, name: Option<&str>) -> anyhow::Result<Vec<DomainInfo>> {
    match name {
        Some(name) => Ok(vec![answer(connection.get(name).await)?.domain]),
        None => {
            let mut all = answer(connection.list().await)?.domains;
            all.retain(|domain| domain.id != 0 && domain.state != "left-over");
            Ok(all)
        }
    }
}

/// `domus vcpu-list`.
pub async fn vcpu_list(dir: Option<&Path>, args: VcpuListArgs) -> anyhow::Result<()> {
    let VcpuListArgs { name, json } = args;
    let mut connection = connect(dir).await?;
    let mut rows: Vec<(DomainInfo, VcpuPlace)> = Vec::new();
    for domain in domains(&mut connection, name.as_deref()).await? {
        match answer(connection.vcpu_list(&domain.name).await) {
            Ok(list) => rows.extend(list.vcpus.into_iter().map(|vcpu| (domain.clone(), vcpu))),
            // It may have ended, or be on its way, since it was listed.
            Err(_) if name.is_none() => {}
            Err(error) => return Err(error),
        }
    }
    if json {
        let row = |(domain, vcpu): &(DomainInfo, VcpuPlace)| {
            let VcpuPlace { vcpu, cpu, runs, cpu_seconds, affinity } = vcpu;
            json!({
                "name": domain.name, "id": domain.id, "vcpu": vcpu, "cpu": cpu, "runs": runs,
                "cpu_seconds": cpu_seconds, "affinity": affinity,
            })
        };
        return print(&serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?);
    }
    let mut text = format!(
        "{:<32} {:>5} {:>5} {:>5} {:>5} {:>9} Affinity",
        "Name", "ID", "VCPU", "CPU", "State", "Time(s)"
    );
    for (domain, vcpu) in rows {
        let state = match (domain.state.as_str(), vcpu.runs) {
            ("paused", _) => "--p",
            (_, true) => "r--",
            (_, false) => "-b-",
        };
        text += &format!(
            "\n{:<32} {:>5} {:>5} {:>5} {state:>5} {:>9.1} {}",
            domain.name, domain.id, vcpu.vcpu, vcpu.cpu, vcpu.cpu_seconds, vcpu.affinity
        );
    }
    print(&text)
}

/// `domus vcpu-pin`.
pub async fn vcpu_pin(dir: Option<&Path>, args: VcpuPinArgs) -> anyhow::Result<()> {
    let VcpuPinArgs { name, vcpu, cpus } = args;
    let vcpu = match vcpu.as_str() {
        "all" => None,
        number => {
            let parsed =
                number.parse().map_err(|_| anyhow!("\"{number}\" is no vCPU: a number or all would do"));
            Some(parsed?)
        }
    };
    answer(connect(dir).await?.vcpu_pin(&name, vcpu, &cpus).await)
}

/// `domus sched-list`.
pub async fn sched_list(dir: Option<&Path>, args: SchedListArgs) -> anyhow::Result<()> {
    let SchedListArgs { name, json } = args;
    let mut connection = connect(dir).await?;
    let mut rows = Vec::new();
    for DomainInfo { name: domain, id, .. } in domains(&mut connection, name.as_deref()).await? {
        match answer(connection.sched_set(&domain, None, None).await) {
            Ok(sched) => rows.push((domain, id, sched)),
            // It may have ended, or be on its way, since it was listed.
            Err(_) if name.is_none() => {}
            Err(error) => return Err(error),
        }
    }
    if json {
        let rows = rows.iter().map(
            |(name, id, sched)| json!({ "name": name, "id": id, "weight": sched.weight, "cap": sched.cap }),
        );
        return print(&serde_json::to_string_pretty(&rows.collect::<Vec<_>>())?);
    }
    let mut text = format!("{:<32} {:>5} {:>6} {:>5}", "Name", "ID", "Weight", "Cap");
    for (name, id, sched) in rows {
        text += &format!("\n{name:<32} {id:>5} {:>6} {:>5}", sched.weight, sched.cap);
    }
    print(&text)
}

/// `domus sched-set`.
pub async fn sched_set(dir: Option<&Path>, args: SchedSetArgs) -> anyhow::Result<()> {
    let SchedSetArgs { name, weight, cap } = args;
    answer(connect(dir).await?.sched_set(&name, weight, cap).await).map(drop)
}

/// `domus uptime`: since the machine's first instruction, so a guest that was started again begins anew.
pub async fn uptime(dir: Option<&Path>, args: UptimeArgs) -> anyhow::Result<()> {
    let UptimeArgs { name, json } = args;
    let mut connection = connect(dir).await?;
    let mut rows = Vec::new();
    for DomainInfo { name, id, .. } in domains(&mut connection, name.as_deref()).await? {
        let Ok(one) = answer(connection.get(&name).await) else { continue };
        let first = if id == 0 { Some(Duration::ZERO) } else { one.first_run_ns.map(Duration::from_nanos) };
        rows.push((name, id, first.map(|first| monotonic().saturating_sub(first))));
    }
    if json {
        let row = |(name, id, up): &(String, u32, Option<Duration>)| {
            let seconds = up.map(|up| up.as_secs());
            json!({ "name": name, "id": id, "seconds": seconds })
        };
        return print(&serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?);
    }
    let mut text = format!("{:<33} {:>4} Uptime", "Name", "ID");
    for (name, id, up) in rows {
        let up = up.map_or("-".into(), |up| clock(up.as_secs()));
        text += &format!("\n{name:<33} {id:>4} {up}");
    }
    print(&text)
}

/// As xl writes it: `1 day, 2:03:04`.
fn clock(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    let clock = format!("{hours:2}:{minutes:02}:{:02}", seconds % 60);
    match days {
        0 => clock,
        1 => format!("1 day, {clock}"),
        days => format!("{days} days, {clock}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_uptime_is_written_as_xl_writes_it() {
        assert_eq!(clock(3), " 0:00:03");
        assert_eq!(clock(86_400 + 3600 * 13 + 62), "1 day, 13:01:02");
        assert_eq!(clock(3 * 86_400), "3 days,  0:00:00");
    }
}
