//! `domus why`: what is amiss with a domain.

use std::path::Path;

use clap::Args;
use domus_api::Dom0Client;
use shared_abi::time::written;

use crate::client::{answer, connect};
use crate::output::print;

/// The command line of `why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The domain's name or ID
    name: String,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// `domus why`.
pub async fn run(dir: Option<&Path>, args: WhyArgs) -> anyhow::Result<()> {
    let WhyArgs { name, json } = args;
    let why = answer(connect(dir).await?.why(&name).await)?;
    if json {
        return print(&serde_json::to_string_pretty(&why)?);
    }
    let mut text = format!("{name} is {}", why.state);
    if why.troubles.is_empty() {
        text += ", and nothing is amiss";
    }
    for trouble in &why.troubles {
        let since =
            trouble.since.map_or(String::new(), |since| format!(" (since {})", written(since * 1000)));
        text += &format!("\n{}: {}{since}\n  next: {}", trouble.layer, trouble.cause, trouble.next);
    }
    text += match why.core_scheduling {
        Some(true) => "\nits vCPUs share a core with nobody else (core scheduling is on)",
        Some(false) => "\ncore scheduling is off: this host has no SMT, or its kernel no core scheduling",
        None => "",
    };
    print(&text)
}
