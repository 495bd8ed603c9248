//! `domus-block`: the disks of one domain, or one disk for any vhost-user frontend.

use std::error::Error;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use domus_block::standalone::{self, Alone};
use domus_block::start;
use domus_startup::threads;

/// Serve disks as vhost-user-blk devices.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Wait on this control socket for dom0's start message. Goes with no other argument.
    #[arg(long, value_name = "PATH", exclusive = true)]
    control: Option<PathBuf>,
    #[command(flatten)]
    alone: Alone,
}

fn main() -> ExitCode {
    threads::one_heap();
    let args = Args::parse();
    if args.alone.socket.print_capabilities {
        println!("{}", standalone::capabilities());
        return ExitCode::SUCCESS;
    }
    let served: Result<(), Box<dyn Error>> = match &args.control {
        Some(path) => start::run(path).map_err(Into::into),
        None => standalone::run(&args.alone).map_err(Into::into),
    };
    domus_startup::report("domus-block", served)
}
