//! Whether a domain could be created now. Opens and closes, and changes nothing.

use std::io;

use nix::unistd::{AccessFlags, access};

use super::build::StartError;
use super::disks::Disks;
use super::{nets, scheduling};
use crate::config::DomainConfig;
use crate::networks::Networks;
use crate::resources::files::{self, For};
use crate::resources::links::Links;
use crate::resources::{host, sockets};

/// Checks what only the host can tell: files, images, bridges, taps, memory, KVM.
///
/// # Errors
/// The first [`StartError`] that creating the domain would meet, as far as that can be known without an effect.
pub async fn check(config: &DomainConfig, networks: &Networks) -> Result<(), StartError> {
    startable(config)?;
    files::console_log(config, For::Check)?;
    Disks::open(config, For::Check).await?;
    if !config.nets.is_empty() {
        let links = Links::open().map_err(|source| StartError::Io { act: "open rtnetlink", source })?;
        for (n, net) in config.nets.iter().enumerate() {
            nets::check(config, n, net, &links, networks).await?;
        }
    }
    for (n, device) in config.devices.iter().enumerate() {
        sockets::foreign(config, &format!("devices[{n}].vhost_user_socket"), &device.socket, false)?;
    }
    access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK)
        .map_err(|errno| StartError::Kvm(io::Error::from(errno)))
}

/// Checks what a machine needs of the host that no other one of the same domain has: memory, CPUs, a kernel.
///
/// # Errors
/// [`StartError`].
pub(super) fn startable(config: &DomainConfig) -> Result<(), StartError> {
    host::check_memory(config)?;
    scheduling::check(config)?;
    files::blob(config, "boot.kernel", &config.kernel)?;
    if let Some(initrd) = &config.initrd {
        files::blob(config, "boot.initrd", initrd)?;
    }
    Ok(())
}
