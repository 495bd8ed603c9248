//! The place of a value in a config: the file and the JSON path. Every refusal of a config is made here.

use std::fmt::Display;
use std::path::{Path, PathBuf};

use domus_api::UnreadableConfig;

use crate::value::names::is_interface;

/// Why a config is refused: one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {at}{}{problem}", file.display(), if at.is_empty() { "" } else { ": " })]
pub struct ConfigError {
    /// The config file, as the user named it.
    pub file: PathBuf,
    /// The JSON path of the value, such as `disks[0].path`; empty for the file as a whole.
    pub at: String,
    /// The value, what is wrong with it, and what would be accepted.
    pub problem: String,
}

impl ConfigError {
    /// A refusal of the value at the JSON path `at` of `file`.
    pub fn new(file: &Path, at: impl Display, problem: impl Display) -> Self {
        // A path or a value can hold line breaks and escapes; an error stays one printable line.
        let clean = |text: String| -> String {
            text.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }).collect()
        };
        Self { file: file.into(), at: clean(at.to_string()), problem: clean(problem.to_string()) }
    }
}

impl From<UnreadableConfig> for ConfigError {
    fn from(UnreadableConfig { file, problem }: UnreadableConfig) -> Self {
        Self::new(&file, "", problem)
    }
}

/// The value at one JSON path of a config file.
#[derive(Debug, Clone)]
pub struct Place<'a> {
    file: &'a Path,
    at: String,
}

impl<'a> Place<'a> {
    /// The value at the JSON path `at` of `file`; empty for the file as a whole.
    pub fn new(file: &'a Path, at: impl Display) -> Self {
        Self { file, at: at.to_string() }
    }

    /// The value called `key` in this one.
    pub fn under(&self, key: impl Display) -> Self {
        let at = if self.at.is_empty() { key.to_string() } else { format!("{}.{key}", self.at) };
        Self { file: self.file, at }
    }

    /// Element `n` of the list called `key` in this one.
    pub fn element(&self, key: &str, n: usize) -> Self {
        self.under(format_args!("{key}[{n}]"))
    }

    /// A refusal of this value.
    pub fn refuse(&self, problem: impl Display) -> ConfigError {
        ConfigError::new(self.file, &self.at, problem)
    }
}

/// What every check of a config file needs: for messages, and to make paths absolute.
pub struct Context<'a> {
    /// The config file, as the user named it.
    pub file: &'a Path,
    /// Where its relative paths start.
    pub directory: &'a Path,
}

impl Context<'_> {
    /// A refusal of the value at the JSON path `at`.
    pub fn refuse(&self, at: impl Display, problem: impl Display) -> ConfigError {
        ConfigError::new(self.file, at, problem)
    }

    /// The absolute path that `text` names.
    ///
    /// # Errors
    /// [`ConfigError`] if it is empty or holds a NUL.
    pub fn path(&self, at: &str, text: &str) -> Result<PathBuf, ConfigError> {
        if text.is_empty() || text.contains('\0') {
            return Err(self.refuse(at, format!("{text:?} is no path: name a file")));
        }
        Ok(self.directory.join(text))
    }

    /// The number, if it is `least` to `most`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn range(&self, at: &str, value: u64, least: u64, most: u64) -> Result<u16, ConfigError> {
        match u16::try_from(value) {
            Ok(small) if (least..=most).contains(&value) => Ok(small),
            _ => Err(self.refuse(at, format!("{value} is out of range: {least} to {most} would do"))),
        }
    }

    /// The name of a network interface.
    ///
    /// # Errors
    /// [`ConfigError`] if the kernel would not take it.
    pub fn interface(&self, at: &str, text: String) -> Result<String, ConfigError> {
        if is_interface(&text) {
            Ok(text)
        } else {
            Err(self.refuse(
                at,
                format!(
                    "{text:?} is no interface name: 1 to 15 printable characters without / : % * , \\ and \""
                ),
            ))
        }
    }
}
