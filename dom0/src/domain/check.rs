//! Whether a domain could be created now: all that creating it does, up to its guest, and nothing of it stays.
//!
//! ```text
//!   memory, CPUs, files, bridges, sockets
//!     ─▶ a machine without a network, in sealed processes: its kernel is loaded, its images are looked into
//!     ─▶ removed
//! ```

use std::rc::Rc;

use shared_abi::DomId;
use tokio::sync::watch;

use crate::config::DomainConfig;
use crate::device::classes::Devices;
use crate::device::{Owner, Providers};
use crate::domain::error::StartError;
use crate::domain::machine::{Machine, check_cpu, check_scheduling};
use crate::host::kernels::Kernels;
use crate::host::monitor::Monitor;
use crate::host::run_dir::RunDir;
use crate::host::{files, memory};
use crate::network::managed::Networks;
use crate::network::switches::Switches;
use crate::process::Supervisor;

/// Checks what only the host can tell: files, images, bridges, taps, memory, KVM; `promised` is the RAM of all other
/// domains, in bytes. `supervisor` starts the processes that look into the kernel and the images. What the kernel
/// unpacks to is looked for in `kernels`, and kept there.
///
/// # Errors
/// The first [`StartError`] that creating the domain would meet, as far as that can be known without an effect.
pub async fn check(
    config: &DomainConfig,
    networks: Rc<Networks>,
    supervisor: Rc<dyn Supervisor>,
    kernels: Rc<Kernels>,
    promised: u64,
) -> Result<(), StartError> {
    memory::check_sum(&config.place("memory"), config.memory, promised)?;
    startable(config).await?;
    for class in Devices::new(&config.file, &config.devices).all() {
        class.check(&networks).await?;
    }
    look_into(config, networks, supervisor, kernels).await
}

/// Builds a machine as far as it can be without an effect, and removes it.
async fn look_into(
    config: &DomainConfig,
    networks: Rc<Networks>,
    supervisor: Rc<dyn Supervisor>,
    kernels: Rc<Kernels>,
) -> Result<(), StartError> {
    let io = |source| StartError::Io { act: "make a directory for a check", source };
    let directory = tempfile::Builder::new().prefix("domus-check-").tempdir().map_err(io)?;
    let switches = Switches::new(RunDir::open(directory.path())?, None);
    let owner = Owner {
        file: config.file.clone(),
        name: config.name.clone(),
        started_as: config.name.clone(),
        // No domain has this number, and so none has this user.
        domid: DomId(0),
        directory: directory.path().into(),
    };
    let from =
        Providers { supervisor, networks, switches: Rc::new(switches), monitor: Monitor::default(), kernels };
    let (_destroy, destroyed) = watch::channel(false);
    let mut machine = Machine::to_look_into(owner, config, from, destroyed);
    let built = machine.build(config, &|_| {}).await;
    machine.tear_down().await;
    built
}

/// Checks what a machine needs of the host that no other one of the same domain has: memory, CPUs, a kernel.
///
/// # Errors
/// [`StartError`].
pub(super) async fn startable(config: &DomainConfig) -> Result<(), StartError> {
    memory::check(&config.place("memory"), config.memory)?;
    check_scheduling(config)?;
    check_cpu(config)?;
    files::blob(&config.place("boot.kernel"), &config.kernel).await?;
    if let Some(initrd) = &config.initrd {
        files::blob(&config.place("boot.initrd"), initrd).await?;
    }
    Ok(())
}
