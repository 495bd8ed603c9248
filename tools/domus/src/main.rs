//! The toolstack: `domus`, which also answers to the name `xl`.
//!
//! A file imports from lower layers only (`tests/layers.rs`): [`args`], [`commands`], then [`selection`] and
//! [`attach`], [`client`] and [`terminal`], and at the bottom [`output`], [`limits`], [`clock`] and
//! [`shrink`].
//!
//! A command that concerns running domains asks the dom0 service over Varlink, as often as it has to: once for each
//! domain, or again and again while it follows something. `run` is a dom0 for one domain. `check`, `import`, `disk`,
//! `completions` and `manual` need no service. The commands that do a part of dom0's work themselves link its crate;
//! all others know the API only. Exit status: 0 done, 1 failed, 2 wrong usage. A failure is one line on standard error.

mod args;
mod attach;
mod client;
mod clock;
mod commands;
mod limits;
mod output;
mod selection;
mod shrink;
mod terminal;
#[cfg(test)]
mod xl;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    let args = args::Args::parse();
    // A sandbox is closed around one thread.
    if matches!(args.command, args::Command::DiskSealed) {
        return commands::disk::sealed::serve();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| {
        let local = tokio::task::LocalSet::new();
        let result = local.block_on(&runtime, args.run());
        // A read from a terminal that nobody types at must not hold up the end.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(status) => status,
        Err(error) => {
            domus_startup::say(format_args!("domus: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
