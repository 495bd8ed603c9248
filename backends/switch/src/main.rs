//! `domus-switch`: see the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use domus_switch::start;

/// A switch between the NICs of several domains, all of whose memory it maps.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Wait on this control socket for dom0's start message.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
}

fn main() -> ExitCode {
    domus_startup::program("domus-switch", || start::run(&Args::parse().control))
}
