//! `cargo xtask bench net`: the net backend and the switch beside their peers, which `domus-bench` measures.

use anyhow::Result;
use clap::Args;

use super::program;
use crate::command::{command, run};
use crate::packages::{Consent, Need, is_root};

/// What `domus-bench` is told.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each program runs in each case.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long each time, in seconds.
    #[arg(long, default_value_t = 1)]
    seconds: u32,
    /// Measure only the cases whose names contain this.
    #[arg(long = "case", value_name = "NAME", default_value = "")]
    name: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Builds what is measured as it is shipped, and measures it in a network namespace of its own.
pub fn net(consent: Consent, options: &Options) -> Result<()> {
    let (bin, program) = program(consent, Need::NetBench, &["domus-net", "domus-switch"])?;
    let mut bench = if is_root() {
        command(&program.display().to_string(), ["--bin"])
    } else {
        command("sudo", [&program.display().to_string(), "--bin"])
    };
    bench.arg(&bin).arg("net").args(["--case", &options.name]);
    bench.args(["--rounds", &options.rounds.to_string(), "--seconds", &options.seconds.to_string()]);
    bench.args(options.json.then_some("--json"));
    run(&mut bench)
}
