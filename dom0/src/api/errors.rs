//! What a client is told when dom0 refuses, and when a domain could not be started.

use std::path::PathBuf;

use domus_api::ApiError;
use shared_abi::{DomainName, Role};

use crate::child::ChildError;
use crate::config::{self, ConfigError};
use crate::domain::build::StartError;
use crate::domain::chain;
use crate::networks::NetworkError;
use crate::registry::AskError;

impl From<AskError> for ApiError {
    fn from(error: AskError) -> Self {
        let message = chain(&error);
        match error {
            AskError::NoSuchDomain(_) => Self::NoSuchDomain { message },
            AskError::Refused { .. } | AskError::LeftOver(_) => Self::Refused { message },
        }
    }
}

impl From<NetworkError> for ApiError {
    fn from(error: NetworkError) -> Self {
        let message = chain(&error);
        match error {
            NetworkError::Definition(_) => Self::BadConfig { message },
            _ => Self::Refused { message },
        }
    }
}

impl From<ConfigError> for ApiError {
    fn from(error: ConfigError) -> Self {
        Self::BadConfig { message: error.to_string() }
    }
}

/// The line for an operator whose domain could not be started: it always names the config file, and the value there
/// that a runner is at odds with. dom0 itself never looks into a kernel.
pub fn start_message(config: &Plan, error: &StartError) -> String {
    let text = chain(error);
    let Plan { file, kernel, initrd, .. } = config;
    match error {
        StartError::Config(_) => text,
        StartError::Child(ChildError::Failed { role: Role::Runner, why }) => {
            let (at, path, cure) = match initrd {
                Some(initrd) if why.contains("initrd") => ("boot.initrd", initrd, ""),
                _ if why.contains("bzImage") || why.contains("PVH") => ("boot.kernel", kernel, ""),
                _ if why.contains("kernel") => {
                    ("boot.kernel", kernel, ": name a whole ELF vmlinux or x86 bzImage")
                }
                _ => return ConfigError::new(file, "", text).to_string(),
            };
            ConfigError::new(file, at, format!("\"{}\": {why}{cure}", path.display())).to_string()
        }
        _ => ConfigError::new(file, "", text).to_string(),
    }
}

/// What a message about a failed start needs of the config, which is gone by then.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The domain's name.
    pub name: DomainName,
    file: PathBuf,
    kernel: PathBuf,
    initrd: Option<PathBuf>,
}

impl From<&config::DomainConfig> for Plan {
    fn from(config: &config::DomainConfig) -> Self {
        Self {
            name: config.name.clone(),
            file: config.file.clone(),
            kernel: config.kernel.clone(),
            initrd: config.initrd.clone(),
        }
    }
}
