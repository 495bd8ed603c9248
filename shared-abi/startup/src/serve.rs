//! A backend as a program: from the start message to the answers to all later requests.

use std::error::Error;
use std::path::Path;
use std::process::ExitCode;

use serde::de::DeserializeOwned;
use shared_abi::control::BackendReply;

use crate::control::{Control, ControlError};
use crate::fds::Fds;
use crate::{report, threads};

/// The `main` of the program `name`: sets the heap up, runs, and says an error in one line.
pub fn program<E: Into<Box<dyn Error>>>(name: &str, run: impl FnOnce() -> Result<(), E>) -> ExitCode {
    threads::one_heap();
    report(name, run())
}

/// Serves the controller of the socket at `path`: greets it, lets `bring_up` do what the first request says, reports
/// ready, then has `handle` answer each request. Returns only with an error.
///
/// `bring_up` maps what it needs, enters the sandbox, starts the threads and seals the process, so that `handle` runs
/// sealed. The descriptors that a program still opens decide where in that order it opens them: it seals by itself.
///
/// # Errors
/// What `bring_up` says, of which the controller has been told; [`ControlError`] otherwise.
pub fn serve<R, S, E>(
    path: &Path,
    bring_up: impl FnOnce(&Control, R, Fds) -> Result<S, E>,
    mut handle: impl FnMut(&mut S, R, Fds) -> Result<BackendReply, String>,
) -> Result<(), E>
where
    R: DeserializeOwned,
    E: From<ControlError> + Error + 'static,
{
    let control = Control::listen(path)?;
    let (request, fds) = control.accept_start()?;
    let mut served = bring_up(&control, request, fds).inspect_err(|error| control.fail(error))?;
    control.reply(&BackendReply::Ready);
    Ok(control.serve(|request, fds| handle(&mut served, request, fds))?)
}
