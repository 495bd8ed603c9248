//! A disk (xl-disk-configuration(5)) and a NIC (xl-network-configuration(5)) of xl's.

use crate::config::{Disk, Net};
use crate::rules::{CDROM, NO_MEDIUM};
use crate::translate::Translation;

/// What is put before the target of a disk in configs of xm's time, and the format it stands for.
const PREFIXES: [(&str, &str); 14] = [
    ("raw:", "raw"),
    ("qcow2:", "qcow2"),
    ("qcow:", "qcow"),
    ("vhd:", "vhd"),
    ("aio:", "raw"),
    ("tap2:", ""),
    ("tap:", ""),
    ("phy:", "raw"),
    ("file:", "raw"),
    ("qdisk:", ""),
    ("tapdisk:", ""),
    ("ioemu:", ""),
    ("vmdk:", "vmdk"),
    ("vhdx:", "vhdx"),
];

/// The bridge that a NIC of xl's is on if it names none.
const BRIDGE: &str = "xenbr0";

/// What a disk says, by xl's names.
#[derive(Default)]
struct Said<'a> {
    target: Option<&'a str>,
    format: Option<&'a str>,
    vdev: Option<&'a str>,
    access: Option<&'a str>,
    cdrom: bool,
    /// The format is not a prefix's.
    expressly: bool,
}

/// Reads one disk.
pub fn disk(translation: &mut Translation, line: u32, text: &str) {
    let mut said = Said { expressly: true, ..Said::default() };
    let mut disk = Disk::default();
    let mut positions = 0;
    let mut rest = Some(text);
    while let Some(now) = rest {
        // `target=` is the last one, and what follows is all its own.
        if let Some(target) = now.trim_start().strip_prefix("target=") {
            said.target = Some(target);
            break;
        }
        let (word, later) = now.split_once(',').map_or((now, None), |(word, later)| (word, Some(later)));
        rest = later;
        let word = word.trim();
        match word.split_once('=') {
            Some((key, value)) => pair(translation, line, key.trim(), value.trim(), &mut said),
            None => match word {
                "cdrom" => said.cdrom = true,
                "discard" => disk.discard = Some(true),
                "no-discard" => disk.discard = Some(false),
                // What Domus does is safe with any file.
                "direct-io-safe" => {}
                word => {
                    let place = [&mut said.target, &mut said.format, &mut said.vdev, &mut said.access]
                        .into_iter()
                        .nth(positions);
                    positions += 1;
                    match place {
                        Some(place) if !word.is_empty() => *place = Some(word),
                        Some(_) => {}
                        None if word.is_empty() => {}
                        None => translation.lose(line, word, "is not understood in a disk"),
                    }
                    // A prefix is the format, so that xm's second word is the device.
                    if positions == 1
                        && let Some((format, target)) = old(word)
                    {
                        (said.target, said.format) =
                            (Some(target), Some(format).filter(|format| !format.is_empty()));
                        said.expressly = false;
                        positions = 2;
                    }
                }
            },
        }
    }
    // xm's way to say what kind of device it is: ioemu:hdc:cdrom.
    if let Some((vdev, kind)) = said.vdev.and_then(|vdev| vdev.rsplit_once(':')) {
        let kind = kind.trim();
        said.cdrom |= kind == "cdrom";
        let device = if matches!(kind, "cdrom" | "disk" | "") { vdev } else { kind };
        said.vdev = device.rsplit(':').next().map(str::trim);
    }
    let Some(target) = said.target.map(str::trim).filter(|target| !target.is_empty()) else {
        return translation.lose(line, text, NO_MEDIUM);
    };
    let nbd = target.starts_with("nbd:") || target.starts_with("nbd+");
    if let Some((prefix, _)) = target.split_once(':').filter(|(prefix, _)| !nbd && is_word(prefix)) {
        let why = "is made ready by a script of Xen's, and no scripts are run: make the block device before the domain \
                   starts, the disk is left out";
        return translation.lose(line, &format!("{prefix}: {text}"), why);
    }
    if said.cdrom {
        translation.lose(line, text, CDROM);
    }
    let format = said.format.unwrap_or_default();
    if !translation.format(line, format, format, &mut disk) {
        return;
    }
    if disk.format.is_some() {
        translation.behind_unknown(line, target);
    }
    match said.access.unwrap_or("rw") {
        "rw" | "w" | "w!" | "" => {}
        "ro" | "r" => disk.read_only = Some(true),
        other => translation.lose(line, other, "is no access: it is rw here"),
    }
    if said.cdrom {
        disk.read_only = Some(true);
    }
    disk.id = said.vdev.unwrap_or_default().rsplit('/').next().unwrap_or_default().into();
    disk.path = Some(if target.starts_with('/') || nbd { target.into() } else { format!("/dev/{target}") });
    // A prefix of xm's time says how a disk is served rather than what it is.
    translation.disk(line, disk, said.expressly && !format.is_empty());
}

fn is_word(prefix: &str) -> bool {
    prefix.starts_with(|c: char| c.is_ascii_lowercase())
        && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// The format and the rest of a target of xm's time.
fn old(target: &str) -> Option<(&str, &str)> {
    let mut format = None;
    let mut rest = target;
    // `tap:qcow2:/images/a`.
    for _ in 0..3 {
        let Some((prefix, is)) = PREFIXES.iter().find(|(prefix, _)| rest.starts_with(prefix)) else { break };
        rest = &rest[prefix.len()..];
        if !is.is_empty() || format.is_none() {
            format = Some(*is);
        }
    }
    format.map(|format| (format, rest))
}

fn pair<'a>(translation: &mut Translation, line: u32, key: &'a str, value: &'a str, said: &mut Said<'a>) {
    let why = match (key, value) {
        ("format", _) => return (said.format, said.expressly) = (Some(value), true),
        ("vdev", _) => return said.vdev = Some(value),
        ("access", _) => return said.access = Some(value),
        ("devtype", "cdrom") => return said.cdrom = true,
        ("devtype", "disk") | ("direct-io-safe" | "specification", _) => return,
        ("backendtype", _) => "every disk is served by domus-block",
        ("backend", _) => "drivers run in processes of dom0's, not in domains",
        ("script", _) => "no scripts are run: make the block device before the domain starts",
        ("colo" | "colo-host" | "colo-port" | "colo-export" | "active-disk" | "hidden-disk", _) => {
            "there is no COLO"
        }
        _ => "is not understood in a disk",
    };
    translation.lose(line, &format!("{key}={value}"), why);
}

/// Reads one NIC.
pub fn nic(translation: &mut Translation, line: u32, text: &str) {
    let mut net = Net { bridge: Some(BRIDGE.into()), ..Net::default() };
    for word in text.split(',').map(str::trim).filter(|word| !word.is_empty()) {
        let (key, value) = word.split_once('=').unwrap_or((word, ""));
        let (key, value) = (key.trim(), value.trim());
        let why = match (key, value) {
            ("bridge", bridge) => {
                net.bridge = Some(bridge.into());
                continue;
            }
            ("mac", mac) => {
                net.mac = translation.mac(line, word, mac);
                continue;
            }
            ("mtu", mtu) => {
                net.mtu = translation.number(line, word, mtu, 68, 65535);
                continue;
            }
            ("ip", addresses) => {
                net.addresses = addresses.split_whitespace().map(Into::into).collect();
                net.addresses.retain(|address| {
                    let is = is_range(address);
                    if !is {
                        translation.lose(line, address, "is no IP address or range of them");
                    }
                    is
                });
                continue;
            }
            ("rate", rate) => match bits(rate) {
                Some(rate) => {
                    net.limits.insert("transmit_bits", rate);
                    continue;
                }
                None => "is no rate: such as 10Mb/s or 500KB/s",
            },
            ("model", "virtio" | "virtio-net" | "netfront")
            | ("type", "vif" | "netfront")
            | ("script", "vif-bridge") => continue,
            ("script", path) if path.ends_with("/vif-bridge") => continue,
            ("type", _) | ("model", _) => "every NIC is a virtio-net",
            ("script", _) => "no scripts are run: the NIC is put on its bridge",
            ("vifname", _) => "its tap is called vif<ID>.<N>; name one that exists in tap",
            ("backend", _) => "drivers run in processes of dom0's, not in domains",
            ("gatewaydev" | "netdev", _) => "is for scripts, and none is run",
            ("trusted", _) => "no guest trusts its backend's memory here, and none needs to say so",
            _ => "is not understood in a vif",
        };
        translation.lose(line, word, why);
    }
    net.id = format!("eth{}", translation.config.nets.len());
    translation.config.nets.push(net);
}

fn is_range(text: &str) -> bool {
    let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
    let Ok(address) = address.parse::<std::net::IpAddr>() else { return false };
    let most = if address.is_ipv4() { 32 } else { 128 };
    bits.is_none_or(|bits| bits.parse::<u8>().is_ok_and(|bits| bits <= most))
}

/// xl's `10Mb/s`, `500KB/s@20ms` as bits a second.
fn bits(rate: &str) -> Option<String> {
    // How often the guest's credit is renewed: Domus' own bucket does not need to know.
    let rate = rate.split('@').next()?.trim().strip_suffix("/s")?;
    let digits = rate.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = rate.split_at(digits);
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    let unit = match unit {
        "b" => 1,
        "Kb" => 1_000,
        "Mb" => 1_000_000,
        "Gb" => 1_000_000_000,
        "B" => 8,
        "KB" => 8_000,
        "MB" => 8_000_000,
        "GB" => 8_000_000_000,
        _ => return None,
    };
    number.checked_mul(unit).filter(|bits| *bits <= u64::MAX / 4096).map(|bits| bits.to_string())
}
