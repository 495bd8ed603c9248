//! `completions` and `manual`: shell completions and man pages of this command. Both functions take the command line as
//! a value, because it contains these two commands.

use std::path::PathBuf;

use clap::Args;

use crate::output::write;

/// The command line of `completions`.
#[derive(Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    shell: clap_complete::Shell,
}

/// The command line of `manual`.
#[derive(Debug, Args)]
pub struct ManualArgs {
    /// The directory
    directory: PathBuf,
}

/// `domus completions`, of this command line.
///
/// # Errors
/// That standard output cannot be written to.
pub fn completions(args: &CompletionsArgs, of: &mut clap::Command) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, of, "domus", &mut script);
    write(&script)
}

/// `domus manual`, of this command line.
///
/// # Errors
/// That the files cannot be written.
pub fn manual(args: ManualArgs, of: clap::Command) -> anyhow::Result<()> {
    Ok(clap_mangen::generate_to(of, args.directory)?)
}
