//! An `<interface>` of libvirt's.

use roxmltree::Node;

use super::{Reader, elements};
use crate::config::Net;

/// Most queue pairs of a NIC on a tap.
const MAX_PAIRS: u64 = 31;

impl Reader {
    pub(super) fn nic(&mut self, node: Node<'_, '_>) {
        let kind = node.attribute("type").unwrap_or_default();
        let mut net = Net::default();
        for child in elements(node) {
            let line = self.line(child);
            match child.tag_name().name() {
                "mac" => {
                    net.mac =
                        self.translation.mac(line, "<mac>", child.attribute("address").unwrap_or_default())
                }
                "source" => self.wire(kind, child, &mut net),
                "target" if kind == "ethernet" && child.attribute("managed") == Some("no") => {
                    net.tap = child.attribute("dev").map(Into::into);
                }
                // What libvirt has called the tap of a domain that runs.
                "target" if child.attribute("dev").is_some_and(|dev| dev.starts_with("vnet")) => {}
                "target" => self.lose(child, "its tap is called vif<ID>.<N>; name one that exists in tap"),
                "model" if child.attribute("type").is_some_and(|model| model.starts_with("virtio")) => {}
                "model" => self.lose(child, "every NIC is a virtio-net"),
                "mtu" => {
                    net.mtu = self.translation.number(
                        line,
                        "<mtu>",
                        child.attribute("size").unwrap_or_default(),
                        68,
                        65535,
                    )
                }
                "link" => net.link = (child.attribute("state") == Some("down")).then(|| "down".into()),
                "driver" => {
                    if let Some(queues) = child.attribute("queues") {
                        net.queues = self.translation.number(line, "<driver queues>", queues, 1, MAX_PAIRS);
                    }
                    self.only(child, &["name", "queues"], "is domus-net's to decide");
                }
                "port" => {
                    net.isolated = (child.attribute("isolated") == Some("yes")).then_some(true);
                    self.only(child, &["isolated"], "");
                }
                "bandwidth" => self.bandwidth(child, &mut net),
                // Names of libvirt's own.
                "alias" => {}
                _ => self.lose(child, ""),
            }
        }
        if kind == "user" {
            net.user = Some(true);
        }
        let wire = [&net.bridge, &net.tap, &net.macvtap, &net.network, &net.vhost_user_socket];
        if net.user.is_none() && wire.iter().all(|wire| wire.is_none()) {
            self.lose(node, "has no wire that Domus knows: the NIC is put on a network in user space");
            net.user = Some(true);
        }
        if net.vhost_user_socket.is_some() {
            if net.queues.is_some() || net.link.is_some() || !net.limits.is_empty() {
                self.lose(node, "has one queue pair; its limits and its link are the backend's to decide");
            }
            net = Net {
                vhost_user_socket: net.vhost_user_socket,
                mac: net.mac,
                mtu: net.mtu,
                ..Net::default()
            };
        }
        if net.isolated.is_some() && net.bridge.is_none() && net.network.is_none() {
            self.lose(node, "only a NIC on a bridge or a network can be isolated");
            net.isolated = None;
        }
        if net.user.is_some() && net.queues.is_some_and(|queues| queues > 1) {
            self.lose(node, "a NIC in user space has one queue pair");
            net.queues = None;
        }
        net.id = format!("eth{}", self.translation.config.nets.len());
        self.translation.config.nets.push(net);
    }

    fn wire(&mut self, kind: &str, source: Node<'_, '_>, net: &mut Net) {
        let given = |key: &str| source.attribute(key).map(str::to_owned);
        let known: &[&str] = match kind {
            "bridge" => {
                net.bridge = given("bridge");
                &["bridge"]
            }
            "network" => {
                net.network = given("network");
                let network = net.network.clone().unwrap_or_default();
                let why = format!(
                    "is kept: define the network with domus network-define, \"{network}\" is not libvirt's here"
                );
                self.lose(source, &why);
                // Which port and bridge it has been, while it runs.
                &["network", "portid", "bridge"]
            }
            "direct" => {
                net.macvtap = given("dev");
                if source.attribute("mode").is_some_and(|mode| mode != "bridge") {
                    self.lose(source, "its macvtap is in mode bridge");
                }
                &["dev", "mode"]
            }
            "vhostuser" => {
                net.vhost_user_socket = given("path");
                if source.attribute("mode") != Some("client") {
                    self.lose(source, "Domus connects, and the backend listens");
                }
                &["type", "path", "mode"]
            }
            _ => &[],
        };
        self.only(source, known, "");
    }

    /// Kilobytes a second, and what may come at once.
    fn bandwidth(&mut self, bandwidth: Node<'_, '_>, net: &mut Net) {
        for node in elements(bandwidth) {
            // libvirt sees it from the guest's side, as Domus does.
            let limit = if node.tag_name().name() == "inbound" { "receive_bits" } else { "transmit_bits" };
            let bits = |key: &str| {
                node.attribute(key)?.parse::<u64>().ok()?.checked_mul(8_000).filter(|bits| *bits < 1 << 50)
            };
            let Some(average) = bits("average").filter(|average| *average > 0) else {
                self.lose(node, "a rate in kilobytes a second would do");
                continue;
            };
            let rate = match bits("peak").filter(|peak| *peak > average) {
                Some(peak) => format!("{average}:{peak}"),
                None => average.to_string(),
            };
            net.limits.insert(limit, rate);
            self.only(node, &["average", "peak"], "give bursts in nets[].limits: RATE:BURST:SECONDS");
        }
    }
}
