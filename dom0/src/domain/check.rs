//! Whether a domain could be created now. Opens and closes, and changes nothing.

use std::io;

use nix::unistd::{AccessFlags, access};

use crate::config::DomainConfig;
use crate::device::block::open::Disks;
use crate::device::net::attach;
use crate::domain::error::StartError;
use crate::domain::machine::scheduling;
use crate::host::files::{self, For};
use crate::host::links::Links;
use crate::host::{memory, sockets};
use crate::network::managed::Networks;

/// Checks what only the host can tell: files, images, bridges, taps, memory, KVM.
///
/// # Errors
/// The first [`StartError`] that creating the domain would meet, as far as that can be known without an effect.
pub async fn check(config: &DomainConfig, networks: &Networks) -> Result<(), StartError> {
    startable(config)?;
    if let Some(log) = &config.console_log {
        files::appended(&config.place("console.log"), log, For::Check)?;
    }
    Disks::open(&config.file, &config.disks, config.disk_limits, For::Check).await?;
    if !config.nets.is_empty() {
        let links = Links::open().map_err(|source| StartError::Io { act: "open rtnetlink", source })?;
        for (n, net) in config.nets.iter().enumerate() {
            attach::check(&config.place(format_args!("nets[{n}]")), net, &links, networks).await?;
        }
    }
    for (n, device) in config.devices.iter().enumerate() {
        sockets::foreign(
            &config.place(format_args!("devices[{n}].vhost_user_socket")),
            &device.socket,
            false,
        )?;
    }
    access("/dev/kvm", AccessFlags::R_OK | AccessFlags::W_OK)
        .map_err(|errno| StartError::Kvm(io::Error::from(errno)))
}

/// Checks what a machine needs of the host that no other one of the same domain has: memory, CPUs, a kernel.
///
/// # Errors
/// [`StartError`].
pub(super) fn startable(config: &DomainConfig) -> Result<(), StartError> {
    memory::check(&config.place("memory"), config.memory)?;
    scheduling::check(config)?;
    files::blob(&config.place("boot.kernel"), &config.kernel)?;
    if let Some(initrd) = &config.initrd {
        files::blob(&config.place("boot.initrd"), initrd)?;
    }
    Ok(())
}
