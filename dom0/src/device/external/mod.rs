//! Devices of vhost-user backends that Domus does not start, of any virtio type.

pub mod config;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use futures_util::future::FutureExt;
use serde::{Deserialize, Serialize};
use shared_abi::DeviceId;
use shared_abi::control::{DeviceFeatures, DeviceSpec};

use crate::device::error::DeviceError;
use crate::device::external::config::ExternalDevice;
use crate::device::plan::{Plan, PlannedDevice};
use crate::device::slots::SlotMap;
use crate::device::{Backend, Owner, Providers, Step};
use crate::host::sockets;
use crate::network::managed::Networks;
use crate::value::place::Place;

/// What is written down of such a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalRecord {
    /// Its place in the config's list.
    pub n: usize,
    /// What the guest sees.
    pub spec: DeviceSpec,
    /// The socket the backend listens on.
    pub socket: PathBuf,
}

impl ExternalRecord {
    /// Of device `n` of a config.
    pub fn first(n: usize, device: &ExternalDevice, slots: &mut SlotMap) -> Self {
        let ExternalDevice { id, virtio_type, pci_class, queues, queue_size, config, socket } =
            device.clone();
        let (slot, features) = (slots.take(), DeviceFeatures::default());
        let spec = DeviceSpec { id, slot, virtio_type, pci_class, queues, queue_size, config, features };
        Self { n, spec, socket }
    }
}

/// The devices of a machine whose backends Domus does not start.
#[derive(Debug)]
pub struct Externals {
    /// The config file, for messages.
    file: PathBuf,
    devices: Vec<ExternalRecord>,
}

impl Externals {
    /// As they were written down.
    pub fn new(file: &Path, records: &[ExternalRecord]) -> Self {
        Self { file: file.into(), devices: records.to_vec() }
    }

    /// For a dom0 that comes later.
    pub fn records(&self) -> Vec<ExternalRecord> {
        self.devices.clone()
    }

    async fn dial(&self, device: &ExternalRecord, connect: bool) -> Result<Option<OwnedFd>, DeviceError> {
        let place = Place::new(&self.file, format_args!("devices[{}].vhost_user_socket", device.n));
        Ok(sockets::foreign(&place, &device.socket, connect).await?)
    }
}

impl Backend for Externals {
    fn specs(&self) -> Vec<DeviceSpec> {
        self.devices.iter().map(|device| device.spec.clone()).collect()
    }

    fn check<'a>(&'a self, _networks: &'a Networks) -> Step<'a, ()> {
        async {
            for device in &self.devices {
                self.dial(device, false).await?;
            }
            Ok(())
        }
        .boxed_local()
    }

    fn plan(&self, plan: &mut Plan) {
        plan.devices.extend(self.devices.iter().map(|device| {
            let kind = format!("virtio {}", device.spec.virtio_type);
            let backend = device.socket.display().to_string();
            PlannedDevice::new(&device.spec, kind, backend, "a device of others'".into(), "stall".into())
        }));
    }

    fn connect<'a>(
        &'a self,
        device: &'a DeviceId,
        _owner: &'a Owner,
        _from: &'a Providers,
    ) -> Step<'a, OwnedFd> {
        async move {
            let found = self.devices.iter().find(|external| external.spec.id == *device);
            let nothing = || DeviceError::NotHere(device.clone());
            self.dial(found.ok_or_else(nothing)?, true).await?.ok_or_else(nothing)
        }
        .boxed_local()
    }
}
