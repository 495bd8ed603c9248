//! `domus-bench`: Domus' backends and what people would use instead of them, measured in one run, with a client of our
//! own and no guest; and many guests together.
//!
//! The rounds are interleaved (A B C A B C …) and each figure is a median. Nothing fails on a figure. Whatever ends
//! this process, nothing stays: files have no name, the backends die with their parent, and the sockets' folder is
//! removed on Ctrl-C too.
//!
//! | module | does |
//! |---|---|
//! | [`block`] | `domus-block` beside `qemu-storage-daemon` and fio |
//! | [`net`] | `domus-net` and `domus-switch` beside plain loops on taps and DPDK's testpmd |
//! | [`density`] | hundreds of guests under one dom0 |
//! | [`cpu`] | who used the processors |
//! | [`host`] | the machine and the versions |

mod block;
mod cpu;
mod density;
mod host;
mod net;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use nix::sys::signal::{SigSet, Signal};

/// Measures Domus' backends beside their peers.
#[derive(Debug, Parser)]
struct Args {
    /// The folder with Domus' programs.
    #[arg(long)]
    bin: PathBuf,
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    Block(block::Options),
    Net(net::Options),
    Density(density::Options),
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("domus-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let bin =
        args.bin.canonicalize().with_context(|| format!("there is no folder {}", args.bin.display()))?;
    let folder = tempfile::Builder::new().prefix("domus-bench-").tempdir()?;
    remove_on_interrupt(folder.path())?;
    match &args.what {
        What::Block(options) => block::run(options, &bin, folder.path()),
        What::Net(options) => net::run(options, &bin, folder.path()),
        What::Density(options) => density::run(options, &bin, folder.path()),
    }
}

/// Removes the folder before Ctrl-C or a polite kill ends this process; its children are killed by the kernel.
fn remove_on_interrupt(folder: &Path) -> Result<()> {
    let mut signals = SigSet::empty();
    [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    // Before any other thread is there, which inherits it.
    signals.thread_block().context("cannot block signals")?;
    let folder = folder.to_owned();
    std::thread::spawn(move || {
        if let Ok(signal) = signals.wait() {
            let _ = std::fs::remove_dir_all(&folder);
            std::process::exit(128 + signal as i32);
        }
    });
    Ok(())
}

/// The middle one, or the mean of the two in the middle; 0 of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = |index: usize| values.get(index).copied().unwrap_or_default();
    (at(values.len() / 2) + at(values.len().saturating_sub(1) / 2)) / 2.0
}
