//! `domus-net`: see the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use domus_net::{standalone::Standalone, start};

/// The NICs of one domain as vhost-user devices: for dom0 (--control), or one alone on a tap.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Serve the NICs that dom0 sends over this control socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket_path", "fd", "print_capabilities", "tap"])]
    control: Option<PathBuf>,
    #[command(flatten)]
    standalone: Standalone,
}

fn main() -> ExitCode {
    domus_startup::program("domus-net", || match Args::parse() {
        Args { control: Some(path), .. } => start::run(&path).map_err(Into::into),
        Args { standalone, .. } => standalone.run(),
    })
}
