//! vCPUs and what domains have of the host's CPUs; how long domains have been running.

use std::path::Path;
use std::time::Duration;

use anyhow::anyhow;
use domus_api::{Dom0Client, DomainInfo, VcpuPlace};
use nix::time::{ClockId, clock_gettime};
use serde_json::json;

use crate::client::{Connection, answer, connect};
use crate::commands::print;

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
pub async fn vcpu_list(dir: Option<&Path>, name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut connection = connect(dir).await?;
    let mut rows: Vec<(DomainInfo, VcpuPlace)> = Vec::new();
    for domain in domains(&mut connection, name).await? {
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

/// `domus vcpu-pin`. `vcpu` is a number or `all`.
pub async fn vcpu_pin(dir: Option<&Path>, name: &str, vcpu: &str, cpus: &str) -> anyhow::Result<()> {
    let vcpu = match vcpu {
        "all" => None,
        number => {
            let parsed =
                number.parse().map_err(|_| anyhow!("\"{number}\" is no vCPU: a number or all would do"));
            Some(parsed?)
        }
    };
    answer(connect(dir).await?.vcpu_pin(name, vcpu, cpus).await)
}

/// `domus sched-list`.
pub async fn sched_list(dir: Option<&Path>, name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut connection = connect(dir).await?;
    let mut rows = Vec::new();
    for DomainInfo { name: domain, id, .. } in domains(&mut connection, name).await? {
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
pub async fn sched_set(
    dir: Option<&Path>,
    name: &str,
    weight: Option<u32>,
    cap: Option<u32>,
) -> anyhow::Result<()> {
    answer(connect(dir).await?.sched_set(name, weight, cap).await).map(drop)
}

/// `domus uptime`: since the machine's first instruction, so a guest that was started again begins anew.
pub async fn uptime(dir: Option<&Path>, name: Option<&str>, json: bool) -> anyhow::Result<()> {
    let mut connection = connect(dir).await?;
    let mut rows = Vec::new();
    for DomainInfo { name, id, .. } in domains(&mut connection, name).await? {
        let Ok(one) = answer(connection.get(&name).await) else { continue };
        let first = if id == 0 { Some(Duration::ZERO) } else { one.first_run_ns.map(Duration::from_nanos) };
        rows.push((name, id, first.and_then(|first| since(first).ok())));
    }
    if json {
        let row = |(name, id, up): &(String, u32, Option<Duration>)| json!({ "name": name, "id": id, "seconds": up.map(|up| up.as_secs()) });
        return print(&serde_json::to_string_pretty(&rows.iter().map(row).collect::<Vec<_>>())?);
    }
    let mut text = format!("{:<33} {:>4} Uptime", "Name", "ID");
    for (name, id, up) in rows {
        let up = up.map_or("-".into(), |up| clock(up.as_secs()));
        text += &format!("\n{name:<33} {id:>4} {up}");
    }
    print(&text)
}

/// Time since this moment of `CLOCK_MONOTONIC`, which all processes of a host share.
fn since(moment: Duration) -> anyhow::Result<Duration> {
    let now = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
    Ok(now.saturating_sub(moment))
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
