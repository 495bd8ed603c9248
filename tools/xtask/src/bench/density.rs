//! `cargo xtask bench density`: hundreds of small guests under one dom0, which `domus-bench` starts and weighs.

use anyhow::Result;
use clap::Args;

use super::program;
use crate::command::{command, run};
use crate::packages::{Consent, Need, is_root};

/// What `domus-bench` is told.
#[derive(Debug, Args)]
pub struct Options {
    /// How many guests.
    #[arg(long, default_value_t = 500)]
    domains: u32,
    /// How long they are looked at while idle, in seconds.
    #[arg(long, default_value_t = 20)]
    seconds: u32,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// Builds everything as it is shipped, and measures it.
pub fn density(consent: Consent, options: &Options) -> Result<()> {
    let programs = ["dom0", "domus", "domu-runner", "domus-block", "domus-net", "domus-console"];
    let (bin, program) = program(consent, Need::DensityBench, &programs)?;
    let mut bench = if is_root() {
        command(&program.display().to_string(), ["--bin"])
    } else {
        command("sudo", [&program.display().to_string(), "--bin"])
    };
    bench.arg(&bin).arg("density").args(["--domains", &options.domains.to_string()]);
    bench.args(["--seconds", &options.seconds.to_string()]).args(options.json.then_some("--json"));
    run(&mut bench)
}
