//! `domus import`: translates a config of xl or libvirt into one of Domus.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::Args;
use dom0::config;
use dom0::host::magic;
use domus_import::{MAX_TEXT, import_bytes};
use domus_startup::say;
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

/// The format that an image's bytes tell; the outer None for what is not here, or no image.
fn told(path: &str) -> Option<Option<&'static str>> {
    // Without waiting: a FIFO would never be opened.
    let image = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let kind = image.metadata().ok()?.file_type();
    if kind.is_file() || kind.is_block_device() { magic::whole(&image).ok() } else { None }
}

fn read(file: &Path) -> anyhow::Result<Vec<u8>> {
    let cannot =
        || format!("{}: cannot be read: name a config of xl, or a domain's XML of libvirt", file.display());
    let mut bytes = Vec::new();
    // One byte more than is allowed shows that there is more.
    File::open(file)
        .and_then(|file| file.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes))
        .with_context(cannot)?;
    Ok(bytes)
}

/// Prints the config, and on standard error each line that has no counterpart in it.
///
/// # Errors
/// That the file cannot be read, or that what it says makes no config: that is printed all the same.
pub fn run(args: &ImportArgs) -> anyhow::Result<()> {
    let ImportArgs { file, json } = args;
    let translation =
        import_bytes(&read(file)?, &told).map_err(|error| anyhow!("{}: {error}", file.display()))?;
    let absolute = std::path::absolute(file)?;
    let directory = absolute.parent().unwrap_or(Path::new("/"));
    let config = serde_json::to_string_pretty(&translation.config)?;
    if *json {
        let lost = json!({ "config": translation.config, "lost": translation.lost });
        print(&serde_json::to_string_pretty(&lost)?)?;
    } else {
        print(&config)?;
        for lost in &translation.lost {
            say(format_args!("{}:{}: {}: {}", file.display(), lost.line, lost.what, lost.why));
        }
    }
    match config::parse(file, directory, &config) {
        Ok(_) => Ok(()),
        Err(error) => bail!("{error}: correct that in what was printed"),
    }
}
