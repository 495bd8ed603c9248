//! `domus-console`: see the library.

use std::path::PathBuf;

use clap::Parser;

/// The console of one domain: keeps what the guest prints, shows it to many, lets one answer.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Args {
    /// Serve the console that dom0 sends over this control socket.
    #[arg(long, value_name = "PATH")]
    control: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    Ok(domus_console::start::run(&args.control)?)
}
