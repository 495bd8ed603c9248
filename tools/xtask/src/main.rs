//! Builds, tests, demonstrates and measures Domus: `cargo xtask --help`.

mod bench;
mod chaos;
mod command;
mod deb;
mod demo;
#[cfg(test)]
mod docs;
mod fuzz;
mod images;
mod lab;
mod manual;
mod packages;
mod terminal;
mod test;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};

use packages::Consent;
use workspace::Profile;

/// Builds, tests, demonstrates and measures Domus.
///
/// Missing Debian packages and cargo tools are listed and installed after a question. Images are made of Debian's own
/// packages and kept in target/lab/images.
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
    /// Where the machine cannot run ordinary guests, the same runs inside the nested lab: a Debian under QEMU's
    /// emulation whose /dev/kvm is real.
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
    /// Kill dom0, backends, consoles and commands at random while guests verify their data.
    Chaos {
        /// For how long; a night's run: 600.
        #[arg(long, default_value_t = 60)]
        seconds: u32,
        /// Which kills [default: the time of day; it is printed]
        #[arg(long)]
        seed: Option<u64>,
        /// Take the binaries as the last build left them.
        #[arg(long)]
        no_build: bool,
    },
    /// Run every fuzz target for some seconds on its saved corpus.
    Fuzz,
    /// Run the lab's scenarios alone: real guests under a real dom0.
    Lab {
        #[command(flatten)]
        yes: Yes,
        /// Scenarios to run (`boot-6.1-cloud-1cpu-256MiB`); all when none is named.
        names: Vec<String>,
        /// Take the binaries as the last build left them.
        #[arg(long)]
        no_build: bool,
    },
    /// Run a shell script in the lab's machine, with Domus' binaries in /run/bin and the images in /lab/images.
    ///
    /// Without a script: a shell on this terminal; `poweroff -f` ends it.
    Outer {
        #[command(flatten)]
        yes: Yes,
        /// The script.
        script: Option<PathBuf>,
        /// Files to place in /lab/extra.
        #[arg(long)]
        with: Vec<PathBuf>,
        /// Let systemd be the machine's first process, as on any Debian.
        #[arg(long)]
        systemd: bool,
        /// Take the binaries as the last build left them.
        #[arg(long)]
        no_build: bool,
    },
    /// Install the Debian package in a lab's machine with systemd and run its scenarios.
    Services {
        #[command(flatten)]
        yes: Yes,
        /// Take the binaries as the last build left them.
        #[arg(long)]
        no_build: bool,
    },
    /// Boot Debian in QEMU with Domus' backends as its vhost-user devices.
    Strangers {
        #[command(flatten)]
        yes: Yes,
    },
    /// Print figures: they are looked at, nothing fails on them.
    Bench {
        #[command(subcommand)]
        bench: Bench,
    },
    /// Make the images and write the list of them to FILE, for `domus-lab` by hand.
    Images {
        #[command(flatten)]
        yes: Yes,
        /// Where the list goes.
        file: PathBuf,
    },
    /// Make the Debian package, and print where it is.
    Deb {
        #[command(flatten)]
        yes: Yes,
        /// How the programs are built.
        #[arg(long, value_enum, default_value_t = Profile::Release)]
        profile: Profile,
    },
    /// Install what all the other commands need, and nothing else.
    Setup {
        #[command(flatten)]
        yes: Yes,
    },
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Time from `domus create` to the guest, and what the processes weigh.
    Start {
        #[command(flatten)]
        yes: Yes,
        /// One JSON object a line.
        #[arg(long)]
        json: bool,
    },
    /// The block backend beside qemu-storage-daemon and fio: rates, latencies, CPU.
    Block {
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        options: bench::block::Options,
    },
    /// The net backend and the switch beside testpmd and plain loops: rates, an echo's time, CPU.
    Net {
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        options: bench::net::Options,
    },
    /// Many small guests on one host: how fast they come, and what they cost while idle.
    Density {
        #[command(flatten)]
        yes: Yes,
        #[command(flatten)]
        options: bench::density::Options,
    },
}

#[derive(Clone, Copy, Debug, Args)]
struct Yes {
    /// Install what is missing without asking (as CI=true in the environment does); whether something may be removed
    /// or set back for it is asked all the same.
    #[arg(long)]
    yes: bool,
}

impl Yes {
    fn consent(self) -> Consent {
        Consent::from_flag(self.yes)
    }
}

fn main() -> ExitCode {
    match run(Xtask::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Images, bridges and guests are root's work: an ordinary user builds, and does the rest through sudo.
fn through_sudo() -> Result<()> {
    workspace::build_binaries()?;
    println!("Going on as root, through sudo");
    let environment = "--preserve-env=PATH,HOME,TERM,CI,CARGO_HOME,CARGO_TARGET_DIR,RUSTUP_HOME";
    let program = std::env::current_exe()?;
    command::run(command::command("sudo", [environment]).arg(program).args(std::env::args_os().skip(1)))
}

fn run(task: Task) -> Result<()> {
    if !packages::is_root() && !matches!(task, Task::Setup { .. } | Task::Fuzz | Task::Deb { .. }) {
        return through_sudo();
    }
    match task {
        Task::Demo { yes, smoke } => demo::demo(yes.consent(), smoke),
        Task::Test { yes } => test::test(yes.consent()),
        Task::Lab { yes, names, no_build } => test::lab_only(yes.consent(), &names, !no_build),
        Task::Outer { yes, script, with, systemd, no_build } => {
            lab::script(yes.consent(), script.as_deref(), &with, systemd, !no_build)
        }
        Task::Services { yes, no_build } => test::services_only(yes.consent(), !no_build),
        Task::Strangers { yes } => test::qemu_interop_only(yes.consent()),
        Task::Chaos { seconds, seed, no_build } => {
            let bin = if no_build { workspace::binaries() } else { workspace::build_binaries()? };
            chaos::chaos(&bin, seconds, seed)
        }
        Task::Fuzz => fuzz::short_runs(),
        Task::Bench { bench: Bench::Start { yes, json } } => bench::start::start(yes.consent(), json),
        Task::Bench { bench: Bench::Block { yes, options } } => bench::block::block(yes.consent(), &options),
        Task::Bench { bench: Bench::Net { yes, options } } => bench::net::net(yes.consent(), &options),
        Task::Bench { bench: Bench::Density { yes, options } } => {
            bench::density::density(yes.consent(), &options)
        }
        Task::Images { yes, file } => {
            packages::install_packages(yes.consent(), &[packages::Need::Images, packages::Need::TestGuest])?;
            images::images(images::KERNELS)?.save(&file)
        }
        Task::Deb { yes, profile } => deb::deb(yes.consent(), profile),
        Task::Setup { yes } => {
            packages::install_packages(yes.consent(), &[packages::Need::Tests])?;
            packages::install_cargo_tools(yes.consent())
        }
    }
}
