//! Whether a domain could be created now. Opens and closes, and changes nothing.

use std::io;

use nix::unistd::{AccessFlags, access};

use crate::config::DomainConfig;
use crate::device::classes::Devices;
use crate::domain::error::StartError;
use crate::domain::machine::check_scheduling;
use crate::host::{files, memory};
use crate::network::managed::Networks;

/// Checks what only the host can tell: files, images, bridges, taps, memory, KVM.
///
/// # Errors
/// The first [`StartError`] that creating the domain would meet, as far as that can be known without an effect.
pub async fn check(config: &DomainConfig, networks: &Networks) -> Result<(), StartError> {
    startable(config).await?;
    for class in Devices::new(&config.file, &config.devices).all() {
        class.check(networks).await?;
    }
    access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK)
        .map_err(|errno| StartError::Kvm(io::Error::from(errno)))
}

/// Checks what a machine needs of the host that no other one of the same domain has: memory, CPUs, a kernel.
///
/// # Errors
/// [`StartError`].
pub(super) async fn startable(config: &DomainConfig) -> Result<(), StartError> {
    memory::check(&config.place("memory"), config.memory)?;
    check_scheduling(config)?;
    files::blob(&config.place("boot.kernel"), &config.kernel).await?;
    if let Some(initrd) = &config.initrd {
        files::blob(&config.place("boot.initrd"), initrd).await?;
    }
    Ok(())
}
