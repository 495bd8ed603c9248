//! `domus-net` and `domus-switch`, DPDK's testpmd, and plain loops on the same taps: measured in one run, with one
//! driver and no guest.
//!
//! ```text
//!   driver on one CPU ══ vhost-user, one queue pair ══ backend on another CPU ── tap ── packet socket
//!                                              read and write, in a loop, on it ─┘
//! ```
//!
//! Taps and bridges are in a network namespace of the bench's own. For the way to a guest the tap's queue is filled
//! first, and the time to empty it is measured: whoever sends is not in the figure.
//!
//! | module | does |
//! |---|---|
//! | [`cases`], [`frames`] | the rows of the table, the programs that are compared, what is sent: pure |
//! | [`driver`] | the driver |
//! | [`wire`] | taps and packet sockets |
//! | [`backend`] | the programs on the other side |
//! | [`loops`] | the limit |
//! | [`measure`] | the rounds |
//! | [`report`] | medians and ratios, printed |

mod backend;
mod cases;
mod driver;
mod frames;
mod loops;
mod measure;
mod report;
mod wire;

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::cpu::Places;
use crate::host;
use cases::{CASES, Case};
use measure::{Plan, WARM_UP};

/// Measures domus-net and domus-switch beside testpmd and plain loops. Needs root.
#[derive(Debug, Args)]
pub struct Options {
    /// How often each program runs in each case.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each time, in seconds.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Measure only the cases whose names contain this.
    #[arg(long = "case", value_name = "NAME", default_value = "")]
    name: String,
    /// One JSON object a line.
    #[arg(long)]
    json: bool,
}

/// Measures, and prints what came out.
///
/// # Errors
/// No such case; a program that did not run, which its line says.
pub fn run(args: &Options, bin: &Path, folder: &Path) -> Result<()> {
    let cases: Vec<&Case> = CASES.iter().filter(|case| case.name.contains(&args.name)).collect();
    if cases.is_empty() {
        let names: Vec<&str> = CASES.iter().map(|case| case.name).collect();
        bail!("no case contains \"{}\": there are {}", args.name, names.join(", "));
    }
    wire::own_network()?;
    let places = Places::take()?;
    let plan = Plan { bin, folder, places, rounds: args.rounds, time: Duration::from_secs(args.seconds) };
    if !args.json {
        host::describe().iter().for_each(|line| println!("{line}"));
        println!(
            "driver on CPU {}; backends and loops on CPU {}; bridge: both on both",
            places.client, places.backend
        );
        println!(
            "medians of {} rounds of {} s, interleaved, {WARM_UP:?} before each",
            args.rounds, args.seconds
        );
        println!("{}", report::head());
    }
    let mut failed = false;
    for case in &cases {
        let results = plan.case(case);
        failed |= results.iter().any(|(_, rounds)| rounds.is_err());
        let lines = if args.json { report::json(case, &results) } else { report::lines(case, &results) };
        lines.iter().for_each(|line| println!("{line}"));
    }
    if !args.json {
        println!(
            "\"s/Mpackets\", \"s/GiB\": CPU time of the backend; \"others\": CPU that other processes used meanwhile"
        );
        println!("dpdk-testpmd {}", backend::words(places, Some("bench0")).join(" "));
    }
    if failed {
        bail!("some programs did not run in some cases");
    }
    Ok(())
}
