//! The toolstack: `domus`, which also answers to the name `xl`.
//!
//! A file imports from lower layers only (`tests/layers.rs`): [`args`], [`commands`], then [`selection`] and
//! [`attach`], [`client`] and [`terminal`], and at the bottom [`output`], [`limits`], [`clock`], [`shared`] and
//! [`shrink`].
//!
//! Every command is one request to the dom0 service, but `run`, which is a dom0 of its own, and `check`, which needs
//! none. Exit status: 0 done, 1 failed, 2 wrong usage. A failure is one line on standard error.

mod args;
mod attach;
mod client;
mod clock;
mod commands;
mod limits;
mod output;
mod selection;
mod shared;
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
            shared::say(format_args!("domus: {error:#}"));
            ExitCode::FAILURE
        }
    }
}
