//! `domus create --timing`: the duration of each phase of a start.

use std::time::Duration;

use domus_api::{Created, Dom0Client, PhaseInfo};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::client::{Connection, answer};
use crate::clock::monotonic;
use crate::output::print;

/// Upper bound of the wait for the guest's first output and for its first device in use.
const PATIENCE: Duration = Duration::from_secs(10);
const POLL_INTERVAL: Duration = Duration::from_millis(20);

/// The clock that dom0 and the runner stamp phases with, in nanoseconds.
pub fn now() -> u64 {
    monotonic().as_nanos() as u64
}

/// Prints the phases of the start that was requested at `asked`. `devices`: the guest has devices, so that the phase
/// "first device in use" is waited for.
pub async fn tell(
    connection: &mut Connection,
    created: &Created,
    asked: u64,
    devices: bool,
    json: bool,
) -> anyhow::Result<()> {
    let mut phases = answer(connection.timeline(&created.name).await)?.phases;
    let end = Instant::now() + PATIENCE;
    let has = |phases: &[PhaseInfo], name| phases.iter().any(|phase| phase.name == name);
    // A guest may say nothing, and have no driver for what it has.
    while !(has(&phases, "output") && (has(&phases, "driver") || !devices)) && Instant::now() < end {
        sleep(POLL_INTERVAL).await;
        match answer(connection.timeline(&created.name).await) {
            Ok(timeline) => phases = timeline.phases,
            // It has ended meanwhile.
            Err(_) => break,
        }
    }
    let mut before = asked;
    let rows: Vec<(String, u64, u64)> = phases
        .into_iter()
        .map(|PhaseInfo { name, at_ns }| {
            let row = (name, at_ns.saturating_sub(asked) / 1000, at_ns.saturating_sub(before) / 1000);
            before = at_ns;
            row
        })
        .collect();
    if json {
        let phases: Vec<_> = rows
            .iter()
            .map(|(name, at, took)| json!({ "name": name, "at_us": at, "took_us": took }))
            .collect();
        return print(&json!({ "name": created.name, "id": created.id, "phases": phases }).to_string());
    }
    let mut text = format!("{:>10} {:>10}  Phase", "At (µs)", "Took (µs)");
    for (name, at, took) in rows {
        text += &format!("\n{at:>10} {took:>10}  {}", describe(&name));
    }
    print(&text)
}

fn describe(phase: &str) -> &str {
    match phase {
        "config" => "config read, sent and checked",
        "files" => "files opened",
        "processes" => "processes started",
        "devices" => "images, NICs and console opened",
        "machine" => "machine built",
        "kernel" => "kernel loaded",
        "ready" => "backends connected, every process ready",
        "run" => "first instruction",
        "output" => "first output on COM1",
        "driver" => "first device in use",
        other => other,
    }
}
