//! Records of version 1, whose machine is described by the text of its config alone: read once more, and its devices
//! are in the slots that a dom0 of then gave them, which is their order in that text.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use shared_abi::control::{Cache, IoLimits, NicLimits};
use shared_abi::{DeviceId, DomId, DomainName, Role};

use crate::config::{self, DomainConfig};
use crate::device::classes::DeviceRecords;
use crate::domain::lifecycle::State;
use crate::domain::record::{MachineRecord, ProcessRecord, Record, Source};
use crate::host::files::FileId;
use crate::host::proc::ProcessId;
use crate::value::cpus::Scheduling;

#[derive(Deserialize)]
struct RecordV1 {
    domid: DomId,
    owner: u32,
    foreground: bool,
    source: Source,
    #[serde(default)]
    next: Option<Source>,
    state: State,
    created: bool,
    ended: Option<String>,
    crashed: bool,
    restarts: u64,
    #[serde(default)]
    unit: Option<DomainName>,
    programs: BTreeMap<Role, PathBuf>,
    #[serde(default)]
    scheduling: Option<Scheduling>,
    processes: Vec<ProcessRecord>,
    passts: Vec<(DeviceId, ProcessId)>,
    disks: Vec<DiskV1>,
    disk_limits: IoLimits,
    nics: Vec<NicV1>,
}

#[derive(Deserialize)]
struct DiskV1 {
    id: DeviceId,
    files: Vec<FileId>,
    cache: Cache,
    limits: IoLimits,
    bytes: Option<u64>,
    lost: bool,
}

#[derive(Deserialize)]
struct NicV1 {
    id: DeviceId,
    pairs: u16,
    limits: NicLimits,
    up: bool,
}

/// Reads one of the domain that is called `name` now.
///
/// # Errors
/// It is none. One whose text is no config any more has no devices: nobody can take that domain over, but its processes
/// are known.
pub fn read(json: &[u8], name: &DomainName) -> Result<Record, serde_json::Error> {
    let old: RecordV1 = serde_json::from_slice(json)?;
    let Source { file, directory, text } = &old.source;
    let config = config::parse(file, directory, text).ok();
    let machine = MachineRecord {
        domid: old.domid,
        started_as: old.unit.clone().unwrap_or_else(|| name.clone()),
        memory: config.as_ref().map_or(0, |config| config.memory),
        vcpus: config.as_ref().map_or(0, |config| config.vcpus),
        scheduling: old
            .scheduling
            .clone()
            .or_else(|| config.as_ref().map(|config| config.scheduling.clone()))
            .unwrap_or_default(),
        programs: old.programs.clone(),
        processes: old.processes.clone(),
        devices: config.map(|config| old.devices(&config)).unwrap_or_default(),
    };
    let record = Record::new(old.state, old.source, machine);
    Ok(Record {
        owner: old.owner,
        foreground: old.foreground,
        next: old.next,
        created: old.created,
        ended: old.ended,
        crashed: old.crashed,
        restarts: old.restarts,
        ..record
    })
}

impl RecordV1 {
    /// The devices of the config, with what has changed of them since.
    fn devices(&self, config: &DomainConfig) -> DeviceRecords {
        let mut devices = DeviceRecords::first(&config.devices);
        devices.block.limits = self.disk_limits;
        for disk in &mut devices.block.disks {
            if let Some(old) = self.disks.iter().find(|old| old.id == disk.disk.id) {
                disk.files.clone_from(&old.files);
                (disk.cache, disk.limits, disk.bytes, disk.lost) =
                    (old.cache, old.limits, old.bytes, old.lost);
            }
        }
        for nic in &mut devices.nics {
            if let Some(old) = self.nics.iter().find(|old| old.id == nic.nic.id) {
                (nic.pairs, nic.limits, nic.up) = (old.pairs, old.limits, old.up);
                nic.spec.queues = nic.nic.virtqueues(old.pairs);
            }
            let passt = self.passts.iter().find(|(id, _)| *id == nic.nic.id);
            nic.passt = passt.map(|(_, known)| *known);
        }
        devices
    }
}
