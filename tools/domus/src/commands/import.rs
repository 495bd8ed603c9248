//! `domus import`: translates a config of xl or libvirt into one of Domus.

use std::path::PathBuf;

use anyhow::{anyhow, bail};
use clap::Args;
use dom0::config;
use domus_import::import;
use serde_json::json;

use crate::output::print;

/// The command line of `import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// An xl.cfg, or XML as `virsh dumpxml` writes it
    file: PathBuf,
    /// Print a JSON object with both
    #[arg(long)]
    json: bool,
}

/// Prints the config, and on standard error each line that has no counterpart in it.
///
/// # Errors
/// That the file cannot be read, or that what it says makes no config: that is printed all the same.
pub fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { file, json } = args;
    let (text, directory) = dom0::value::text::read(file)?;
    let translation = import(&text).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let config = serde_json::to_string_pretty(&translation.config)?;
    if *json {
        let lost = json!({ "config": translation.config, "lost": translation.lost });
        print(&serde_json::to_string_pretty(&lost)?)?;
    } else {
        print(&config)?;
        for lost in &translation.lost {
            eprintln!("{}:{}: {}: {}", file.display(), lost.line, lost.what, lost.why);
        }
    }
    match config::parse(file, &directory, &config) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{error}: correct that in what was printed"),
    }
}
