//! The start-up contract: a switch without ports, sealed. Ports come afterwards.
//!
//! ```text
//! listen ─▶ start message ─▶ sandbox::enter ─▶ all threads ─▶ sandbox::seal ─▶ Ready ─▶ plug, unplug, …
//! ```

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use domus_startup::Control;
use domus_startup::control::ControlError;
use domus_startup::fds::FdError;
use domus_startup::sandbox::{self, SandboxError};
use domus_startup::threads;
use shared_abi::control::SwitchRequest;
use vu_server::Signals;
use vu_server::aio::Aio;

use crate::beat::Beat;
use crate::control::Switch;
use crate::forward::{Forward, Prepared};
use crate::syscalls::calls;
use crate::{MAX_PORTS, connection};

/// How long one turn of the data thread may take: far more than the slowest memory needs.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why there is no switch.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The control socket failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The first request was another one.
    #[error("the first request must be `start`")]
    NotStarted,
    /// The message's descriptors do not fit it.
    #[error("start message")]
    Fds(#[from] FdError),
    /// The kernel refuses what the threads need.
    #[error("cannot start the threads of switch {name}")]
    Threads {
        /// The switch.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// The sandbox.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// Is the switch that the controller of the socket at `control` asks for. Returns only with an error.
///
/// # Errors
/// [`StartError`]; before the switch was ready, the controller has been told.
pub fn run(control: &Path) -> Result<(), StartError> {
    domus_startup::serve(control, bring_up, Switch::handle)
}

fn bring_up(
    control: &Control,
    request: SwitchRequest,
    fds: domus_startup::Fds,
) -> Result<Switch, StartError> {
    let SwitchRequest::Start(start) = request else { return Err(StartError::NotStarted) };
    fds.finish()?;
    sandbox::enter(start.uid)?;
    let failed = |source| StartError::Threads { name: start.name.to_string(), source };
    let (data, commands) = vu_server::worker::commands().map_err(failed)?;
    let connections = connection::pool(MAX_PORTS).map_err(failed)?;
    let prepared = Prepared::new(commands).map_err(failed)?;
    let beat = Arc::new(Beat::default());
    let work = {
        let beat = beat.clone();
        move || Forward::new(prepared, beat).run()
    };
    threads::start("data".into(), work).map_err(failed)?;
    threads::start("beat".into(), move || beat.watch(PATIENCE, end)).map_err(failed)?;
    let signals = Signals::Kernel(Arc::new(Aio::new().map_err(failed)?));
    sandbox::seal(&calls())?;
    Ok(Switch::new(data, connections, signals, control.events()))
}

/// The data thread stands still: dom0 starts another switch, which is better than none.
fn end() {
    domus_startup::say(format_args!(
        "domus-switch: no frame has moved for {} s although there was work: it ends itself",
        PATIENCE.as_secs()
    ));
    std::process::exit(1);
}
