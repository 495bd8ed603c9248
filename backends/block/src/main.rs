//! `domus-block`: the disks of one domain, or one disk for any vhost-user frontend.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use domus_block::standalone::{self, Standalone};
use domus_block::start;

/// Serve disks as vhost-user-blk devices.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Wait on this control socket for dom0's start message. Goes with no other argument.
    #[arg(long, value_name = "PATH", exclusive = true)]
    control: Option<PathBuf>,
    #[command(flatten)]
    standalone: Standalone,
}

fn main() -> ExitCode {
    domus_startup::program("domus-block", || match Args::parse() {
        Args { control: Some(path), .. } => start::run(&path).map_err(Box::<dyn Error>::from),
        Args { standalone, .. } => standalone::run(&standalone).map_err(Into::into),
    })
}
