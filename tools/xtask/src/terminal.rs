//! The terminal this process was started on.

use std::process::Stdio;

use anyhow::{Context, Result};

use crate::command::command;

/// The terminal's settings, put back on drop: QEMU makes it raw and may be killed.
#[derive(Debug)]
pub struct Terminal(String);

impl Terminal {
    /// Remembers the settings as they are.
    pub fn save() -> Result<Self> {
        let settings =
            command("stty", ["-g"]).stdin(Stdio::inherit()).output().context("cannot start stty")?;
        Ok(Self(String::from_utf8_lossy(&settings.stdout).trim().to_owned()))
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = command("stty", [&self.0]).status();
    }
}
