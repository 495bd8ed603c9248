//! Runs the lab's scenarios on hosts that run ordinary guests, and those of QEMU with Domus' backends on any host.
//! Prints a line for each scenario, then the count.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use domus_tests::images::Images;
use domus_tests::{lab, qemu_interop, smoke};

/// Runs Domus' scenarios with real guests.
#[derive(Debug, Parser)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Print the names of the lab's scenarios.
    List,
    /// Run scenarios with a dom0 of their own; needs root and a /dev/kvm that runs ordinary guests.
    Scenarios {
        #[command(flatten)]
        place: Place,
        /// Which ones; all when none is named.
        names: Vec<String>,
    },
    /// Install the Debian package and run its scenarios; needs root, systemd and a /dev/kvm that runs ordinary guests.
    Services {
        /// The package.
        #[arg(long)]
        package: PathBuf,
        /// The list of images.
        #[arg(long)]
        images: PathBuf,
        /// A folder to fill, on a file system that holds disk images.
        #[arg(long)]
        folder: PathBuf,
    },
    /// Measure starts; needs what `scenarios` needs.
    Bench {
        #[command(flatten)]
        place: Place,
    },
    /// Measure starts of the mini guest; needs root and any /dev/kvm.
    BenchPlain {
        /// The folder with Domus' binaries.
        #[arg(long)]
        bin: PathBuf,
        /// A folder to work in.
        #[arg(long)]
        folder: PathBuf,
    },
    /// Run the demo without a terminal and check its guest from inside.
    Smoke {
        /// The folder with Domus' binaries.
        #[arg(long)]
        bin: PathBuf,
        /// The demo's config.
        config: PathBuf,
    },
    /// Boot guests in QEMU with Domus' backends; needs root and a network namespace of its own.
    Strangers {
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Debug, clap::Args)]
struct Place {
    /// The list of images.
    #[arg(long)]
    images: PathBuf,
    /// The folder with Domus' binaries.
    #[arg(long)]
    bin: PathBuf,
    /// A folder to fill, on a file system that holds disk images.
    #[arg(long)]
    folder: PathBuf,
}

fn main() -> ExitCode {
    run(Args::parse().command).unwrap_or_else(|error| {
        eprintln!("domus-lab: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(command: Command) -> Result<ExitCode> {
    let tally = match command {
        Command::List => {
            for scenario in lab::scenarios() {
                println!("{}", scenario.name);
            }
            return Ok(ExitCode::SUCCESS);
        }
        Command::Scenarios { place, names } => {
            lab::run(&place.bin, &Images::load(&place.images)?, &place.folder, &names)
        }
        Command::Services { package, images, folder } => {
            lab::services::run(&package, &Images::load(&images)?, &folder)
        }
        Command::Bench { place } => {
            lab::bench::run(&place.bin, &Images::load(&place.images)?, &place.folder)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::BenchPlain { bin, folder } => {
            lab::bench::plain(&bin, &folder)?;
            return Ok(ExitCode::SUCCESS);
        }
        Command::Smoke { bin, config } => smoke::run(&bin, &config),
        Command::Strangers { place } => {
            qemu_interop::run(&place.bin, &Images::load(&place.images)?, &place.folder)
        }
    };
    Ok(if tally.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
