//! `domus run`: a dom0 in this process, for one domain, in the foreground.
//!
//! The command ends when the domain does. Ctrl-] (on a terminal), SIGINT, SIGTERM and SIGHUP ask the guest to shut
//! down, for `--grace` seconds at most, and then destroy it; a second one destroys it at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use dom0::config;
use dom0::domain::environment::Environment;
use dom0::domain::error::StartError;
use dom0::domain::error::{Attempted, explain};
use dom0::domain::lifecycle::State;
use dom0::host::run_dir::{CONFIG, RunDir};
use dom0::process::Direct;
use dom0::service::Dom0;
use domus_api::default_run_dir;
use domus_startup::say;
use shared_abi::console::Mode;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::cleanup_process::CleanupProcess;
use crate::attach::{End, Keys, attach};
use crate::terminal::Raw;

/// The command line of `run`.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Its config
    file: PathBuf,
    /// Do not attach to its console
    #[arg(long)]
    no_console: bool,
    /// How long the guest may take to shut down when the command is ended
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    grace: u64,
    /// Where domu-runner and the backends are [default: beside this program, then /usr/libexec/domus]
    #[arg(long, value_name = "DIR")]
    libexec_dir: Option<PathBuf>,
}

/// SIGINT, SIGTERM and SIGHUP.
struct Signals([Signal; 3]);

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self([
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
            signal(SignalKind::hangup())?,
        ]))
    }

    async fn any(&mut self) {
        let [a, b, c] = &mut self.0;
        tokio::select! {
            _ = a.recv() => {}
            _ = b.recv() => {}
            _ = c.recv() => {}
        }
    }
}

/// Runs the domain to its end.
///
/// # Errors
/// That it cannot be started; nothing of it is left.
pub async fn run(dir: Option<&Path>, args: RunArgs) -> anyhow::Result<ExitCode> {
    let ended = run_to_its_end(dir, args).await;
    // What it said comes before why it failed.
    dom0::log::flush();
    ended
}

async fn run_to_its_end(dir: Option<&Path>, args: RunArgs) -> anyhow::Result<ExitCode> {
    let RunArgs { file, no_console, grace, libexec_dir } = args;
    let (console, grace) = (!no_console, Duration::from_secs(grace));
    let mut signals = Signals::new()?;
    let config = config::load(&file)?;
    let plan = Attempted::from(&config);
    let name = plan.name.to_string();
    let run = RunDir::open(&dir.map_or_else(default_run_dir, Path::to_owned))?;
    let cleanup = CleanupProcess::start(run.path(), &config.name)?;
    let supervisor = Rc::new(Direct::new(libexec_dir, true));
    let dom0 = Dom0::new(Environment::of_command(&run, Path::new(CONFIG), supervisor));
    let created = tokio::select! {
        created = dom0.create(config) => created,
        () = signals.any() => {
            dom0.destroy_all().await;
            return Ok(ExitCode::FAILURE);
        }
    };
    if let Err(error) = created {
        return Err(match error {
            StartError::Config(error) => {
                // The name is taken: what has it is not to be cleaned up, and not to be waited for.
                if error.at == "name" {
                    cleanup.dismiss();
                }
                anyhow!(error)
            }
            error => anyhow!(explain(&plan, &error)),
        });
    }
    let mut raw = if console { Raw::enter()? } else { None };
    let mut keys = if console { Keys::read(raw.is_some()) } else { Keys::none() };
    let mut last = None;
    let mut follow = dom0.find(&name).ok().map(|handle| handle.view.clone());
    let watched = async {
        while let Some(view) = &mut follow {
            let now = view.borrow_and_update().clone();
            let over = matches!(now.state, State::Preserved { .. } | State::Dead);
            last = Some(now);
            if over || view.changed().await.is_err() {
                break;
            }
        }
    };
    let left = {
        let shown = shown(&dom0, &name, console, &mut keys);
        tokio::pin!(watched);
        tokio::select! {
            () = &mut watched => false,
            left = shown => match left {
                Ok(()) => true,
                Err(error) => {
                    say(format_args!("{error:#}"));
                    true
                }
            },
            () = signals.any() => true,
        }
    };
    if left {
        // Ctrl-C is a signal again, and hurries.
        let newline = if raw.take().is_some() { "\n" } else { "" };
        let seconds = grace.as_secs();
        say(format_args!("{newline}{name}: shutting down, for {seconds} s at most"));
        tokio::select! {
            () = dom0.retire(grace) => {}
            () = signals.any() => dom0.destroy_all().await,
        }
    } else {
        dom0.destroy_all().await;
    }
    drop(raw);
    drop(dom0);
    drop(cleanup);
    match last {
        Some(view) if view.crashed => {
            Err(anyhow!("{name} {}", view.ended.unwrap_or_else(|| "crashed".into())))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}

/// Shows the console through reboots; returns when the user leaves.
async fn shown(dom0: &Dom0, name: &str, wanted: bool, keys: &mut Keys) -> anyhow::Result<()> {
    if !wanted {
        return std::future::pending().await;
    }
    loop {
        let Ok((path, domid)) = dom0.console(name) else { return std::future::pending().await };
        let how = attach(Path::new(&*path), Mode::Write, keys, None).await?;
        if how == End::Left {
            return Ok(());
        }
        // The next incarnation's console, if there is one; otherwise whoever watches the domain ends this.
        loop {
            let Ok(handle) = dom0.find(name) else { return std::future::pending().await };
            let (now, state) = {
                let view = handle.view.borrow();
                (view.domid, view.state)
            };
            // Before another look, also where only the console's process has died: its death is seen by then.
            tokio::time::sleep(Duration::from_millis(10)).await;
            if now != domid && state == State::Running
                || how == End::Lost && now == domid && state.has_machine()
            {
                break;
            }
        }
    }
}
