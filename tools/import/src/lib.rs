//! Reads what other toolstacks call a domain, and writes it as a config of Domus.
//!
//! ```text
//! xl.cfg ───▶ xl::syntax ───▶ xl ─────┐
//!                                     ├──▶ Translation { config, lost }
//! XML ──────▶ roxmltree ────▶ libvirt ┘
//! ```
//!
//! What a thing of the one or the other comes to is in `rules`, once for both.
//!
//! Whatever is written there either has its counterpart in the config, says what Domus does anyway, or is listed in
//! [`Translation::lost`] with its line and the reason: nothing is dropped in silence. Nothing here touches the host:
//! an image is looked at by the caller, if at all, and what only it knows (what a qcow2 image refers to) is for the
//! operator to add.
//!
//! The text is a stranger's: it is bounded, reading it never fails but by an [`ImportError`], and what the errors and
//! the list quote of it is one printable line.

mod config;
mod libvirt;
mod rules;
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
    /// There is nothing in it.
    #[error("says nothing of a domain: name a config of xl (xl.cfg(5)) or a domain's XML of libvirt")]
    Empty,
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
    import_with(text, &|_| None)
}

/// As [`import`], of a file's bytes, in whatever encoding they are. `told` says of an image's path which format the
/// image's bytes tell, if one is known by them; None if it cannot be looked at.
///
/// # Errors
/// [`ImportError`].
pub fn import_bytes(
    bytes: &[u8],
    told: &dyn Fn(&str) -> Option<Option<&'static str>>,
) -> Result<Translation, ImportError> {
    if bytes.len() > MAX_TEXT {
        return Err(ImportError::TooLong);
    }
    let (text, latin1) = rules::decode(bytes);
    let mut translation = import_with(&text, told)?;
    if latin1 && serde_json::to_string(&translation.config).is_ok_and(|config| !config.is_ascii()) {
        let why = "the file is not UTF-8: it is read as Latin-1, so see what the config says of paths";
        translation.lose(1, "encoding", why);
        translation.lost.sort_by_key(|lost| lost.line);
    }
    Ok(translation)
}

fn import_with(
    text: &str,
    told: &dyn Fn(&str) -> Option<Option<&'static str>>,
) -> Result<Translation, ImportError> {
    if text.len() > MAX_TEXT {
        return Err(ImportError::TooLong);
    }
    let text = text.trim_start_matches('\u{feff}');
    let mut translation =
        if text.trim_start().starts_with('<') { libvirt::read(text)? } else { xl::read(text)? };
    translation.look(told);
    Ok(translation.whole())
}
