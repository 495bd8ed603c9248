//! A NIC as a virtio device behind a connection.

use std::sync::Arc;

use vu_server::Device;

use crate::nic::Nic;
use crate::worker_command::NicCommand;

/// The device's side of a NIC.
#[derive(Debug)]
pub struct NetDevice {
    nic: Arc<Nic>,
}

impl NetDevice {
    /// Of this NIC.
    pub fn new(nic: Arc<Nic>) -> Self {
        Self { nic }
    }
}

impl Device for NetDevice {
    type Command = NicCommand;

    fn features(&self) -> u64 {
        self.nic.offered()
    }

    fn config(&self) -> Vec<u8> {
        self.nic.config()
    }

    fn set_features(&mut self, features: u64) {
        self.nic.settled(features);
    }

    fn reset(&mut self) {
        self.nic.forget_driver();
    }

    fn abandoned(&mut self) {
        self.nic.abandoned();
    }
}
