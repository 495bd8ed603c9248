//! The plan of a domain: every process, file, device and piece of memory that starting it would take.
//!
//! The plan follows from the config, by the rules of dom0 and of the runner; files are looked at and not opened.
//! Whether the host has what the plan needs is checked before the plan is made.

use std::fmt::Write;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use dom0::config::{DomainConfig, OnStop};
use dom0::device::block::config::{Disk, DiskData, DiskSource, OnLoss};
use dom0::device::net::config::{Net, NetLink};
use serde::Serialize;

/// Where the RAM below 4 GiB ends, and devices begin.
const LOW_RAM_END: u64 = 3 << 30;

/// Where the rest of the RAM begins.
const HIGH_RAM: u64 = 4 << 30;

/// The first slot of the PCI root that devices are in; 0 is the root's own.
const FIRST_SLOT: usize = 1;

/// A domain, before it is made.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    name: String,
    uuid: String,
    vcpus: u8,
    memory_mib: u64,
    /// What of the guest's address space is RAM.
    ram: Vec<Ram>,
    boot: Boot,
    /// Programs that would be started for it, or that it would use.
    processes: Vec<Process>,
    /// What would be opened.
    files: Vec<File>,
    /// What the guest would see on its PCI bus.
    devices: Vec<Device>,
    policies: Policies,
    /// What somebody should know who starts it.
    notes: Vec<String>,
    /// It could be started now: nothing else is ever printed.
    ok: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Ram {
    /// The first guest physical address.
    from: u64,
    /// Bytes.
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Boot {
    kernel: PathBuf,
    initrd: Option<PathBuf>,
    cmdline: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Process {
    program: &'static str,
    /// How many there are.
    count: usize,
    /// The devices that it serves.
    serves: Vec<String>,
    /// It is the domain's own, and not shared.
    own: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct File {
    path: String,
    /// `kernel`, `initrd`, or the id of a disk.
    what: String,
    /// `file`, `block device`, or `nbd`.
    kind: &'static str,
    /// Its length, if it has one; of a qcow2 image that is not its disk's size.
    bytes: Option<u64>,
    /// `none`; `shared`: others may read, too; `exclusive`: nobody else may use it.
    lock: &'static str,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Device {
    /// Its slot on the PCI root.
    slot: usize,
    id: String,
    /// `block`, `net`, or `virtio` and the number of its type.
    kind: String,
    /// Virtqueues.
    queues: u16,
    /// Who serves it.
    backend: String,
    /// What is behind it: an image, a wire.
    is: String,
    /// What becomes of the domain if its backend is lost.
    on_backend_loss: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
struct Policies {
    on_poweroff: OnStop,
    on_reboot: OnStop,
    on_crash: OnStop,
    /// Its turn among those that start with the host, if it does.
    autostart: Option<u32>,
}

impl Plan {
    /// Of a config that has been checked.
    pub fn of(config: &DomainConfig, notes: Vec<String>) -> Self {
        let low = config.memory.min(LOW_RAM_END);
        let mut ram = vec![Ram { from: 0, bytes: low }];
        if config.memory > low {
            ram.push(Ram { from: HIGH_RAM, bytes: config.memory - low });
        }
        Self {
            name: config.name.to_string(),
            uuid: config.uuid.to_string(),
            vcpus: config.vcpus,
            memory_mib: config.memory >> 20,
            ram,
            boot: Boot {
                kernel: config.kernel.clone(),
                initrd: config.initrd.clone(),
                cmdline: config.cmdline.clone(),
            },
            processes: processes(config),
            files: files(config),
            devices: devices(config),
            policies: Policies {
                on_poweroff: config.policy.on_poweroff,
                on_reboot: config.policy.on_reboot,
                on_crash: config.policy.on_crash,
                autostart: config.autostart.map(|autostart| autostart.order),
            },
            notes,
            ok: true,
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut out =
            format!("{}: {} vCPU(s), {} MiB, {}\n", self.name, self.vcpus, self.memory_mib, self.uuid);
        // Writing to a string does not fail.
        for Ram { from, bytes } in &self.ram {
            let _ = writeln!(out, "  RAM      {from:#x} to {:#x}", from + bytes);
        }
        let _ = writeln!(out, "  boot     {} {:?}", self.boot.kernel.display(), self.boot.cmdline);
        for Process { program, count, serves, own } in &self.processes {
            let shared = if *own { "" } else { ", shared with others" };
            let of = if serves.is_empty() { String::new() } else { format!(" for {}", serves.join(", ")) };
            let _ = writeln!(out, "  process  {count} {program}{of}{shared}");
        }
        for File { path, what, kind, bytes, lock } in &self.files {
            let size = bytes.map(|bytes| format!(" of {bytes} bytes")).unwrap_or_default();
            let lock = if *lock == "none" { String::new() } else { format!(", lock {lock}") };
            let _ = writeln!(out, "  file     {what}: {path}, {kind}{size}{lock}");
        }
        for Device { slot, id, kind, queues, backend, is, on_backend_loss } in &self.devices {
            let _ = writeln!(
                out,
                "  PCI {slot:<4} {id}: {kind}, {queues} queue(s), {is}, served by {backend}; \
                 if that is lost: {on_backend_loss}"
            );
        }
        let Policies { on_poweroff, on_reboot, on_crash, autostart } = &self.policies;
        // As a config writes it.
        let policy = |policy: &OnStop| {
            serde_json::to_value(policy)
                .map_or_else(|_| String::new(), |is| is.as_str().unwrap_or_default().to_owned())
        };
        let _ = write!(
            out,
            "  policies poweroff {}, reboot {}, crash {}{}",
            policy(on_poweroff),
            policy(on_reboot),
            policy(on_crash),
            autostart.map(|order| format!(", starts with the host as number {order}")).unwrap_or_default()
        );
        for note in &self.notes {
            let _ = write!(out, "\n  note     {note}");
        }
        out
    }
}

fn processes(config: &DomainConfig) -> Vec<Process> {
    let one = |program, serves: Vec<String>| Process { program, count: 1, serves, own: true };
    let mut processes = vec![one("domu-runner", vec![]), one("domus-console", vec![])];
    let disks: Vec<_> =
        config.disks.iter().filter(|disk| disk.own().is_some()).map(|disk| disk.id.to_string()).collect();
    if !disks.is_empty() {
        processes.push(one("domus-block", disks));
    }
    let nics = |is: fn(&Net) -> bool| -> Vec<String> {
        config.nets.iter().filter(|net| is(net)).map(|net| net.id.to_string()).collect()
    };
    let own = nics(Net::is_own);
    if !own.is_empty() {
        processes.push(one("domus-net", own));
    }
    let user = nics(|net| matches!(net.link, NetLink::User(_)));
    if !user.is_empty() {
        processes.push(Process { program: "passt", count: user.len(), serves: user, own: true });
    }
    let mut switches = std::collections::BTreeMap::<_, Vec<String>>::new();
    for net in &config.nets {
        if let NetLink::Switch(switch) = &net.link {
            switches.entry(switch.as_str()).or_default().push(net.id.to_string());
        }
    }
    for serves in switches.into_values() {
        processes.push(Process { program: "domus-switch", count: 1, serves, own: false });
    }
    processes
}

fn files(config: &DomainConfig) -> Vec<File> {
    let mut files = vec![file("kernel".into(), &config.kernel, "none")];
    files.extend(config.initrd.iter().map(|path| file("initrd".into(), path, "none")));
    for disk in &config.disks {
        let Some(own) = disk.own() else { continue };
        let lock = if own.read_only { "shared" } else { "exclusive" };
        let id = disk.id.to_string();
        match &own.data {
            DiskData::Raw(path) => files.push(file(id, path, lock)),
            DiskData::Qcow2(path, backing) => {
                files.push(file(id.clone(), path, lock));
                files.extend(backing.iter().map(|(path, _)| file(id.clone(), path, "shared")));
            }
            DiskData::Nbd(uri) => {
                files.push(File { path: uri.to_string(), what: id, kind: "nbd", bytes: None, lock: "none" });
            }
        }
    }
    files
}

fn file(what: String, path: &Path, lock: &'static str) -> File {
    let meta = std::fs::metadata(path).ok();
    let is_block = meta.as_ref().is_some_and(|meta| meta.file_type().is_block_device());
    // A block device has no length there; whoever opens it learns its size.
    let bytes = meta.filter(|_| !is_block).map(|meta| meta.len());
    let kind = if is_block { "block device" } else { "file" };
    File { path: path.display().to_string(), what, kind, bytes, lock }
}

fn devices(config: &DomainConfig) -> Vec<Device> {
    let disks = config.disks.iter().map(disk);
    let nets = config.nets.iter().map(net);
    let foreign = config.devices.iter().map(|device| Device {
        slot: 0,
        id: device.id.to_string(),
        kind: format!("virtio {}", device.virtio_type),
        queues: device.queues,
        backend: device.socket.display().to_string(),
        is: "a device of others'".into(),
        on_backend_loss: "stall".into(),
    });
    let mut devices: Vec<_> = disks.chain(nets).chain(foreign).collect();
    for (slot, device) in (FIRST_SLOT..).zip(&mut devices) {
        device.slot = slot;
    }
    devices
}

fn disk(disk: &Disk) -> Device {
    let (backend, is) = match &disk.source {
        DiskSource::VhostUser(socket) => (socket.display().to_string(), "a disk of others'".into()),
        DiskSource::Own(own) => {
            let access = if own.read_only { "read only" } else { "read and write" };
            let is = match &own.data {
                DiskData::Raw(path) => format!("raw {}", path.display()),
                DiskData::Qcow2(path, backing) => {
                    format!("qcow2 {} on {} image(s)", path.display(), backing.len())
                }
                DiskData::Nbd(uri) => uri.to_string(),
            };
            ("domus-block".into(), format!("{is}, {access}"))
        }
    };
    let on_backend_loss = match disk.on_loss {
        OnLoss::Stall => "stall".into(),
        OnLoss::Pause => "pause".into(),
        OnLoss::PauseAfter(seconds) => format!("pause after {seconds} s"),
        OnLoss::ErrorAfter(seconds) => format!("error after {seconds} s"),
    };
    Device {
        slot: 0,
        id: disk.id.to_string(),
        kind: "block".into(),
        queues: disk.queues,
        backend,
        is,
        on_backend_loss,
    }
}

fn net(net: &Net) -> Device {
    let (backend, wire) = match &net.link {
        // The tap is called by the domain's number, which it gets when it is made.
        NetLink::Bridge(bridge) => ("domus-net".to_owned(), format!("a new tap on the bridge {bridge}")),
        NetLink::Tap(tap) => ("domus-net".into(), format!("the tap {tap}")),
        NetLink::Macvtap(below) => ("domus-net".into(), format!("a new macvtap on {below}")),
        NetLink::Network(network) => ("domus-net".into(), format!("a new tap on the network {network}")),
        NetLink::Switch(switch) => ("domus-switch".into(), format!("the switch {switch}")),
        NetLink::VhostUser(socket) => (socket.display().to_string(), "a NIC of others'".into()),
        NetLink::User(ports) => {
            ("domus-net".into(), format!("passt with {} port(s) to the guest", ports.len()))
        }
    };
    let cable = if net.up { "" } else { ", its cable pulled" };
    Device {
        slot: 0,
        id: net.id.to_string(),
        kind: "net".into(),
        queues: net.virtqueues(net.pairs),
        backend,
        is: format!("{wire}, {}, MTU {}{cable}", net.mac, net.mtu),
        on_backend_loss: "stall".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plan_names_every_process_file_and_device_in_its_place() {
        let text = r#"{
            "name": "web1", "vcpus": 2, "memory": "5GiB", "boot": { "kernel": "vmlinuz", "initrd": "initrd" },
            "disks": [
                { "id": "root", "path": "a.qcow2", "format": "qcow2", "backing": [{ "path": "b", "format": "raw" }] },
                { "id": "cd", "path": "nbd://host/cd", "read_only": true, "on_backend_loss": { "error_after": 5 } },
                { "id": "other", "vhost_user_socket": "disk.sock" }
            ],
            "nets": [
                { "id": "eth0", "bridge": "br0", "link": "down" }, { "id": "eth1" }, { "id": "eth2", "switch": "s" }
            ],
            "devices": [ { "id": "fs", "virtio_type": 26, "queues": 2, "vhost_user_socket": "fs.sock" } ]
        }"#;
        let config = dom0::config::parse(Path::new("web1.json"), Path::new("/srv"), text).unwrap();
        let plan = Plan::of(&config, vec!["take care".into()]);
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["ram"][0]["bytes"], LOW_RAM_END);
        assert_eq!(
            (&json["ram"][1]["from"], &json["ram"][1]["bytes"]),
            (&HIGH_RAM.into(), &(2_u64 << 30).into())
        );
        let programs: Vec<_> =
            plan.processes.iter().map(|it| (it.program, it.serves.join(" "), it.own)).collect();
        let expected = [
            ("domu-runner", "", true),
            ("domus-console", "", true),
            ("domus-block", "root cd", true),
            ("domus-net", "eth0 eth1", true),
            ("passt", "eth1", true),
            ("domus-switch", "eth2", false),
        ];
        assert_eq!(programs, expected.map(|(program, serves, own)| (program, serves.to_owned(), own)));
        let files: Vec<_> = plan.files.iter().map(|it| (it.path.as_str(), it.lock)).collect();
        let expected = [
            ("/srv/vmlinuz", "none"),
            ("/srv/initrd", "none"),
            ("/srv/a.qcow2", "exclusive"),
            ("/srv/b", "shared"),
            ("nbd://host/cd", "none"),
        ];
        assert_eq!(files, expected);
        let devices: Vec<_> = plan.devices.iter().map(|it| (it.slot, it.id.as_str(), it.queues)).collect();
        let expected = [
            (1, "root", 2),
            (2, "cd", 2),
            (3, "other", 2),
            (4, "eth0", 5),
            (5, "eth1", 3),
            (6, "eth2", 2),
            (7, "fs", 2),
        ];
        assert_eq!(devices, expected);
        let text = plan.text();
        for part in [
            "error after 5 s",
            "its cable pulled",
            "take care",
            "0x100000000 to 0x180000000",
            "lock exclusive",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!((&json["policies"]["on_reboot"], &json["ok"]), (&"restart".into(), &true.into()));
    }
}
