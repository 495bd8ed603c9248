//! The dom0 service: in the foreground, for a service manager or a terminal.
//!
//! Domains outlive dom0, however it ends: the next dom0 takes them over. SIGTERM and SIGHUP end dom0 in this way, once
//! no domain is being built or removed. SIGINT (Ctrl-C) shuts every domain down (ACPI power button), waits `--grace`
//! seconds at most, destroys the remaining domains, and ends dom0; a second SIGINT destroys them at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use dom0::api::{Samples, Server};
use dom0::domain::environment::CORES;
use dom0::domain::environment::Environment;
use dom0::domain::events::Kind;
use dom0::host::run_dir::{self, RunDir};
use dom0::log;
use dom0::metrics::{Metrics, Where};
use dom0::process::{self, Direct, Supervisor, Systemd};
use dom0::service::Dom0;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::signal::unix::{SignalKind, signal};

/// The control domain: starts and supervises domains. Drive it with `domus`.
#[derive(Debug, Parser)]
#[command(name = "dom0", version)]
struct Args {
    /// Where sockets and state are kept while domains run [default: /run/domus]
    #[arg(long, value_name = "DIR")]
    run_dir: Option<PathBuf>,
    /// Where networks are defined
    #[arg(long, value_name = "DIR", default_value = run_dir::CONFIG)]
    config_dir: PathBuf,
    /// Where what is said about each domain is kept, unless the journal has it [default: /var/log/domus, or
    /// ~/.local/state/domus for others than root]
    #[arg(long, value_name = "DIR")]
    log_dir: Option<PathBuf>,
    /// Where domu-runner and the backends are [default: beside this program, then /usr/libexec/domus]
    #[arg(long, value_name = "DIR")]
    libexec_dir: Option<PathBuf>,
    /// Where cores go that nobody has named a file for
    #[arg(long, value_name = "DIR", default_value = CORES)]
    dump_dir: PathBuf,
    /// Who starts the processes of domains
    #[arg(long, value_enum, default_value_t = Starter::Auto)]
    supervisor: Starter,
    /// Create domains also where their RAM is more than the host's RAM and swap, with that of the others
    #[arg(long)]
    overcommit: bool,
    /// Answer Prometheus here: ADDRESS:PORT, or the path of a socket to make
    #[arg(long, value_name = "WHERE")]
    metrics: Option<Where>,
    /// Answer it on an address that others reach, too: the metrics name domains and tell what they do
    #[arg(long, requires = "metrics")]
    metrics_public: bool,
    /// How long domains may take to shut down when the service is interrupted (Ctrl-C)
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    grace: u64,
}

/// Within this time no domain is being built or removed any more, as far as that is worth waiting for.
const QUIET: Duration = Duration::from_secs(10);

/// Who starts processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Starter {
    /// systemd where dom0 is the service of the installed package, otherwise dom0 itself
    Auto,
    /// dom0 itself, as its children
    Direct,
    /// systemd, as units of their own
    Systemd,
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        local.block_on(&runtime, serve(args))
    });
    let code = match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            dom0::log::stderr::line(format_args!("dom0: {error:#}"));
            ExitCode::FAILURE
        }
    };
    log::flush();
    code
}

/// Allows as many descriptors as the system does: each domain needs about a dozen, and the usual 1024 is for `select`.
fn descriptors() {
    if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
    }
}

/// Whoever is to start processes.
fn starter(choice: Starter, libexec: Option<PathBuf>, run: &RunDir) -> anyhow::Result<Rc<dyn Supervisor>> {
    // The units name these directories.
    let usual = libexec.is_none() && run.path() == Path::new("/run/domus");
    match choice {
        Starter::Systemd if !usual => {
            anyhow::bail!(
                "--supervisor systemd: its units know no --run-dir and no --libexec-dir: leave them out"
            )
        }
        Starter::Auto if !usual || !process::is_at_hand() => Ok(Rc::new(Direct::new(libexec, false))),
        Starter::Direct => Ok(Rc::new(Direct::new(libexec, false))),
        Starter::Systemd | Starter::Auto => Ok(Rc::new(Systemd::new().map_err(anyhow::Error::msg)?)),
    }
}

async fn serve(args: Args) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    descriptors();
    if !log::is_at_hand()
        && let Some(folder) = args.log_dir.or_else(log::file::default_folder)
    {
        log::file::keep_in(folder);
    }
    let run = RunDir::open(&args.run_dir.unwrap_or_else(domus_api::default_run_dir))?;
    let checks = Rc::new(Direct::new(args.libexec_dir.clone(), true));
    let supervisor = starter(args.supervisor, args.libexec_dir, &run)?;
    let env = Environment::of_service(&run, &args.config_dir, supervisor);
    let cores = std::path::absolute(args.dump_dir)?;
    let dom0 = Dom0::new(Environment { cores, checks, overcommit: args.overcommit, ..env });
    let _lock = dom0.lock()?;
    let server = Server::bind(&dom0)?;
    let metrics = args.metrics.map(|at| Metrics::bind(at, args.metrics_public)).transpose()?;
    dom0.networks().begin().await;
    dom0.adopt().await;
    dom0.networks().settle();
    tokio::task::spawn_local(dom0::service::autostart::start(dom0.clone()));
    let version = Some(env!("CARGO_PKG_VERSION").into());
    dom0.env().events.tell(None, Kind::Dom0Started, version);
    let samples = Rc::new(Samples::new(dom0.clone()));
    if let Some(metrics) = metrics {
        dom0::log::stderr::line(format_args!("metrics are at {metrics}"));
        tokio::task::spawn_local(metrics.serve(samples.clone()));
    }
    dom0::service::notify::ready();
    tokio::task::spawn_local(dom0::service::notify::keep_alive());
    dom0::log::stderr::line(format_args!("dom0 serves {}", dom0.run_dir().api_socket().display()));
    let (leave, succeed) = tokio::select! {
        never = server.serve(&dom0, &samples) => match never {},
        _ = terminate.recv() => (true, false),
        _ = hangup.recv() => (true, false),
        _ = interrupt.recv() => (false, false),
        () = dom0.succeeded() => (true, true),
    };
    drop(server);
    dom0::service::notify::stopping();
    let running = dom0.list().len();
    if leave {
        dom0.quiet(QUIET).await;
        dom0::log::stderr::line(format_args!("dom0 stops: {running} domain(s) run on, for the next dom0"));
        log::flush();
        if succeed {
            let error = dom0::service::replace::succeed();
            dom0::log::stderr::line(format_args!("dom0 cannot start the installed program: {error}"));
            log::flush();
        }
        // Without a destructor: those end processes.
        std::process::exit(i32::from(succeed));
    }
    if running > 0 {
        dom0::log::stderr::line(format_args!(
            "dom0 stops: shutting {running} domain(s) down, for {} s at most",
            args.grace
        ));
    }
    tokio::select! {
        () = dom0.retire(Duration::from_secs(args.grace)) => {}
        _ = interrupt.recv() => dom0.destroy_all().await,
    }
    dom0.networks().stop_all().await;
    Ok(())
}
