//! The plan of a domain: every process, file, device and piece of memory that starting it would take.
//!
//! What devices take their classes in dom0 write down themselves; files are looked at and not opened.
//! Whether the host has what the plan needs is checked before the plan is made.

use std::fmt::Write;
use std::path::PathBuf;

use dom0::config::{DomainConfig, OnStop};
use dom0::device;
use dom0::device::classes::Devices;
use dom0::device::plan::{PlannedDevice, PlannedFile, PlannedProcess};
use serde::Serialize;
use shared_abi::Role;
use shared_abi::limits::{HIGH_RAM_START, LOW_RAM_END};

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
    processes: Vec<PlannedProcess>,
    /// What would be opened.
    files: Vec<PlannedFile>,
    /// What the guest would see on its PCI bus.
    devices: Vec<PlannedDevice>,
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
struct Policies {
    on_poweroff: OnStop,
    on_reboot: OnStop,
    on_crash: OnStop,
    /// Its turn among those that start with the host, if it does.
    autostart: Option<u32>,
}

impl Plan {
    /// Of a config that has been checked.
    pub fn of(config: &DomainConfig) -> Self {
        let low = config.memory.min(LOW_RAM_END);
        let mut ram = vec![Ram { from: 0, bytes: low }];
        if config.memory > low {
            ram.push(Ram { from: HIGH_RAM_START, bytes: config.memory - low });
        }
        let device::plan::Plan { mut processes, mut files, devices, notes } =
            Devices::new(&config.file, &config.devices).plan();
        processes.insert(0, PlannedProcess::own(Role::Runner.program(), Vec::new()));
        let mut boot = vec![PlannedFile::at(&config.kernel, "kernel".into(), "none")];
        boot.extend(config.initrd.iter().map(|path| PlannedFile::at(path, "initrd".into(), "none")));
        files.splice(0..0, boot);
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
            processes,
            files,
            devices,
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
        for PlannedProcess { program, count, serves, own } in &self.processes {
            let shared = if *own { "" } else { ", shared with others" };
            let of = if serves.is_empty() { String::new() } else { format!(" for {}", serves.join(", ")) };
            let _ = writeln!(out, "  process  {count} {program}{of}{shared}");
        }
        for PlannedFile { path, what, kind, bytes, lock } in &self.files {
            let size = bytes.map(|bytes| format!(" of {bytes} bytes")).unwrap_or_default();
            let lock = if *lock == "none" { String::new() } else { format!(", lock {lock}") };
            let _ = writeln!(out, "  file     {what}: {path}, {kind}{size}{lock}");
        }
        for PlannedDevice { slot, id, kind, queues, backend, is, on_backend_loss } in &self.devices {
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

#[cfg(test)]
mod tests {
    use std::path::Path;

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
        let plan = Plan::of(&config);
        let json = serde_json::to_value(&plan).unwrap();
        assert_eq!(json["ram"][0]["bytes"], LOW_RAM_END);
        assert_eq!(
            (&json["ram"][1]["from"], &json["ram"][1]["bytes"]),
            (&HIGH_RAM_START.into(), &(2_u64 << 30).into())
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
            "put only domains there that may know",
            "0x100000000 to 0x180000000",
            "lock exclusive",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        assert_eq!((&json["policies"]["on_reboot"], &json["ok"]), (&"restart".into(), &true.into()));
    }
}
