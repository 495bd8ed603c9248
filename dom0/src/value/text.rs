//! Text that somebody else wrote: read and shown within bounds.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::value::place::ConfigError;

/// Longest config text, in bytes: far above any real one.
pub const MAX_CONFIG: usize = 256 * 1024;

/// Reads the text of `file`; the second value is the absolute directory its relative paths start at.
///
/// # Errors
/// [`ConfigError`] if it cannot be read, is longer than [`MAX_CONFIG`] or is not UTF-8.
pub fn read(file: &Path) -> Result<(String, PathBuf), ConfigError> {
    let refuse = |problem: String| ConfigError::new(file, "", problem);
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

/// A child's text as one printable line of bounded length: a child may have been taken over by its guest.
pub fn one_line(text: &str) -> String {
    text.chars().take(512).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
