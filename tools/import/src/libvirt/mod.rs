//! A domain's XML of libvirt, as `virsh dumpxml` writes it.
//!
//! Each element that is read says which of its children and attributes it knows; all others are listed, with a reason
//! if it is a common one.

mod disk;
mod nic;

use roxmltree::{Document, Node, ParsingOptions};

use crate::ImportError;
use crate::config::Config;
use crate::translate::{Translation, quoted};

/// Nodes of a document that are read; a domain has some hundreds.
const MAX_NODES: u32 = 20_000;

/// What Domus has no counterpart for, by the element's name, and why.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("metadata", "is for other tools"),
    ("title", "has no counterpart"),
    ("description", "has no counterpart"),
    ("loader", "there is no firmware: the kernel is started by PVH"),
    ("nvram", "there is no firmware: the kernel is started by PVH"),
    ("firmware", "there is no firmware: the kernel is started by PVH"),
    ("boot", "no boot loader is run: name the guest's kernel in boot.kernel"),
    ("bootmenu", "no boot loader is run: name the guest's kernel in boot.kernel"),
    ("smbios", "there are no SMBIOS tables"),
    ("sysinfo", "there are no SMBIOS tables"),
    ("cpu", "the guest sees the CPU that KVM offers"),
    ("cputune", "is not in the config: see domus --help for what a running domain is given"),
    ("blkiotune", "give limits in disks[].limits"),
    ("memtune", "each process's memory is limited anyway"),
    ("memoryBacking", "the memory is a memory file that its backends share"),
    ("numatune", "the host's scheduler places the memory"),
    ("clock", "there is no real-time clock: the guest has kvmclock"),
    ("pm", "there is neither suspend to RAM nor to disk"),
    ("perf", "has no counterpart"),
    ("resource", "each domain has a cgroup of its own"),
    ("seclabel", "each process is shut in by namespaces and seccomp, with a user id of its own"),
    ("iothreads", "each backend has the threads it needs"),
    ("currentMemory", "the memory is fixed"),
    ("maxMemory", "the memory is fixed"),
    ("controller", "every device is on the one PCI root"),
    ("address", "Domus gives out PCI slots itself"),
    ("graphics", "there is no display"),
    ("video", "there is no display"),
    ("input", "there are neither keyboard nor pointer"),
    ("audio", "there is no sound"),
    ("sound", "there is no sound"),
    ("channel", "there are no channels"),
    ("redirdev", "there is no USB"),
    ("hub", "there is no USB"),
    ("hostdev", "no devices of the host are passed through"),
    ("tpm", "there is no TPM"),
    ("watchdog", "there is no watchdog"),
    ("panic", "a crash is seen by its triple fault"),
    ("memballoon", "the memory is fixed"),
    ("rng", "give a vhost-user backend's socket in devices[]"),
    ("filesystem", "give a virtiofsd's socket in devices[]"),
    ("vsock", "give a vhost-user backend's socket in devices[]"),
    ("shmem", "has no counterpart"),
    ("filterref", "the NIC's own filter allows its own MAC address, and what addresses lists"),
];

/// Features that every guest has.
const FEATURES: [&str; 4] = ["acpi", "apic", "pae", "vmport"];

/// What is read, and where it is put.
pub(super) struct Reader {
    pub(super) translation: Translation,
    /// Where each line but the first begins.
    lines: Vec<usize>,
}

/// Reads it.
///
/// # Errors
/// [`ImportError`].
pub fn read(text: &str) -> Result<Translation, ImportError> {
    let text = text.trim_start_matches('\u{feff}');
    // Lines that are skipped count, too.
    let skipped = text.len() - text.trim_start().len();
    let skipped = text[..skipped].matches('\n').count() as u32;
    let text = text.trim_start();
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    let document = Document::parse_with_options(text, options)
        .map_err(|error| ImportError::Xml(quoted(&error.to_string())))?;
    let root = document.root_element();
    if root.tag_name().name() != "domain" {
        return Err(ImportError::NoDomain(quoted(root.tag_name().name())));
    }
    let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let translation =
        Translation { config: Config { vcpus: 1, ..Config::default() }, ..Translation::default() };
    let mut reader = Reader { translation, lines };
    reader.domain(root);
    reader.translation.lost.iter_mut().for_each(|lost| lost.line += skipped);
    Ok(reader.translation.whole())
}

/// The text of an element, without blanks around it.
pub(super) fn text<'a>(node: Node<'a, '_>) -> &'a str {
    node.text().unwrap_or_default().trim()
}

pub(super) fn elements<'a, 'i>(node: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(Node::is_element)
}

impl Reader {
    pub(super) fn line(&self, node: Node<'_, '_>) -> u32 {
        self.lines.partition_point(|line| *line <= node.range().start) as u32 + 1
    }

    /// Notes an element that is not in the config, with the usual reason if `why` is empty.
    pub(super) fn lose(&mut self, node: Node<'_, '_>, why: &str) {
        let name = node.tag_name().name();
        let usual = || {
            UNSUPPORTED
                .iter()
                .find(|(lost, _)| *lost == name)
                .map_or("there is no such thing here", |(_, why)| *why)
        };
        let why = if why.is_empty() { usual() } else { why };
        let mut what = format!("<{name}");
        for attribute in node.attributes() {
            what += &format!(" {}=\"{}\"", attribute.name(), attribute.value());
        }
        what += ">";
        what += text(node);
        let line = self.line(node);
        self.translation.lose(line, &what, why);
    }

    /// Notes every attribute that is not in `known`.
    pub(super) fn only(&mut self, node: Node<'_, '_>, known: &[&str], why: &str) {
        let line = self.line(node);
        for attribute in node.attributes().filter(|attribute| !known.contains(&attribute.name())) {
            let what = format!("<{} {}=\"{}\">", node.tag_name().name(), attribute.name(), attribute.value());
            self.translation.lose(
                line,
                &what,
                if why.is_empty() { "there is no such thing here" } else { why },
            );
        }
    }

    fn domain(&mut self, domain: Node<'_, '_>) {
        if let Some(kind) = domain.attribute("type").filter(|kind| !matches!(*kind, "kvm" | "qemu")) {
            let what = format!("<domain type=\"{kind}\">");
            let line = self.line(domain);
            self.translation.lose(line, &what, "runs on KVM here, and needs virtio drivers");
        }
        for node in elements(domain) {
            let line = self.line(node);
            match node.tag_name().name() {
                "name" => self.translation.name(line, text(node)),
                "uuid" => self.translation.config.uuid = Some(text(node).into()),
                "memory" => match mib(node) {
                    Some(mib) => self.translation.memory(mib),
                    None => self.lose(node, "is no amount of memory"),
                },
                "currentMemory"
                    if mib(node).map(|mib| format!("{mib}MiB"))
                        == Some(self.translation.config.memory.clone()) => {}
                "vcpu" => {
                    if let Some(count) = self.translation.number(line, text(node), text(node), 1, u64::MAX) {
                        self.translation.vcpus(line, text(node), count);
                    }
                    let current = node.attribute("current").filter(|current| *current != text(node));
                    self.only(
                        node,
                        if current.is_some() { &["placement"] } else { &["placement", "current"] },
                        "the number of vCPUs is fixed, and where they run is the host's to decide",
                    );
                }
                "os" => self.os(node),
                "features" => {
                    for feature in elements(node) {
                        if !FEATURES.contains(&feature.tag_name().name()) {
                            self.lose(feature, "the guest sees what KVM offers");
                        }
                    }
                }
                key @ ("on_poweroff" | "on_reboot" | "on_crash") => {
                    self.translation.policy(line, key, text(node))
                }
                "on_lockfailure" => self.lose(node, "an image that is in use is refused"),
                "devices" => self.devices(node),
                _ => self.lose(node, ""),
            }
        }
    }

    fn os(&mut self, os: Node<'_, '_>) {
        for node in elements(os) {
            match node.tag_name().name() {
                "type" => {
                    if node.attribute("arch").is_some_and(|arch| arch != "x86_64") {
                        self.lose(node, "guests are x86-64 here");
                    }
                }
                "kernel" => self.translation.config.boot.kernel = text(node).into(),
                "initrd" => self.translation.config.boot.initrd = Some(text(node).into()),
                "cmdline" => self.translation.config.boot.cmdline = Some(text(node).into()),
                _ => self.lose(node, ""),
            }
        }
        if let Some(firmware) = os.attribute("firmware") {
            let line = self.line(os);
            self.translation.lose(
                line,
                &format!("<os firmware=\"{firmware}\">"),
                "there is no firmware: the kernel is started by PVH",
            );
        }
    }

    fn devices(&mut self, devices: Node<'_, '_>) {
        for node in elements(devices) {
            match node.tag_name().name() {
                "disk" => self.disk(node),
                "interface" => self.nic(node),
                "emulator" => self.lose(node, "each kind of device has a process of its own"),
                // The one console that every domain has.
                "serial" | "console" if node.attribute("type") == Some("pty") => {
                    let port = elements(node)
                        .find(|node| node.tag_name().name() == "target")
                        .and_then(|node| node.attribute("port"));
                    if port.is_some_and(|port| port != "0") {
                        self.lose(node, "there is one console, on ttyS0");
                    }
                }
                "serial" | "console" | "parallel" => {
                    self.lose(node, "the console is always the one on ttyS0: see domus console")
                }
                "memballoon" if node.attribute("model") == Some("none") => {}
                _ => self.lose(node, ""),
            }
        }
    }
}

/// An amount of memory in MiB, rounded up.
fn mib(node: Node<'_, '_>) -> Option<u64> {
    let unit = match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1_000,
        "k" | "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "M" | "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "G" | "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "T" | "TiB" => 1 << 40,
        _ => return None,
    };
    Some(text(node).parse::<u64>().ok()?.checked_mul(unit)?.div_ceil(1 << 20))
}
