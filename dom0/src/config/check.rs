//! Checks a config: turns the file's types into a [`DomainConfig`], by ranges, names and keys that exclude each other.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use shared_abi::DeviceId;
use shared_abi::control::IoLimits;
use shared_abi::cpu::{CpuModel, CpuSpec, FeatureName};
use shared_abi::limits::{MAX_CMDLINE, MAX_DEVICES, MAX_FDS, MAX_VCPUS, MEMORY_UNIT, MIN_MEMORY};
use uuid::Uuid;

use crate::config::file::{
    AutostartFile, AutostartTurn, ChangedCpuFile, CpuFile, CpusFile, DomainFile, ModelFile, OnHang,
};
use crate::config::{Autostart, DomainConfig, Policy};
use crate::device::block::config::{Disk, DiskData, OwnDisk};
use crate::device::classes::DeviceConfigs;
use crate::device::{block, external, net};
use crate::value::cpus::{CpuSet, MAX_CAP, MAX_WEIGHT, Scheduling};
use crate::value::names::domain_name;
use crate::value::place::{ConfigError, Context};
use crate::value::size::MemorySize;

/// The namespace of the UUIDs that are made from domains' names (RFC 9562 §5.5).
const UUID_NAMESPACE: Uuid = uuid::uuid!("3b0d8a52-6e2f-4c1b-8f64-9d2a7c5e1f30");

/// What a kernel is told that nobody has anything to tell.
const DEFAULT_CMDLINE: &str = "console=ttyS0";

pub(super) fn check(file: &Path, directory: &Path, text: DomainFile) -> Result<DomainConfig, ConfigError> {
    let context = Context { file, directory };
    let name = domain_name(&text.name).map_err(|problem| context.refuse("name", problem))?;
    let uuid = match text.uuid {
        None => Uuid::new_v5(&UUID_NAMESPACE, name.as_str().as_bytes()),
        Some(text) => match Uuid::try_parse(&text) {
            Ok(uuid) if !uuid.is_nil() => uuid,
            _ => {
                let problem = format!(
                    "{text:?} is no UUID: 5c1d2e5e-0b4f-4d63-9c0a-1f2e3d4c5b6a would do, or leave it out"
                );
                return Err(context.refuse("uuid", problem));
            }
        },
    };
    let vcpus = context.range("vcpus", text.vcpus, 1, MAX_VCPUS.into())? as u8;
    let cpu = cpu(&context, text.cpu, text.nested, text.pmu)?;
    let memory = memory(&context, text.memory)?;
    let kernel = context.path("boot.kernel", &text.boot.kernel)?;
    let initrd = text.boot.initrd.map(|path| context.path("boot.initrd", &path)).transpose()?;
    let cmdline_yields = text.boot.cmdline.is_none();
    let cmdline = text.boot.cmdline.unwrap_or_else(|| DEFAULT_CMDLINE.into());
    if cmdline.len() > MAX_CMDLINE || cmdline.chars().any(char::is_control) {
        let length = cmdline.len();
        let problem = format!("of {length} bytes: at most {MAX_CMDLINE} without control characters would do");
        return Err(context.refuse("boot.cmdline", problem));
    }

    let mut ids = BTreeMap::new();
    let mut unique = |at: String, text: &str| -> Result<DeviceId, ConfigError> {
        let id: DeviceId = text.parse().map_err(|error| context.refuse(&at, error))?;
        match ids.insert(id.clone(), at.clone()) {
            None => Ok(id),
            Some(first) => {
                Err(context.refuse(at, format!("\"{id}\" is taken by {first}: each device needs its own id")))
            }
        }
    };
    let mut disks = Vec::new();
    for (n, disk) in text.disks.into_iter().enumerate() {
        let id = unique(format!("disks[{n}].id"), &disk.id)?;
        disks.push(block::config::check(&context, n, id, disk, vcpus)?);
    }
    // Each has its image, that image's lock and its socket, and there is the lifeline of all.
    let descriptors = 1 + disks.iter().filter_map(Disk::own).map(descriptors).sum::<usize>();
    if descriptors > MAX_FDS {
        let problem = format!("need {descriptors} open files: at most {MAX_FDS} can be handed to a backend");
        return Err(context.refuse("disks", problem));
    }
    let mut nics = Vec::new();
    for (n, net) in text.nets.into_iter().enumerate() {
        let id = unique(format!("nets[{n}].id"), &net.id)?;
        nics.push(net::config::check(&context, n, id, net, vcpus, uuid)?);
    }
    net::config::check_all(&context, &nics)?;
    let mut others = Vec::new();
    for (n, device) in text.devices.into_iter().enumerate() {
        let id = unique(format!("devices[{n}].id"), &device.id)?;
        others.push(external::config::check(&context, n, id, device)?);
    }
    let count = disks.len() + nics.len() + others.len();
    if count > MAX_DEVICES {
        let problem = format!("{count} disks, nets and devices: at most {MAX_DEVICES} fit on the PCI bus");
        return Err(context.refuse("", problem));
    }
    let console_log = text.console.log.map(|path| context.path("console.log", &path)).transpose()?;
    let scheduling = scheduling(&context, text.cpus, text.cpu_weight, text.cpu_cap, vcpus)?;
    let autostart = autostart(&context, text.autostart)?;
    let on_hang = text.on_backend_hang;
    if let OnHang::RestartAfter(seconds) = on_hang {
        context.range("on_backend_hang.restart_after", seconds.into(), 5, 3600)?;
    }
    let policy = Policy {
        on_poweroff: text.on_poweroff,
        on_reboot: text.on_reboot,
        on_crash: text.on_crash,
        on_triple_fault: text.on_triple_fault,
    };
    Ok(DomainConfig {
        directory: directory.to_owned(),
        text: String::new(),
        file: file.into(),
        name,
        uuid,
        vcpus,
        cpu,
        memory,
        kernel,
        initrd,
        cmdline,
        cmdline_yields,
        devices: DeviceConfigs {
            disks,
            disk_limits: text.disk_limits.over(IoLimits::default()),
            nics,
            external: others,
            console_log,
        },
        scheduling,
        autostart,
        on_hang,
        policy,
    })
}

fn cpu(context: &Context<'_>, text: CpuFile, nested: bool, pmu: bool) -> Result<CpuSpec, ConfigError> {
    let text = match text {
        CpuFile::Model(model) => ChangedCpuFile { model, require: Vec::new(), disable: Vec::new() },
        CpuFile::Changed(changed) => changed,
    };
    let model = match text.model {
        ModelFile::Host => CpuModel::Host,
        ModelFile::V2 => CpuModel::V2,
        ModelFile::V3 => CpuModel::V3,
        ModelFile::V4 => CpuModel::V4,
    };
    let list = |key: &str, names: Vec<String>| -> Result<Vec<FeatureName>, ConfigError> {
        let parse = |(n, name): (usize, String)| {
            name.parse().map_err(|why| context.refuse(format!("cpu.{key}[{n}]"), why))
        };
        names.into_iter().enumerate().map(parse).collect()
    };
    let (require, disable) = (list("require", text.require)?, list("disable", text.disable)?);
    if let Some((n, name)) = (0..).zip(&disable).find(|(_, name)| require.contains(name)) {
        let problem = format!("\"{name}\" is in cpu.require too: one of the two would do");
        return Err(context.refuse(format!("cpu.disable[{n}]"), problem));
    }
    Ok(CpuSpec { model, require, disable, nested, pmu })
}

fn scheduling(
    context: &Context<'_>,
    cpus: Option<CpusFile>,
    weight: Option<u64>,
    cap: Option<u64>,
    vcpus: u8,
) -> Result<Scheduling, ConfigError> {
    let set = |at: &str, text: &str| text.parse::<CpuSet>().map_err(|why| context.refuse(at, why));
    let pins = match cpus {
        None => Vec::new(),
        Some(CpusFile::All(text)) => vec![set("cpus", &text)?; vcpus.into()],
        Some(CpusFile::Each(texts)) if texts.len() > usize::from(vcpus) => {
            let problem = format!("{} sets of CPUs: the domain has {vcpus} vCPUs", texts.len());
            return Err(context.refuse("cpus", problem));
        }
        Some(CpusFile::Each(texts)) => {
            let each = (0..).zip(&texts).map(|(n, text): (usize, _)| set(&format!("cpus[{n}]"), text));
            each.collect::<Result<_, _>>()?
        }
    };
    let number = |at: &str, value: Option<u64>, least, most: u32| {
        value.map(|value| context.range(at, value, least, most.into()).map(u32::from)).transpose()
    };
    let weight = number("cpu_weight", weight, 1, MAX_WEIGHT)?;
    Ok(Scheduling { pins, weight, cap: number("cpu_cap", cap, 0, MAX_CAP)? })
}

fn autostart(context: &Context<'_>, text: AutostartFile) -> Result<Option<Autostart>, ConfigError> {
    let AutostartTurn { order, delay } = match text {
        AutostartFile::Plain(false) => return Ok(None),
        AutostartFile::Plain(true) => AutostartTurn { order: Autostart::MIDDLE, delay: 0 },
        AutostartFile::InTurn(turn) => turn,
    };
    let order = context.range("autostart.order", order.into(), 0, 1000)?.into();
    let delay = Duration::from_secs(context.range("autostart.delay", delay, 0, 3600)?.into());
    Ok(Some(Autostart { order, delay }))
}

fn descriptors(disk: &OwnDisk) -> usize {
    match &disk.data {
        DiskData::Qcow2(_, backing) => 3 + backing.len(),
        DiskData::Raw(_) => 3,
        DiskData::Nbd(_) => 2,
    }
}

fn memory(context: &Context<'_>, size: MemorySize) -> Result<u64, ConfigError> {
    let bytes = size.mib.checked_mul(MEMORY_UNIT).filter(|bytes| *bytes <= i64::MAX as u64);
    match bytes {
        Some(bytes) if bytes >= MIN_MEMORY => Ok(bytes),
        Some(_) => {
            let least = MIN_MEMORY / MEMORY_UNIT;
            Err(context.refuse("memory", format!("{size} is too little: at least {least}MiB would do")))
        }
        None => Err(context.refuse("memory", format!("{size} is more than any machine has"))),
    }
}
