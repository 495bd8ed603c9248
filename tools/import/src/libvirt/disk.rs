//! A `<disk>` of libvirt's.

use roxmltree::Node;

use super::{Reader, elements, text};
use crate::config::{Backing, Disk};
use crate::rules::{CDROM, NO_MEDIUM, UNKNOWN};

/// Images behind one another.
const MAX_BACKING: usize = 16;

impl Reader {
    pub(super) fn disk(&mut self, node: Node<'_, '_>) {
        let kind = node.attribute("device").unwrap_or("disk");
        if !matches!(kind, "disk" | "cdrom") {
            return self.lose(
                node,
                "there are neither floppies nor SCSI devices of the host's: the disk is left out",
            );
        }
        let mut disk = Disk { read_only: (kind == "cdrom").then_some(true), ..Disk::default() };
        let mut served = true;
        let mut format_said = None;
        let mut nothing_behind = false;
        for child in elements(node) {
            let line = self.line(child);
            match child.tag_name().name() {
                "driver" => {
                    served = self.driver(child, &mut disk);
                    format_said = child.attribute("type").map(|_| line);
                }
                "source" => disk.path = self.source(child),
                "backingStore" => {
                    self.backing(child, &mut disk.backing);
                    nothing_behind = elements(child).next().is_none();
                }
                "target" => {
                    disk.id = child.attribute("dev").unwrap_or_default().into();
                    if child.attribute("bus").is_some_and(|bus| bus != "virtio") {
                        self.lose(
                            child,
                            "every disk is a virtio-blk: the guest calls it by another name, \
                             so have it use UUIDs",
                        );
                    }
                }
                "readonly" => disk.read_only = Some(true),
                "serial" if serial(text(child)) => disk.serial = Some(text(child).into()),
                "serial" => self.lose(child, "at most 20 printable ASCII characters would do"),
                "iotune" => self.iotune(child, &mut disk),
                "blockio" => {
                    let size = child.attribute("logical_block_size").and_then(|size| size.parse().ok());
                    disk.block_size = size.filter(|size| matches!(size, 512 | 4096));
                    if disk.block_size.is_none() || child.attributes().len() > 1 {
                        self.lose(child, "a logical block size of 512 or 4096 would do");
                    }
                }
                "shareable" => self.lose(child, "one domain at a time may write to an image"),
                "boot" => self.lose(child, ""),
                // Names of libvirt's own.
                "alias" => {}
                _ => self.lose(child, ""),
            }
        }
        if kind == "cdrom" {
            let why = match disk.path {
                Some(_) => CDROM,
                None => NO_MEDIUM,
            };
            self.lose(node, why);
        }
        if disk.path.is_none() && disk.vhost_user_socket.is_none() {
            if node.attribute("type") == Some("vhostuser") {
                let socket = elements(node).find(|child| child.tag_name().name() == "source");
                disk = Disk { id: disk.id, queues: disk.queues, ..Disk::default() };
                disk.vhost_user_socket = socket.and_then(|socket| socket.attribute("path")).map(Into::into);
            }
            if disk.vhost_user_socket.is_none() {
                if kind == "disk" {
                    let why = "its image is neither a file nor a block device nor an NBD export: the disk is left out";
                    self.lose(node, why);
                }
                return;
            }
        }
        if !served {
            return;
        }
        let at = format_said.unwrap_or(self.line(node));
        if let (Some("qcow2"), Some(path), true) =
            (disk.format.as_deref(), &disk.path, disk.backing.is_empty())
            && !nothing_behind
        {
            self.translation.behind_unknown(at, path);
        }
        self.translation.disk(at, disk, format_said.is_some());
    }

    fn source(&mut self, source: Node<'_, '_>) -> Option<String> {
        for child in elements(source) {
            match child.tag_name().name() {
                "host" if source.attribute("protocol") == Some("nbd") => {}
                _ => self.lose(child, ""),
            }
        }
        if let Some(path) = source.attribute("file").or(source.attribute("dev")) {
            self.only(source, &["file", "dev", "index"], "");
            return Some(path.into());
        }
        if source.attribute("protocol") != Some("nbd") {
            return None;
        }
        self.only(source, &["protocol", "name", "index"], "NBD is spoken without TLS");
        let name = source.attribute("name").unwrap_or_default();
        let host = elements(source).find(|child| child.tag_name().name() == "host")?;
        match (host.attribute("socket"), host.attribute("name")) {
            (Some(socket), _) => Some(format!("nbd+unix:///{name}?socket={socket}")),
            (None, Some(server)) => {
                let server = if server.contains(':') { format!("[{server}]") } else { server.into() };
                let port = host.attribute("port").map(|port| format!(":{port}")).unwrap_or_default();
                Some(format!("nbd://{server}{port}/{name}"))
            }
            (None, None) => None,
        }
    }

    /// The images behind one, from the first to the last.
    fn backing(&mut self, first: Node<'_, '_>, list: &mut Vec<Backing>) {
        let mut next = Some(first);
        while let Some(store) = next {
            next = elements(store).find(|child| child.tag_name().name() == "backingStore");
            let part = |name| elements(store).find(|child| child.tag_name().name() == name);
            // An empty one is libvirt's "nothing behind".
            let Some(source) = part("source") else { return };
            let format = part("format").and_then(|format| format.attribute("type")).unwrap_or("raw");
            let path = source.attribute("file").or(source.attribute("dev"));
            match path {
                Some(path) if matches!(format, "raw" | "qcow2") && list.len() < MAX_BACKING => {
                    list.push(Backing { path: path.into(), format: format.into() });
                }
                _ => {
                    return self.lose(store, "16 raw or qcow2 files or block devices may be behind an image");
                }
            }
        }
    }

    /// False if the disk's format is none that is served.
    fn driver(&mut self, driver: Node<'_, '_>, disk: &mut Disk) -> bool {
        let line = self.line(driver);
        let mut served = true;
        for attribute in driver.attributes() {
            let (key, value) = (attribute.name(), attribute.value());
            let what = format!("<driver {key}=\"{value}\">");
            let on_error = |value: &str| match value {
                "stop" => Some("pause"),
                "report" => Some("report"),
                "enospace" => Some("pause-if-full"),
                _ => None,
            };
            let why = match (key, value) {
                ("name", "qemu") | ("cache", "default") => continue,
                (
                    "io" | "iothread" | "ats" | "iommu" | "packed" | "event_idx" | "ioeventfd" | "queue_size",
                    _,
                ) => "is domus-block's to decide",
                ("type", format) => {
                    served = self.translation.format(line, &what, format, disk);
                    continue;
                }
                ("cache", "none" | "directsync") => {
                    disk.cache = Some("none".into());
                    continue;
                }
                ("cache", "writeback" | "unsafe") => {
                    disk.cache = Some(value.into());
                    continue;
                }
                ("discard", "unmap" | "ignore") => {
                    disk.discard = Some(value == "unmap");
                    continue;
                }
                ("queues", count) => {
                    disk.queues = self.translation.number(line, &what, count, 1, 64);
                    continue;
                }
                ("error_policy", policy) if on_error(policy).is_some() => {
                    disk.werror = on_error(policy).map(Into::into);
                    continue;
                }
                ("rerror_policy", policy) if on_error(policy).is_some() => {
                    disk.rerror = on_error(policy).map(Into::into);
                    continue;
                }
                _ => UNKNOWN,
            };
            self.translation.lose(line, &what, why);
        }
        served
    }

    fn iotune(&mut self, iotune: Node<'_, '_>, disk: &mut Disk) {
        for node in elements(iotune) {
            let limit = match node.tag_name().name() {
                "total_bytes_sec" => "bytes",
                "read_bytes_sec" => "read_bytes",
                "write_bytes_sec" => "write_bytes",
                "total_iops_sec" => "iops",
                "read_iops_sec" => "read_iops",
                "write_iops_sec" => "write_iops",
                _ => {
                    self.lose(node, "give bursts in disks[].limits: RATE:BURST:SECONDS");
                    continue;
                }
            };
            match text(node).parse::<u64>() {
                Ok(0) => {}
                Ok(rate) => drop(disk.limits.insert(limit, rate.to_string())),
                Err(_) => self.lose(node, "is no number"),
            }
        }
    }
}

/// True for a serial number that a disk of Domus' can have.
fn serial(text: &str) -> bool {
    (1..=20).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic() || b == b' ')
}
