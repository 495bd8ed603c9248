//! From the file's types to a [`DomainConfig`]: ranges, names, and what excludes what.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use shared_abi::control::{DeviceConfig, IoLimits};
use shared_abi::ids::IdError;
use shared_abi::limits::{
    MAX_CMDLINE, MAX_DEVICE_CONFIG, MAX_DEVICES, MAX_FDS, MAX_QUEUE_SIZE, MAX_QUEUES, MAX_VCPUS, MEMORY_UNIT,
    MIN_MEMORY,
};
use shared_abi::{DeviceId, DomainName};
use uuid::Uuid;

use super::cpus::CpuSet;
use super::file::{AutostartFile, AutostartTurn, CpusFile, DeviceFile, DomainFile};
use super::{
    Autostart, ConfigError, Disk, DiskData, DomainConfig, Foreign, MemorySize, OwnDisk, Policy, disk, net,
};
use crate::domain::scheduling::Scheduling;

/// The greatest weight of a domain: what a cgroup takes.
pub const MOST_WEIGHT: u32 = 10_000;
/// The greatest cap of a domain in percent of one CPU: all that the most vCPUs can use.
pub const MOST_CAP: u32 = 100 * MAX_VCPUS as u32;

/// The namespace of the UUIDs that are made from domains' names (RFC 9562 §5.5).
const DOMAINS: Uuid = uuid::uuid!("3b0d8a52-6e2f-4c1b-8f64-9d2a7c5e1f30");

/// What every check needs: for messages, and to make paths absolute.
pub(super) struct Context<'a> {
    file: &'a Path,
    directory: &'a Path,
}

impl Context<'_> {
    pub(super) fn refuse(&self, at: impl Display, problem: impl Display) -> ConfigError {
        ConfigError::new(self.file, at, problem)
    }

    pub(super) fn path(&self, at: &str, text: &str) -> Result<PathBuf, ConfigError> {
        if text.is_empty() || text.contains('\0') {
            return Err(self.refuse(at, format!("{text:?} is no path: name a file")));
        }
        Ok(self.directory.join(text))
    }

    pub(super) fn range(&self, at: &str, value: u64, least: u64, most: u64) -> Result<u16, ConfigError> {
        match u16::try_from(value) {
            Ok(small) if (least..=most).contains(&value) => Ok(small),
            _ => Err(self.refuse(at, format!("{value} is out of range: {least} to {most} would do"))),
        }
    }

    pub(super) fn interface(&self, at: &str, text: String) -> Result<String, ConfigError> {
        if is_interface(&text) {
            Ok(text)
        } else {
            Err(self.refuse(
                at,
                format!("{text:?} is no interface name: 1 to 15 printable characters without / : %"),
            ))
        }
    }
}

/// The kernel's rule (dev_valid_name): IFNAMSIZ with its NUL, no slash, colon or white space, no dots. Nor a quotation
/// mark: such a name is written into a packet filter.
pub fn is_interface(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text != "."
        && text != ".."
        && text
            .bytes()
            .all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%' | b'"' | b'\\' | b','))
}

/// The name of a domain.
///
/// # Errors
/// One line: it is no name, or could be taken for something else.
pub fn domain_name(text: &str) -> Result<DomainName, String> {
    let name: DomainName = text.parse().map_err(|error: IdError| error.to_string())?;
    if name.as_str() == "Domain-0" || name.as_str().bytes().all(|b| b.is_ascii_digit()) {
        return Err(format!(
            "\"{name}\" would be taken for the host or for a domain's ID: begin with a letter"
        ));
    }
    Ok(name)
}

pub(super) fn check(file: &Path, directory: &Path, text: DomainFile) -> Result<DomainConfig, ConfigError> {
    let context = Context { file, directory };
    let name = domain_name(&text.name).map_err(|problem| context.refuse("name", problem))?;
    let uuid = match text.uuid {
        None => Uuid::new_v5(&DOMAINS, name.as_str().as_bytes()),
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
    let memory = memory(&context, text.memory)?;
    let kernel = context.path("boot.kernel", &text.boot.kernel)?;
    let initrd = text.boot.initrd.map(|path| context.path("boot.initrd", &path)).transpose()?;
    let cmdline = text.boot.cmdline;
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
        disks.push(disk::check(&context, n, id, disk, vcpus)?);
    }
    // Each has its image, that image's lock and its socket, and there is the lifeline of all.
    let descriptors = 1 + disks.iter().filter_map(Disk::own).map(descriptors).sum::<usize>();
    if descriptors > MAX_FDS {
        let problem = format!("need {descriptors} open files: at most {MAX_FDS} can be handed to a backend");
        return Err(context.refuse("disks", problem));
    }
    let mut nets = Vec::new();
    for (n, net) in text.nets.into_iter().enumerate() {
        let id = unique(format!("nets[{n}].id"), &net.id)?;
        nets.push(net::check(&context, n, id, net, vcpus, uuid)?);
    }
    net::check_all(&context, &nets)?;
    let mut devices = Vec::new();
    for (n, device) in text.devices.into_iter().enumerate() {
        let id = unique(format!("devices[{n}].id"), &device.id)?;
        devices.push(foreign(&context, n, id, device)?);
    }
    let count = disks.len() + nets.len() + devices.len();
    if count > MAX_DEVICES {
        let problem = format!("{count} disks, nets and devices: at most {MAX_DEVICES} fit on the PCI bus");
        return Err(context.refuse("", problem));
    }
    let console_log = text.console.log.map(|path| context.path("console.log", &path)).transpose()?;
    let scheduling = scheduling(&context, text.cpus, text.cpu_weight, text.cpu_cap, vcpus)?;
    let autostart = autostart(&context, text.autostart)?;
    let policy = Policy { on_poweroff: text.on_poweroff, on_reboot: text.on_reboot, on_crash: text.on_crash };
    Ok(DomainConfig {
        directory: directory.to_owned(),
        text: String::new(),
        file: file.into(),
        unit: name.clone(),
        name,
        uuid,
        vcpus,
        memory,
        kernel,
        initrd,
        cmdline,
        disks,
        disk_limits: text.disk_limits.over(IoLimits::default()),
        nets,
        devices,
        console_log,
        scheduling,
        autostart,
        policy,
    })
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
    let weight = number("cpu_weight", weight, 1, MOST_WEIGHT)?;
    Ok(Scheduling { pins, weight, cap: number("cpu_cap", cap, 0, MOST_CAP)? })
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

fn foreign(
    context: &Context<'_>,
    n: usize,
    id: DeviceId,
    device: DeviceFile,
) -> Result<Foreign, ConfigError> {
    let at = |key: &str| format!("devices[{n}].{key}");
    // Modern virtio-pci has device ids 0x1040 to 0x107f (virtio 1.3 §4.1.2).
    let virtio_type = context.range(&at("virtio_type"), device.virtio_type, 1, 63)?;
    let queues = context.range(&at("queues"), device.queues, 1, MAX_QUEUES.into())?;
    let queue_size = context.range(&at("queue_size"), device.queue_size, 2, MAX_QUEUE_SIZE.into())?;
    if !queue_size.is_power_of_two() {
        let problem = format!("{queue_size} is no power of two: 128 or 256 would do");
        return Err(context.refuse(at("queue_size"), problem));
    }
    let pci_class = match device.pci_class {
        None => usual_class(virtio_type),
        Some(class) => match u32::try_from(class) {
            Ok(class) if class <= 0x00ff_ffff => class,
            _ => {
                return Err(
                    context.refuse(at("pci_class"), format!("{class} is out of range: 24 bits would do"))
                );
            }
        },
    };
    let config = match (device.config, device.config_size) {
        (Some(_), Some(_)) => {
            return Err(context.refuse(at("config_size"), "excludes config: give one of them"));
        }
        (Some(hex), None) => match from_hex(&hex) {
            Some(bytes) => DeviceConfig::Given(bytes),
            None => {
                let length = hex.len();
                let problem = format!(
                    "of {length} characters: up to {MAX_DEVICE_CONFIG} pairs of hexadecimal digits would do"
                );
                return Err(context.refuse(at("config"), problem));
            }
        },
        (None, size) => {
            let size = size.unwrap_or(usual_config(virtio_type));
            match context.range(&at("config_size"), size, 0, MAX_DEVICE_CONFIG as u64)? {
                0 => DeviceConfig::Given(Vec::new()),
                size => DeviceConfig::FromBackend(size),
            }
        }
    };
    let socket = context.path(&at("vhost_user_socket"), &device.vhost_user_socket)?;
    Ok(Foreign { id, virtio_type, pci_class, queues, queue_size, config, socket })
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let fits = text.len().is_multiple_of(2) && text.len() <= 2 * MAX_DEVICE_CONFIG;
    if !fits || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|n| u8::from_str_radix(&text[n..n + 2], 16).ok()).collect()
}

/// Bytes of configuration space that the common virtio device types have (virtio 1.3 §5).
fn usual_config(virtio_type: u16) -> u64 {
    match virtio_type {
        1 => 12,
        2 => 60,
        3 => 12,
        8 => 36,
        16 => 16,
        19 => 8,
        26 => 40,
        _ => 0,
    }
}

/// The PCI class code a virtio device type usually has (PCI Code and ID Assignment, 1.16).
fn usual_class(virtio_type: u16) -> u32 {
    match virtio_type {
        1 => 0x02_0000,           // network: Ethernet
        2 | 8 | 26 => 0x01_8000,  // block, SCSI, file system: other mass storage
        3 | 11 | 19 => 0x07_8000, // console, serial, vsock: other communication
        16 => 0x03_8000,          // GPU: other display
        18 => 0x09_8000,          // input: other input
        20 => 0x10_8000,          // crypto: other encryption
        25 => 0x04_0100,          // sound: audio
        _ => 0xff_0000,           // unassigned
    }
}
