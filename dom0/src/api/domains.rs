//! Domains as the API lists them, and what is amiss with one.

use domus_api::{DomainInfo, TroubleInfo};
use tokio::time::Instant;
use uuid::Uuid;

use crate::domain::lifecycle::State;
use crate::domain::{Handle, View};
use crate::host::{memory, usage};
use crate::network::managed::Networks;
use crate::service::Dom0;
use crate::value::time;
use crate::value::trouble::Trouble;

/// The host itself, as `list` shows it.
pub fn domain_0() -> DomainInfo {
    DomainInfo {
        name: "Domain-0".into(),
        id: 0,
        uuid: Some(Uuid::nil().to_string()),
        memory_mib: memory::memory() >> 20,
        vcpus: memory::cpus() as u32,
        flags: "r-----".into(),
        state: "running".into(),
        cpu_seconds: usage::host_seconds(),
        ended: None,
        runner_pid: None,
        restarts: 0,
    }
}

/// A domain as `list` shows it.
pub fn describe(view: &View) -> DomainInfo {
    let mut flags = *b"------";
    let state = match view.state {
        State::Building => "building",
        State::Running | State::Stopping(_) => {
            let runs = view.runner.is_some_and(usage::vcpu_runs);
            flags[usize::from(!runs)] = if runs { b'r' } else { b'b' };
            if view.state == State::Running { "running" } else { "stopping" }
        }
        State::Paused => {
            flags[2] = b'p';
            "paused"
        }
        State::Preserved { crashed } => {
            flags[3] = b's';
            if crashed {
                flags[4] = b'c';
            }
            "preserved"
        }
        State::Dying(_) | State::Dead => {
            flags[5] = b'd';
            "dying"
        }
    };
    DomainInfo {
        name: view.name.to_string(),
        id: view.domid.0,
        uuid: Some(view.uuid.to_string()),
        memory_mib: view.memory >> 20,
        vcpus: view.vcpus.into(),
        flags: flags.iter().map(|flag| char::from(*flag)).collect(),
        state: state.into(),
        cpu_seconds: view.runner.map_or(0.0, usage::cpu_seconds),
        ended: view.ended.clone(),
        runner_pid: view.runner,
        restarts: view.restarts,
    }
}

/// Everything `list` shows.
pub fn list(dom0: &Dom0) -> Vec<DomainInfo> {
    let domains = dom0.list();
    let mut list = vec![domain_0()];
    list.extend(domains.iter().map(describe));
    list.extend(dom0.leftovers().into_iter().map(|(name, domid)| DomainInfo {
        name: name.to_string(),
        id: domid.map_or(0, |domid| domid.0),
        uuid: None,
        memory_mib: 0,
        vcpus: 0,
        flags: "-----d".into(),
        state: "left-over".into(),
        cpu_seconds: 0.0,
        ended: None,
        runner_pid: None,
        restarts: 0,
    }));
    list
}

/// A moment of the past in seconds after 1970.
fn seconds_of(moment: Instant) -> u64 {
    (time::now_ms().saturating_sub(moment.elapsed().as_millis() as u64) + 500) / 1000
}

/// What is amiss with a domain, and with the networks that it is on, and what is waited for.
pub fn troubles(handle: &Handle, networks: &Networks) -> Vec<TroubleInfo> {
    let view = handle.view.borrow();
    let name = &view.name;
    let told = |Trouble { layer, since, cause, next }: &Trouble| TroubleInfo {
        layer: layer.clone(),
        since: since.map(seconds_of),
        cause: cause.clone(),
        next: next.clone(),
    };
    let waits = handle.waits();
    let mut troubles: Vec<_> = view.troubles.iter().chain(&waits).map(told).collect();
    for network in &view.networks {
        troubles.extend(networks.faults(network).iter().map(|fault| TroubleInfo {
            layer: format!("network {network}"),
            since: None,
            cause: fault.to_string(),
            next: format!(
                "it is put right as soon as that can be done; domus network-start {network} tries it now"
            ),
        }));
    }
    if let (State::Preserved { crashed: true }, Some(ended)) = (view.state, &view.ended) {
        let next = format!("look at domus console {name}, then domus destroy {name}");
        troubles.push(TroubleInfo { layer: "guest".into(), since: None, cause: ended.clone(), next });
    }
    if view.state == State::Paused && troubles.is_empty() {
        let cause = "it is paused, and everything that it was paused for is well".into();
        let next = format!("domus unpause {name}");
        troubles.push(TroubleInfo { layer: "domain".into(), since: None, cause, next });
    }
    troubles
}
