//! The text of a config or a definition, as a client reads it to hand it to dom0.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// Longest text of a config that dom0 takes, in bytes: far above any real one.
pub const MAX_CONFIG: usize = 256 * 1024;

/// Why a file is no text of a config: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {problem}", file.display())]
pub struct UnreadableConfig {
    /// The file, as the user named it.
    pub file: PathBuf,
    /// What is wrong with it, and what would be accepted.
    pub problem: String,
}

/// Reads the text of `file`; the second value is the absolute directory its relative paths start at.
///
/// # Errors
/// [`UnreadableConfig`] if it cannot be read, is longer than [`MAX_CONFIG`] or is not UTF-8.
pub fn read_config(file: &Path) -> Result<(String, PathBuf), UnreadableConfig> {
    let refuse = |problem: String| UnreadableConfig { file: file.into(), problem };
    let absolute = std::path::absolute(file).map_err(|e| refuse(format!("cannot be found: {e}")))?;
    let directory = absolute.parent().unwrap_or(Path::new("/")).to_owned();
    let open = File::open(file)
        .map_err(|e| refuse(format!("cannot be read: {e}; name a domain's config, a JSON file")))?;
    let mut text = String::new();
    // One byte more than allowed shows that there is more; a pipe or a device may have no end.
    open.take(MAX_CONFIG as u64 + 1)
        .read_to_string(&mut text)
        .map_err(|e| refuse(format!("cannot be read: {e}; name a domain's config, a JSON file")))?;
    if text.len() > MAX_CONFIG {
        return Err(refuse(format!(
            "is longer than {MAX_CONFIG} bytes; name a domain's config, a JSON file"
        )));
    }
    Ok((text, directory))
}
