//! `cargo xtask bench block`: the block backend beside its peers, which `domus-bench` measures.

use anyhow::Result;
use clap::Args;

use super::program;
use crate::command::{command, run};
use crate::packages::{Consent, Need};
use crate::workspace;

/// What `domus-bench` is told.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each program runs in each case.
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// How long each time, in seconds.
    #[arg(long, default_value_t = 3)]
    seconds: u32,
    /// Measure only the cases whose names contain this.
    #[arg(long = "case", value_name = "NAME", default_value = "")]
    name: String,
    /// Measure from inside the mini guest too; needs a /dev/kvm, of any kind.
    #[arg(long)]
    guest: bool,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Builds what is measured as it is shipped, and measures it on the file system of the build folder.
pub fn block(consent: Consent, options: &Options) -> Result<()> {
    let packages: &[&str] = if options.guest { &["domus-block", "domu-runner"] } else { &["domus-block"] };
    let (bin, program) = program(consent, Need::BlockBench, packages)?;
    let mut bench = command(&program.display().to_string(), ["--bin"]);
    bench.arg(&bin).arg("block").arg("--disk").arg(workspace::target()).args(["--case", &options.name]);
    bench.args(["--rounds", &options.rounds.to_string(), "--seconds", &options.seconds.to_string()]);
    bench.args(options.guest.then_some("--guest")).args(options.json.then_some("--json"));
    run(&mut bench)
}
