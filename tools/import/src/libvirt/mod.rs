//! A domain's XML of libvirt, as `virsh dumpxml` writes it.
//!
//! Each element that is read says which of its children and attributes it knows; all others are listed, with a reason
//! if it is a common one.

mod disk;
mod nic;

use roxmltree::{Document, Node, ParsingOptions};

use crate::ImportError;
use crate::config::Config;
use crate::rules::{self, CONSOLE, CPU, CPUS, UNKNOWN, VCPUS};
use crate::translate::{Translation, quoted};

/// Nodes of a document that are read; a domain has some hundreds.
const MAX_NODES: u32 = 20_000;

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
    if elements(root).next().is_none() {
        return Err(ImportError::Empty);
    }
    let lines = text.match_indices('\n').map(|(at, _)| at + 1).collect();
    let translation =
        Translation { config: Config { vcpus: 1, ..Config::default() }, ..Translation::default() };
    let mut reader = Reader { translation, lines };
    reader.domain(root);
    reader.translation.lost.iter_mut().for_each(|lost| lost.line += skipped);
    reader.translation.formats.iter_mut().for_each(|(line, _)| *line += skipped);
    Ok(reader.translation)
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
        let usual = || rules::of_element(name).unwrap_or(UNKNOWN);
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
            self.translation.lose(line, &what, if why.is_empty() { UNKNOWN } else { why });
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
                "uuid" => self.translation.uuid(line, text(node)),
                "memory" => {
                    let unit = node.attribute("unit").filter(|unit| !unit.trim().is_empty()).unwrap_or("KiB");
                    self.translation.ram(
                        line,
                        &format!("<memory unit=\"{unit}\">{}", text(node)),
                        text(node),
                        unit,
                    );
                }
                "currentMemory"
                    if mib(node).map(|mib| format!("{mib}MiB"))
                        == Some(self.translation.config.memory.clone()) => {}
                "vcpu" => self.vcpu(node),
                "cpu" => self.cpu(node),
                "os" => self.os(node),
                "features" => {
                    for feature in elements(node) {
                        if feature.tag_name().name() == "pmu" {
                            // On, if it does not say.
                            let on = feature.attribute("state") != Some("off");
                            self.translation.config.pmu = on.then_some(true);
                        } else if !FEATURES.contains(&feature.tag_name().name()) {
                            self.lose(feature, "the guest sees what KVM offers");
                        }
                    }
                }
                key @ ("on_poweroff" | "on_reboot" | "on_crash") => {
                    self.translation.policy(line, key, text(node))
                }
                "devices" => self.devices(node),
                _ => self.lose(node, ""),
            }
        }
    }

    /// As many as the guest starts with; that it could have more is lost.
    fn vcpu(&mut self, node: Node<'_, '_>) {
        let line = self.line(node);
        let current = node.attribute("current").filter(|current| current.trim() != text(node));
        match current.filter(|current| rules::number(current).is_some()) {
            Some(current) => {
                self.translation.cpus(line, &format!("<vcpu current=\"{current}\">"), current);
                self.translation.lose(line, &format!("<vcpu current=\"{current}\">{}", text(node)), VCPUS);
            }
            None => self.translation.cpus(line, &format!("<vcpu>{}", text(node)), text(node)),
        }
        self.only(node, &["placement", "current"], CPUS);
    }

    /// The host's CPU with more or fewer features. Another one is lost.
    fn cpu(&mut self, cpu: Node<'_, '_>) {
        let hosts = ["host-passthrough", "host-model", "maximum"];
        if !cpu.attribute("mode").is_some_and(|mode| hosts.contains(&mode)) {
            self.lose(cpu, CPU);
        }
        for node in elements(cpu) {
            match (node.tag_name().name(), node.attribute("policy"), node.attribute("name")) {
                ("feature", policy, Some(name)) => {
                    let policy = policy.unwrap_or("require");
                    let what = format!("<feature policy=\"{policy}\" name=\"{name}\">");
                    self.translation.feature(self.line(node), &what, policy, name);
                }
                // What a host's model falls back on elsewhere; the caches are the host's.
                ("model", ..) if cpu.attribute("mode") == Some("host-model") => {}
                ("cache", ..) if node.attribute("mode") == Some("passthrough") => {}
                ("topology", ..) => self.lose(node, "the guest has one socket, and a core for each vCPU"),
                _ => self.lose(node, CPU),
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
                "kernel" => self.translation.kernel(self.line(node), text(node)),
                "initrd" => self.translation.config.boot.initrd = Some(text(node).into()),
                "cmdline" => self.translation.command_line(self.line(node), text(node)),
                _ => self.lose(node, ""),
            }
        }
        if let Some(firmware) = os.attribute("firmware") {
            let line = self.line(os);
            let why = rules::of_element("firmware").unwrap_or(UNKNOWN);
            self.translation.lose(line, &format!("<os firmware=\"{firmware}\">"), why);
        }
    }

    fn devices(&mut self, devices: Node<'_, '_>) {
        for node in elements(devices) {
            match node.tag_name().name() {
                "disk" => self.disk(node),
                "interface" => self.nic(node),
                // The one console that every domain has.
                "serial" | "console" if node.attribute("type") == Some("pty") => {
                    let port = elements(node)
                        .find(|node| node.tag_name().name() == "target")
                        .and_then(|node| node.attribute("port"));
                    if port.is_some_and(|port| port != "0") {
                        self.lose(node, CONSOLE);
                    }
                }
                "memballoon" if node.attribute("model") == Some("none") => {}
                _ => self.lose(node, ""),
            }
        }
    }
}

/// An amount of memory in MiB, rounded up.
fn mib(node: Node<'_, '_>) -> Option<u64> {
    rules::mib(text(node), node.attribute("unit").unwrap_or("KiB"))
}
