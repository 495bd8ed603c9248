//! The table of classes: the devices of one machine, made from a config or from what a dom0 before this one wrote down.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use serde::{Deserialize, Serialize};
use shared_abi::control::{DeviceSpec, IoLimits};
use shared_abi::{DeviceId, Role};

use crate::device::block::Disks;
use crate::device::block::config::Disk;
use crate::device::block::record::BlockRecord;
use crate::device::console::Console;
use crate::device::external::config::ExternalDevice;
use crate::device::external::{ExternalRecord, Externals};
use crate::device::loss::Loss;
use crate::device::net::Nics;
use crate::device::net::config::Nic;
use crate::device::net::nic::NicRecord;
use crate::device::plan::Plan;
use crate::device::slots::SlotMap;
use crate::device::{Backend, Owner, Providers};
use crate::host::proc::ProcessId;

/// What a config says of devices.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceConfigs {
    /// Disks, in the order of their PCI slots.
    pub disks: Vec<Disk>,
    /// What all of them together may do.
    pub disk_limits: IoLimits,
    /// NICs, after the disks.
    pub nics: Vec<Nic>,
    /// Devices of backends that Domus does not start, last.
    pub external: Vec<ExternalDevice>,
    /// The file to which all that the guest prints is appended.
    pub console_log: Option<PathBuf>,
}

/// What is written down of the devices of a machine: all that another dom0 needs to go on with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DeviceRecords {
    /// The disks.
    pub block: BlockRecord,
    /// The NICs.
    pub nics: Vec<NicRecord>,
    /// The devices of backends that Domus does not start.
    pub external: Vec<ExternalRecord>,
    /// The file to which all that the guest prints is appended.
    pub console_log: Option<PathBuf>,
}

impl DeviceRecords {
    /// Their helper processes.
    pub fn processes(&self) -> impl Iterator<Item = ProcessId> {
        self.nics.iter().filter_map(|nic| nic.passt)
    }

    /// What every machine of this config begins with: nothing is open, each device has the next PCI slot.
    pub fn first(config: &DeviceConfigs) -> Self {
        let mut slots = SlotMap::default();
        Self {
            block: BlockRecord::first(&config.disks, config.disk_limits, &mut slots),
            nics: config
                .nics
                .iter()
                .enumerate()
                .map(|(n, nic)| NicRecord::first(n, nic, &mut slots))
                .collect(),
            external: config
                .external
                .iter()
                .enumerate()
                .map(|(n, device)| ExternalRecord::first(n, device, &mut slots))
                .collect(),
            console_log: config.console_log.clone(),
        }
    }
}

/// The devices of one machine: by class for operators' verbs, and all alike for everybody else.
#[derive(Debug)]
pub struct Devices {
    /// The disks.
    pub disks: Rc<Disks>,
    /// The NICs.
    pub nics: Rc<Nics>,
    /// The serial console.
    pub console: Rc<Console>,
    /// The devices of backends that Domus does not start.
    pub externals: Rc<Externals>,
}

impl Devices {
    /// Those of a config, whose file is named in messages.
    pub fn new(file: &Path, config: &DeviceConfigs) -> Self {
        Self::of(file, &DeviceRecords::first(config))
    }

    /// Those of a config that a sealed process of the domain's own looks into before it serves them, and nothing else:
    /// images. They are opened as for a check.
    pub fn to_look_into(file: &Path, config: &DeviceConfigs) -> Self {
        let DeviceRecords { mut block, .. } = DeviceRecords::first(config);
        block.disks.retain(|record| record.has_image());
        let devices = Self::of(file, &DeviceRecords { block, ..DeviceRecords::default() });
        devices.disks.set_looked_into();
        devices
    }

    /// Those that a dom0 before this one wrote down. Nothing of them is open here.
    pub fn adopted(owner: &Owner, records: &DeviceRecords, from: &Providers) -> Self {
        let devices = Self::of(&owner.file, records);
        devices.disks.are_inherited();
        devices.nics.are_inherited(owner, from);
        devices
    }

    fn of(file: &Path, records: &DeviceRecords) -> Self {
        Self {
            disks: Rc::new(Disks::new(file, &records.block)),
            nics: Rc::new(Nics::new(file, &records.nics)),
            console: Rc::new(Console::new(file.into(), records.console_log.clone())),
            externals: Rc::new(Externals::new(file, &records.external)),
        }
    }

    /// The same, with nothing open.
    pub fn closed(&self, file: &Path) -> Self {
        Self::of(file, &self.records())
    }

    /// What another dom0 must know of them.
    pub fn records(&self) -> DeviceRecords {
        DeviceRecords {
            block: self.disks.record(),
            nics: self.nics.records(),
            external: self.externals.records(),
            console_log: self.console.log(),
        }
    }

    /// Every class.
    pub fn all(&self) -> [Rc<dyn Backend>; 4] {
        [self.console.clone(), self.disks.clone(), self.nics.clone(), self.externals.clone()]
    }

    /// The class that a process in this role serves.
    pub fn in_role(&self, role: Role) -> Option<Rc<dyn Backend>> {
        self.all().into_iter().find(|class| class.role() == Some(role))
    }

    /// The class of a device.
    pub fn of_device(&self, device: &DeviceId) -> Option<Rc<dyn Backend>> {
        self.all().into_iter().find(|class| class.specs().iter().any(|spec| spec.id == *device))
    }

    /// The class that a loss concerns.
    pub fn concerned(&self, loss: &Loss) -> Option<Rc<dyn Backend>> {
        match loss {
            Loss::Process(role) => self.in_role(*role),
            loss => self.of_device(loss.device()?),
        }
    }

    /// The roles of the processes that they need.
    pub fn roles(&self) -> impl Iterator<Item = Role> {
        self.all().into_iter().filter_map(|class| class.role())
    }

    /// What the guest sees, by class and in the order of the config.
    pub fn specs(&self) -> Vec<DeviceSpec> {
        self.all().iter().flat_map(|class| class.specs()).collect()
    }

    /// What starting them would take.
    pub fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        self.all().iter().for_each(|class| class.plan(&mut plan));
        plan.devices.sort_by_key(|device| device.slot);
        plan
    }
}
