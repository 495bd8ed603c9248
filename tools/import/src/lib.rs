//! Reads what other toolstacks call a domain, and writes it as a config of Domus.
//!
//! ```text
//! xl.cfg ───▶ xl::syntax ───▶ xl ─────┐
//!                                     ├──▶ Translation { config, lost }
//! XML ──────▶ roxmltree ────▶ libvirt ┘
//! ```
//!
//! Whatever is written there either has its counterpart in the config, says what Domus does anyway, or is listed in
//! [`Translation::lost`] with its line and the reason: nothing is dropped in silence. Nothing here touches the host:
//! an image is not looked at, so what only it knows (what a qcow2 image refers to) is for the operator to add.
//!
//! The text is a stranger's: it is bounded, reading it never fails but by an [`ImportError`], and what the errors and
//! the list quote of it is one printable line.

mod config;
mod libvirt;
mod translate;
mod xl;

pub use config::Config;
pub use translate::{Lost, Translation};

/// Longest text that is read, in bytes: far above any real one.
pub const MAX_TEXT: usize = 256 * 1024;

/// Why a text cannot be read at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// It is too long.
    #[error("is longer than {MAX_TEXT} bytes: name one domain's config")]
    TooLong,
    /// It is no xl.cfg.
    #[error("line {line}: {problem}: name a config of xl (xl.cfg(5)) or a domain's XML of libvirt")]
    Syntax {
        /// Counted from 1.
        line: u32,
        /// What is wrong there.
        problem: String,
    },
    /// It is no XML.
    #[error("is no XML: {0}: have virsh dumpxml write it")]
    Xml(String),
    /// It is XML of something else.
    #[error("is XML of a <{0}>: name a <domain>'s, as virsh dumpxml writes it")]
    NoDomain(String),
}

/// Reads a config of xl, or a domain's XML of libvirt if it begins as XML does.
///
/// # Errors
/// [`ImportError`].
pub fn import(text: &str) -> Result<Translation, ImportError> {
    if text.len() > MAX_TEXT {
        return Err(ImportError::TooLong);
    }
    if text.trim_start_matches('\u{feff}').trim_start().starts_with('<') {
        libvirt::read(text)
    } else {
        xl::read(text)
    }
}
