//! Records of version 1, whose machine is described by the text of its config alone: read once more, and its devices
//! are in the slots that a dom0 of then gave them, which is their order in that text.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;
use shared_abi::control::{Cache, IoLimits, NicLimits};
use shared_abi::{DeviceId, DomId, DomainName, Role};

use crate::config::{self, DomainConfig, OnHang};
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
        on_hang: OnHang::default(),
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by the last dom0 whose records had no version, about a guest with two disks, a NIC on a bridge and one
    /// on passt.
    const STORED: &[u8] = include_bytes!("v1.json");

    #[test]
    fn a_stored_record_has_its_devices_in_the_slots_where_the_guest_has_found_them() {
        let name: DomainName = "web1".parse().unwrap();
        let record = Record::read(STORED, &name).unwrap();
        let MachineRecord { domid, memory, vcpus, started_as, devices, .. } = &record.machine;
        assert_eq!((domid.0, *memory, *vcpus, started_as), (1, 32 << 20, 2, &name));
        let disks = devices.block.disks.iter().map(|disk| &disk.spec);
        let specs: Vec<_> = disks.chain(devices.nics.iter().map(|nic| &nic.spec)).collect();
        let seen: Vec<_> = specs
            .iter()
            .map(|spec| (spec.slot.unwrap().number(), spec.id.as_str(), spec.virtio_type, spec.queues))
            .collect();
        assert_eq!(seen, [(1, "root", 2, 2), (2, "data", 2, 2), (3, "eth0", 1, 5), (4, "eth1", 1, 3)]);
        // What had changed since, and what tells an image from another one at its path.
        let root = &devices.block.disks[0];
        assert_eq!(root.limits.total.iops.unwrap().per_second, 900_000);
        assert_eq!((root.bytes, root.files.len()), (Some(64 << 20), 1));
        // The runner, three backends and passt.
        assert_eq!(record.known().count(), 5);
        assert!(devices.nics[1].passt.is_some());
    }

    #[test]
    fn what_is_read_of_it_is_written_and_read_again_as_it_is() {
        let name: DomainName = "web1".parse().unwrap();
        let record = Record::read(STORED, &name).unwrap();
        let json = serde_json::to_vec(&record).unwrap();
        assert_eq!(Record::read(&json, &name).unwrap(), record);
        let other = String::from_utf8(json).unwrap().replace("\"version\":2", "\"version\":7");
        let error = Record::read(other.as_bytes(), &name).unwrap_err().to_string();
        assert!(error.contains("version 7"), "{error}");
    }
}
