//! Why a domain cannot be started.

use std::io;
use std::path::PathBuf;

use domus_startup::control::chain;
use shared_abi::control::StartPart;
use shared_abi::{DomainName, Role};

use crate::config::DomainConfig;
use crate::device::error::DeviceError;
use crate::host::run_dir::RunDirError;
use crate::process::SupervisorError;
use crate::process::link::ChildError;
use crate::value::place::ConfigError;

/// Why a domain could not be started. One line.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config asks for what the host does not have.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The run directory.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// A process could not be started.
    #[error(transparent)]
    Supervisor(#[from] SupervisorError),
    /// A process did not get ready.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// The host cannot run virtual machines.
    #[error(
        "cannot open /dev/kvm: switch on virtualization in the firmware, load kvm_intel or kvm_amd, or join group kvm"
    )]
    Kvm(#[source] io::Error),
    /// One of its devices cannot be had.
    #[error(transparent)]
    Device(DeviceError),
    /// Something of dom0's own.
    #[error("cannot {act}")]
    Io {
        /// What.
        act: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The runner cannot make a machine of what it was given.
    #[error("{}: {why}", Role::Runner)]
    Refused {
        /// What is at fault.
        what: StartPart,
        /// One line of the runner's.
        why: String,
    },
    /// It was destroyed while it was built.
    #[error("was destroyed while it was built")]
    Cancelled,
}

impl From<DeviceError> for StartError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::Config(error) => Self::Config(error),
            error => Self::Device(error),
        }
    }
}

/// The line for an operator whose domain could not be started: it always names the config file, and the value there
/// that a runner is at odds with. dom0 itself never looks into a kernel.
pub fn explain(config: &Attempted, error: &StartError) -> String {
    let text = chain(error);
    let Attempted { file, kernel, initrd, .. } = config;
    match error {
        StartError::Config(_) => text,
        StartError::Refused { what, why } => {
            let (at, path) = match (what, initrd) {
                (StartPart::Initrd, Some(initrd)) => ("boot.initrd", initrd),
                // A unified kernel image has an initrd in it.
                (StartPart::Kernel | StartPart::Initrd, _) => ("boot.kernel", kernel),
                (StartPart::Cpu, _) => return ConfigError::new(file, "cpu", why).to_string(),
                _ => return ConfigError::new(file, "", text).to_string(),
            };
            ConfigError::new(file, at, format!("\"{}\": {why}", path.display())).to_string()
        }
        _ => ConfigError::new(file, "", text).to_string(),
    }
}

/// What a message about a failed start needs of the config, which is gone by then.
#[derive(Debug, Clone)]
pub struct Attempted {
    /// The domain's name.
    pub name: DomainName,
    file: PathBuf,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
}

impl From<&DomainConfig> for Attempted {
    fn from(config: &DomainConfig) -> Self {
        Self {
            name: config.name.clone(),
            file: config.file.clone(),
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
        }
    }
}
