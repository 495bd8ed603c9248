//! `domus run`: a dom0 in this process, for one domain, in the foreground.
//!
//! Ends when the domain does. Ctrl-] (on a terminal), SIGINT, SIGTERM and SIGHUP ask the guest to shut down, for
//! `--grace` seconds at most, and then destroy it; a second one destroys it at once.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use anyhow::anyhow;
use dom0::api::{Plan, start_message};
use dom0::commons::Commons;
use dom0::config;
use dom0::domain::build::StartError;
use dom0::domain::state::State;
use dom0::registry::Dom0;
use dom0::resources::run_dir::{self, RunDir};
use dom0::supervisor::Direct;
use shared_abi::console::Mode;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::attach::{End, Keys, attach};
use crate::shadow::Shadow;
use crate::terminal::Raw;

/// What `domus run` is told.
#[derive(Debug)]
pub struct Options {
    /// The domain's config.
    pub file: PathBuf,
    /// The run directory, if not the usual one.
    pub run_dir: Option<PathBuf>,
    /// Where the programs are, if not in the usual places.
    pub libexec_dir: Option<PathBuf>,
    /// Attach to the console.
    pub console: bool,
    /// How long the guest may take to shut down.
    pub grace: Duration,
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
pub async fn run(options: Options) -> anyhow::Result<ExitCode> {
    let mut signals = Signals::new()?;
    let config = config::load(&options.file)?;
    let plan = Plan::from(&config);
    let name = plan.name.to_string();
    let run = RunDir::open(&options.run_dir.unwrap_or_else(run_dir::default_path))?;
    let shadow = Shadow::start(run.path(), &config.name)?;
    let supervisor = Rc::new(Direct::new(options.libexec_dir, true));
    let commons = Commons::of_command(&run, Path::new(run_dir::CONFIG), supervisor);
    let dom0 = Dom0::new(run, commons);
    let created = tokio::select! {
        created = dom0.create(config) => created,
        () = signals.any() => {
            dom0.destroy_all().await;
            return Ok(ExitCode::FAILURE);
        }
    };
    created.map_err(|error| match error {
        StartError::Config(error) => anyhow!(error),
        error => anyhow!(start_message(&plan, &error)),
    })?;
    let mut raw = if options.console { Raw::enter()? } else { None };
    let mut keys = if options.console { Keys::read(raw.is_some()) } else { Keys::none() };
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
        let console = shown(&dom0, &name, options.console, &mut keys);
        tokio::pin!(watched);
        tokio::select! {
            () = &mut watched => false,
            left = console => match left {
                Ok(()) => true,
                Err(error) => {
                    dom0::say::line(format_args!("{error:#}"));
                    true
                }
            },
            () = signals.any() => true,
        }
    };
    if left {
        // Ctrl-C is a signal again, and hurries.
        let newline = if raw.take().is_some() { "\n" } else { "" };
        let seconds = options.grace.as_secs();
        dom0::say::line(format_args!("{newline}{name}: shutting down, for {seconds} s at most"));
        tokio::select! {
            () = dom0.retire(options.grace) => {}
            () = signals.any() => dom0.destroy_all().await,
        }
    } else {
        dom0.destroy_all().await;
    }
    drop(raw);
    drop(dom0);
    drop(shadow);
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
