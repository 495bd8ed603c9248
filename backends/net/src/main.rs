//! `domus-net`: see the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use domus_net::{alone::Alone, start};

/// The NICs of one domain as vhost-user devices: for dom0 (--control), or one alone on a tap.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Serve the NICs that dom0 sends over this control socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket_path", "fd", "print_capabilities", "tap"])]
    control: Option<PathBuf>,
    #[command(flatten)]
    alone: Alone,
}

fn main() -> ExitCode {
    domus_startup::threads::one_heap();
    let args = Args::parse();
    let served = match args.control {
        Some(control) => start::run(&control).map_err(Into::into),
        None => args.alone.run(),
    };
    domus_startup::report("domus-net", served)
}
