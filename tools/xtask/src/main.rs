//! What builds, tests, demonstrates and measures Domus: `cargo xtask --help`.

mod command;
mod demo;
mod fuzz;
mod images;
mod lab;
mod packages;
mod test;
mod workspace;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use packages::Consent;

/// Builds, tests, demonstrates and measures Domus.
///
/// Missing Debian packages and cargo tools are listed and installed after a question. Images are made of Debian's own packages and
/// kept in target/lab/images.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Xtask {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Boot a Debian guest with `domus run` on this terminal; Ctrl-] leaves.
    ///
    /// Where the machine cannot run ordinary guests, the same runs inside the nested lab: a Debian under QEMU's emulation whose
    /// /dev/kvm is real.
    Demo {
        #[command(flatten)]
        yes: Yes,
        /// Without a terminal: check disk, NIC and console from inside the guest, a line for each; exit status 0 or 1.
        #[arg(long)]
        smoke: bool,
    },
    /// Run everything that CI runs: fmt, clippy, doc, unit and integration tests, fuzz targets, strangers, lab, demo.
    Test {
        #[command(flatten)]
        yes: Yes,
    },
    /// Run the lab's scenarios alone: real guests under a real dom0.
    Lab {
        #[command(flatten)]
        yes: Yes,
        /// Scenarios to run (`boot-6.1-cloud-1cpu-256MiB`); all when none is named.
        names: Vec<String>,
    },
    /// Boot Debian in QEMU with Domus' backends as its vhost-user devices.
    Strangers {
        #[command(flatten)]
        yes: Yes,
    },
    /// Install what the other commands need, and nothing else.
    Setup {
        #[command(flatten)]
        yes: Yes,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct Yes {
    /// Install what is missing without asking (as CI=true in the environment does).
    #[arg(long)]
    yes: bool,
}

impl Yes {
    fn consent(self) -> Consent {
        Consent::from_flag(self.yes)
    }
}

fn main() -> Result<()> {
    match Xtask::parse().task {
        Task::Demo { yes, smoke } => demo::demo(yes.consent(), smoke),
        Task::Test { yes } => test::test(yes.consent()),
        Task::Lab { yes, names } => test::lab_only(yes.consent(), &names),
        Task::Strangers { yes } => test::strangers_only(yes.consent()),
        Task::Setup { yes } => {
            packages::install_packages(yes.consent())?;
            packages::install_cargo_tools(yes.consent())
        }
    }
}
