//! `domus-block` and what people would use instead of it, measured in one run with one client and no guest.
//!
//! ```text
//!   client on one CPU ══ vhost-user, one queue ══ backend on another CPU ── file
//!                                                          fio on it ─────┘
//! ```
//!
//! | module | does |
//! |---|---|
//! | [`cases`] | the rows of the table and the programs that are compared: pure |
//! | [`file`](mod@file) | the file they all read and write |
//! | [`client`] | the vhost-user-blk driver |
//! | [`backend`] | `domus-block` or `qemu-storage-daemon` on a socket |
//! | [`fio`] | fio on the file itself |
//! | [`guest`] | the mini guest in front of `domus-block` |
//! | [`measure`] | the rounds |
//! | [`report`] | medians and ratios, printed |

mod backend;
mod cases;
mod client;
mod file;
mod fio;
mod guest;
mod measure;
mod report;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Result, bail};
use clap::Args;

use crate::cpu::Places;
use crate::host;
use backend::Served;
use cases::{CASES, Case, Program, Storage};
use measure::{Plan, TMPFS, WARM_UP};

/// Measures domus-block beside qemu-storage-daemon and fio.
#[derive(Debug, Args)]
pub struct Options {
    /// A folder on the file system that is measured past the page cache; 1 GiB is needed.
    #[arg(long)]
    disk: PathBuf,
    /// How often each program runs in each case.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each time, in seconds.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Measure only the cases whose names contain this.
    #[arg(long = "case", value_name = "NAME", default_value = "")]
    name: String,
    /// Measure from inside the mini guest too; needs a /dev/kvm.
    #[arg(long)]
    guest: bool,
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
    let places = Places::take()?;
    let time = Duration::from_secs(args.seconds);
    let (rounds, guest) = (args.rounds, args.guest);
    let plan = Plan { bin, folder, disk: &args.disk, places, guest, rounds, time };
    if !args.json {
        describe(&args.disk).iter().for_each(|line| println!("{line}"));
        println!("client on CPU {}; backends, and fio, on CPU {}", places.client, places.backend);
        println!(
            "medians of {} rounds of {} s, interleaved, {WARM_UP:?} before each",
            args.rounds, args.seconds
        );
        println!("{}", report::head());
    }
    let mut failed = false;
    for case in &cases {
        let results = plan.case(case)?;
        failed |= results.iter().any(|(_, rounds)| rounds.is_err());
        let lines = if args.json { report::json(case, &results) } else { report::lines(case, &results) };
        lines.iter().for_each(|line| println!("{line}"));
    }
    if !args.json {
        println!(
            "\"CPU µs\": of the backend, or of fio, for each request; \"others\": CPU that other processes used meanwhile"
        );
        commands(&cases, time);
    }
    if failed {
        bail!("some programs did not run in some cases");
    }
    Ok(())
}

/// Prints how each program was started, once for each storage.
fn commands(cases: &[&Case], time: Duration) {
    let file = Path::new("FILE");
    for storage in [Storage::Direct, Storage::Tmpfs, Storage::Null] {
        let Some(case) = cases.iter().find(|case| case.storage == storage) else { continue };
        for program in Program::ALL.into_iter().filter(|program| program.does(case)) {
            let words = match program {
                Program::Guest => continue,
                Program::Fio => fio::command_line(case, file, WARM_UP, time),
                _ => backend::command_line(program, Served { storage, file: Some(file) }),
            };
            println!("{}", words.join(" "));
        }
    }
}

/// What the figures depend on and does not show in them.
fn describe(disk: &Path) -> Vec<String> {
    let mut lines = host::describe();
    lines.extend([
        format!("direct, cache: {} in {}", host::file_system(disk), disk.display()),
        format!("tmpfs: {} in {TMPFS}", host::file_system(Path::new(TMPFS))),
        format!(
            "qemu-storage-daemon: {}",
            host::version("qemu-storage-daemon").replace("qemu-storage-daemon version ", "")
        ),
        format!("fio: {}", host::version("fio")),
    ]);
    lines
}
