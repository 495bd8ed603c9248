//! `domus why`: what is amiss with a domain, or what its processes could reach.

use std::path::Path;

use clap::Args;
use domus_api::{Dom0Client, ReachInfo};
use shared_abi::time::written;

use crate::client::{answer, connect};
use crate::output::print;

/// The command line of `why`.
#[derive(Debug, Args)]
pub struct WhyArgs {
    /// The domain's name or ID
    name: String,
    /// Tell instead what each of its processes could reach if it were taken over, as the kernel has it
    #[arg(long)]
    reach: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// `domus why`.
pub async fn run(dir: Option<&Path>, args: WhyArgs) -> anyhow::Result<()> {
    let WhyArgs { name, reach, json } = args;
    let mut connection = connect(dir).await?;
    if reach {
        let reaches = answer(connection.reach(&name).await)?;
        return print(&match json {
            true => serde_json::to_string_pretty(&reaches)?,
            false => reaches.processes.iter().map(text).collect::<Vec<_>>().join("\n"),
        });
    }
    let why = answer(connection.why(&name).await)?;
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
    if why.core_scheduling == Some(true) {
        text += "\nits vCPUs share a core with nobody else (core scheduling is on)";
    }
    print(&text)
}

/// What one process could reach, a line for each kind of thing.
fn text(process: &ReachInfo) -> String {
    let ReachInfo { program, pid, uid, capabilities, no_new_privileges, filters, root, .. } = process;
    let capabilities = match capabilities {
        0 => "no capability".into(),
        some => format!("capabilities {some:#x}"),
    };
    let calls = match filters {
        0 => "every system call".into(),
        lists => format!("what {lists} list(s) of system calls allow"),
    };
    let programs =
        if *no_new_privileges { "no more by a program" } else { "more by a program that has more" };
    let shared = list(&process.shared_namespaces, "no namespace of dom0's");
    let mut lines = vec![
        format!("{program} (pid {pid}, user {uid}): {capabilities}, {calls}, {programs}"),
        format!("  shares       {shared}"),
        format!("  root         {}", list(root, "empty")),
        format!("  network      {}", list(&process.interfaces, "none")),
    ];
    lines.push(match process.longest_file {
        None => "  files        may grow without a limit".into(),
        Some(bytes) => format!("  files        may grow to {bytes} bytes"),
    });
    let access = |writable: bool| if writable { "read and write" } else { "read" };
    for of in &process.descriptors {
        lines.push(format!("  descriptor   {} × {} ({})", of.count, of.what, access(of.writable)));
    }
    for of in &process.memory {
        let mib = of.bytes.div_ceil(1 << 20);
        lines.push(format!("  memory       {mib} MiB of \"{}\" ({})", of.what, access(of.writable)));
    }
    lines.join("\n")
}

fn list(names: &[String], none: &str) -> String {
    if names.is_empty() { none.into() } else { names.join(" ") }
}
