//! `domus events`: prints one line for each event, until the command is interrupted or dom0 ends.

use std::path::Path;
use std::pin::pin;

use anyhow::{Context, bail};
use clap::Args;
use domus_api::{Dom0Client, EventInfo};
use futures_util::StreamExt;
use glob::Pattern;
use shared_abi::time::written;

use crate::client::{answer, connect};
use crate::output::print;

/// The command line of `events`.
#[derive(Debug, Args)]
pub struct EventsArgs {
    /// Only to these: names, or patterns such as 'web*'
    names: Vec<String>,
    /// What dom0 remembers comes first
    #[arg(long)]
    since_start: bool,
    /// Print a JSON object a line
    #[arg(long)]
    json: bool,
}

/// Prints events of the domains that `names` fit, or all.
///
/// # Errors
/// A pattern that is none, or the service's end.
pub async fn follow(dir: Option<&Path>, args: EventsArgs) -> anyhow::Result<()> {
    let EventsArgs { names, since_start, json } = args;
    let patterns = names.iter().map(|name| {
        Pattern::new(name).with_context(|| format!("\"{name}\" is no pattern: *, ? and [a-z] are understood"))
    });
    let patterns = patterns.collect::<anyhow::Result<Vec<_>>>()?;
    let mut connection = connect(dir).await?;
    let events = connection.events(since_start).await.context("the dom0 service gave no answer")?;
    let mut events = pin!(events);
    while let Some(event) = events.next().await {
        let event = answer(event)?;
        let of = event.domain.as_deref().unwrap_or("Domain-0");
        if patterns.is_empty() || patterns.iter().any(|pattern| pattern.matches(of)) {
            print(&if json { serde_json::to_string(&event)? } else { text(&event) })?;
        }
    }
    bail!("the dom0 service has hung up: see whether it still runs")
}

fn text(event: &EventInfo) -> String {
    let EventInfo { time_ms, domain, id, kind, detail, missed, .. } = event;
    let lost =
        if *missed > 0 { format!("({missed} events before this one are lost)\n") } else { String::new() };
    let who =
        domain.as_deref().map_or("Domain-0".into(), |name| format!("{name} ({})", id.unwrap_or_default()));
    let detail = detail.as_ref().map_or(String::new(), |detail| format!(": {detail}"));
    format!("{lost}{} {who} {kind}{detail}", written(*time_ms))
}
