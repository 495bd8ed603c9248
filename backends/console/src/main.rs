//! `domus-console`: see the library.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use domus_console::{standalone::Standalone, start};

/// The console of one domain, for dom0 (--control), or one alone as a virtio-console device: it keeps what the guest
/// prints, shows it to many, and lets one answer.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Serve the console that dom0 sends over this control socket.
    #[arg(long, value_name = "PATH", conflicts_with_all = ["socket_path", "fd", "print_capabilities", "console_socket"])]
    control: Option<PathBuf>,
    #[command(flatten)]
    standalone: Standalone,
}

fn main() -> ExitCode {
    domus_startup::program("domus-console", || match Args::parse() {
        Args { control: Some(path), .. } => start::run(&path).map_err(Into::into),
        Args { standalone, .. } => standalone.run(),
    })
}
