//! A domain's config: text, then types that refuse what they do not know, then a value that can be acted on.
//!
//! ```text
//! JSON text ──serde──▶ file::DomainFile ──check──▶ DomainConfig ──Backend::prepare──▶ descriptors
//!            syntax, types,             ranges, names,          what only the host
//!            unknown keys               what excludes what      can tell
//! ```
//!
//! Every refusal is one line with the file, the JSON path, the value and what would be accepted. Nothing here
//! touches the host but [`load`], which reads the file itself.
//!
//! The defaults of keys that are left out stand in [`DomainFile`], from which the JSON Schema is made.
//!
//! Relative paths start at the config file's directory.

mod check;
mod file;

use std::path::{Path, PathBuf};
use std::time::Duration;

use shared_abi::DomainName;
use shared_abi::cpu::CpuSpec;
use uuid::Uuid;

use crate::device::classes::DeviceConfigs;
use crate::value::cpus::Scheduling;
use crate::value::place::{ConfigError, Place};

pub use file::{DomainFile, OnHang, OnStop};

/// A domain that can be built: every value is in range, every path absolute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainConfig {
    /// The file it came from, for messages.
    pub file: PathBuf,
    /// Where its relative paths start.
    pub directory: PathBuf,
    /// The text it was made from.
    pub text: String,
    /// The domain's name.
    pub name: DomainName,
    /// Which machine it is.
    pub uuid: Uuid,
    /// 1 to [`MAX_VCPUS`](shared_abi::limits::MAX_VCPUS).
    pub vcpus: u8,
    /// What its guest sees of the CPU.
    pub cpu: CpuSpec,
    /// RAM in bytes, a multiple of [`MEMORY_UNIT`](shared_abi::limits::MEMORY_UNIT).
    pub memory: u64,
    /// The kernel image.
    pub kernel: PathBuf,
    /// The initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// The kernel's command line.
    pub cmdline: String,
    /// The config has none: one that the kernel's image has goes before.
    pub cmdline_yields: bool,
    /// Its devices, the console among them.
    pub devices: DeviceConfigs,
    /// Its part of the host's CPUs.
    pub scheduling: Scheduling,
    /// When it starts with the host, if it does.
    pub autostart: Option<Autostart>,
    /// What becomes of a backend that lives and does not answer.
    pub on_hang: OnHang,
    /// What to do when the machine stops.
    pub policy: Policy,
}

impl DomainConfig {
    /// The value at a JSON path of its file.
    pub fn place(&self, at: impl std::fmt::Display) -> Place<'_> {
        Place::new(&self.file, at)
    }
}

/// When a domain starts with the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Autostart {
    /// Those with lower numbers start earlier, and end later.
    pub order: u32,
    /// From its start to the next one's.
    pub delay: Duration,
}

impl Autostart {
    /// The order of a domain that says none.
    pub const MIDDLE: u32 = 100;
}

/// What is done when a machine stops by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// The guest switched itself off.
    pub on_poweroff: OnStop,
    /// The guest reset itself.
    pub on_reboot: OnStop,
    /// A vCPU that KVM cannot run, or a runner that died.
    pub on_crash: OnStop,
    /// A vCPU had a triple fault. None: that is how the guest resets itself.
    pub on_triple_fault: Option<OnStop>,
}

/// Reads and checks the config in `file`.
///
/// # Errors
/// [`ConfigError`].
pub fn load(file: &Path) -> Result<DomainConfig, ConfigError> {
    let (text, directory) = domus_api::read_config(file)?;
    parse(file, &directory, &text)
}

/// Checks a config's text. `file` is for messages; relative paths start at `directory`.
///
/// # Errors
/// [`ConfigError`].
pub fn parse(file: &Path, directory: &Path, text: &str) -> Result<DomainConfig, ConfigError> {
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: DomainFile = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = error.path().to_string();
        let inner = error.into_inner();
        ConfigError::new(file, if at == "." || at == "?" { "" } else { &at }, inner)
    })?;
    json.end().map_err(|error| ConfigError::new(file, "", error))?;
    let config = check::check(file, directory, parsed)?;
    Ok(DomainConfig { text: text.to_owned(), ..config })
}

#[cfg(test)]
mod tests;
