//! A guest that sends with others' addresses: real frames, searched for in the guest that they are addressed to.
//!
//! Each frame that must not arrive has a twin of the same form with the sender's own addresses. The twin must arrive,
//! which proves that the search would find the first.

use std::fmt::Write;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::Lab;
use super::domain::{BOOT, Domain, Spec};
use crate::guest::Guest;

const PATIENCE: Duration = Duration::from_secs(120);

type Mac = [u8; 6];
type V4 = [u8; 4];
type V6 = [u8; 16];

/// Addresses that are nobody's here.
const OTHER_MAC: Mac = [2, 0x66, 0x66, 0x66, 0x66, 0x66];
const OTHER: V4 = [10, 77, 0, 99];
const OTHER_V6: V6 = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x99];
const ALL: Mac = [0xff; 6];

/// A frame, and whether it must arrive.
struct Trial {
    /// At the end of the frame; no two are alike, and none is part of another.
    mark: String,
    frame: Vec<u8>,
    arrives: bool,
}

/// Mallory sends in the name of others, and in its own; the victim sees the latter alone.
pub fn spoofing(lab: &Lab) -> Result<()> {
    let (victim, mut there) = Domain::boot(lab, Spec::new("victim", 3)).context("the victim")?;
    let spec = Spec::new("mallory", 2);
    let own = spec.address();
    let mut config = spec.config(lab)?;
    config["nets"][0]["addresses"] = serde_json::json!([own.to_string()]);
    // So that what is behind a tag is judged, too.
    config["nets"][0]["tagged"] = true.into();
    let file = lab.folder().join("mallory.json");
    fs::write(&file, serde_json::to_string(&config)?)?;
    let mallory = Domain::create_from(lab, spec, &file)?;
    let mut here = mallory.console()?;
    here.guest.wait_ready(BOOT)?;

    let address = mac(&mut here.guest)?;
    here.guest.run(&format!("ip addr add {own}/24 dev eth0; ip link set eth0 up"), PATIENCE)?;
    let target = mac(&mut there.guest)?;
    there.guest.run(
        "ip link set eth0 promisc on up; socat -u INTERFACE:eth0 OPEN:/tmp/seen,creat,append >/dev/null 2>&1 & sleep 1",
        PATIENCE,
    )?;

    let trials = trials(address, own.octets());
    for trial in &trials {
        let mut text = String::new();
        trial.frame.iter().for_each(|byte| {
            let _ = write!(text, "\\x{byte:02x}");
        });
        here.guest.run(&format!("printf '{text}' | socat -u STDIN INTERFACE:eth0"), PATIENCE)?;
    }
    for (mark, words) in [
        ("nping-own", format!("--source-ip {own} --source-mac {}", text(address))),
        ("nping-ip", format!("--source-ip 10.77.0.98 --source-mac {}", text(address))),
        ("nping-mac", format!("--source-ip {own} --source-mac {}", text(OTHER_MAC))),
    ] {
        let to = format!("--dest-ip {} --dest-mac {}", victim.spec.address(), text(target));
        here.guest.run(
            &format!(
                "nping --udp -p 9 -c 1 --send-eth -e eth0 {words} {to} --data-string '<{mark}>' >/dev/null"
            ),
            PATIENCE,
        )?;
    }
    // Sent last, so that all before it has arrived when it has.
    let seen = |guest: &mut Guest, mark: &str| -> Result<bool> {
        Ok(guest.run(&format!("grep -c -a '<{mark}>' /tmp/seen || true"), PATIENCE)?.trim() != "0")
    };
    there.guest.run(
        "n=0; until grep -q -a '<nping-own>' /tmp/seen || test $n = 30; do n=$((n+1)); sleep 1; done",
        PATIENCE,
    )?;
    for (mark, arrives) in [("nping-own", true), ("nping-ip", false), ("nping-mac", false)] {
        ensure!(
            seen(&mut there.guest, mark)? == arrives,
            "{mark}: it should {}arrive",
            if arrives { "" } else { "not " }
        );
    }
    for trial in &trials {
        let arrived = seen(&mut there.guest, &trial.mark)?;
        ensure!(
            arrived == trial.arrives,
            "{}: it should {}arrive",
            trial.mark,
            if trial.arrives { "" } else { "not " }
        );
    }
    dropped(lab, "mallory", trials.iter().filter(|trial| !trial.arrives).count() as u64 + 2)?;
    for (console, domain) in [(&mut here, &mallory), (&mut there, &victim)] {
        console.guest.start("poweroff -f")?;
        domain.wait_gone()?;
    }
    Ok(())
}

/// What was held back is counted, with reasons.
fn dropped(lab: &Lab, name: &str, least: u64) -> Result<()> {
    let listed: Value = serde_json::from_str(&lab.domus(&["network-list", name, "--json"])?)?;
    let text = listed.to_string();
    let drops = find(&listed, "drops").with_context(|| format!("no drops in {text}"))?;
    let count = |reasons: &[&str]| -> u64 {
        let of = drops.as_array().into_iter().flatten();
        let of =
            of.filter(|drop| reasons.is_empty() || reasons.iter().any(|reason| drop["reason"] == *reason));
        of.filter_map(|drop| drop["packets"].as_u64()).sum()
    };
    for reason in ["source_mac", "source_address", "arp", "neighbour_discovery", "dhcp_server"] {
        ensure!(count(&[reason]) > 0, "nothing was dropped for {reason}: {text}");
    }
    ensure!(count(&[]) >= least, "{} were dropped, {least} were sent: {text}", count(&[]));
    Ok(())
}

/// The value of the first key of this name, anywhere under `transmit`.
fn find<'a>(value: &'a Value, key: &str) -> Option<&'a Value> {
    match value {
        Value::Object(fields) => match fields.get("transmit").and_then(|transmit| transmit.get(key)) {
            Some(found) => Some(found),
            None => fields.values().find_map(|value| find(value, key)),
        },
        Value::Array(values) => values.iter().find_map(|value| find(value, key)),
        _ => None,
    }
}

fn mac(guest: &mut Guest) -> Result<Mac> {
    let text = guest.run("cat /sys/class/net/eth0/address", PATIENCE)?;
    let bytes: Result<Vec<u8>, _> = text.trim().split(':').map(|pair| u8::from_str_radix(pair, 16)).collect();
    bytes.ok().and_then(|bytes| bytes.try_into().ok()).with_context(|| format!("{text:?} is no MAC address"))
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn trials(mac: Mac, own: V4) -> Vec<Trial> {
    let own_v6 = link_local(mac);
    let mut trials = Vec::new();
    let mut trial = |mark: &str, arrives: bool, frame: Vec<u8>| {
        let mark = format!("{mark}-{}", if arrives { "own" } else { "other" });
        let frame = [frame.as_slice(), format!("<{mark}>").as_bytes()].concat();
        trials.push(Trial { mark, frame, arrives });
    };
    let any = [255, 255, 255, 255];
    for (from, own_mac) in [(mac, true), (OTHER_MAC, false)] {
        trial("mac", own_mac, ether(from, &[], 0x800, udp(own, any, 1000, 9, &[b'.'; 20])));
        trial("arp-hardware", own_mac, ether(mac, &[], 0x806, arp(2, from, own)));
    }
    for (from, own_ip) in [(own, true), (OTHER, false)] {
        trial("ip", own_ip, ether(mac, &[], 0x800, udp(from, any, 1000, 9, &[b'.'; 20])));
        trial(
            "ip-in-vlan",
            own_ip,
            ether(mac, &[0x81, 0, 0, 7], 0x800, udp(from, any, 1000, 9, &[b'.'; 20])),
        );
        trial("arp-reply", own_ip, ether(mac, &[], 0x806, arp(2, mac, from)));
        trial("arp-request", own_ip, ether(mac, &[], 0x806, arp(1, mac, from)));
    }
    // A client asks from port 68 with no address yet; a server answers from port 67.
    trial("dhcp", true, ether(mac, &[], 0x800, udp([0; 4], any, 68, 67, &discover(mac))));
    trial("dhcp", false, ether(mac, &[], 0x800, udp(own, any, 67, 68, &discover(mac))));
    for (from, own_ip) in [(own_v6, true), (OTHER_V6, false)] {
        trial(
            "ip6",
            own_ip,
            ether(mac, &[], 0x86dd, v6(17, from, &[3, 0xe8, 0, 9, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])),
        );
        let advertisement = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &from, &[2, 1], &mac].concat();
        trial("neighbour", own_ip, ether(mac, &[], 0x86dd, v6(58, own_v6, &advertisement)));
    }
    let link = [&[136, 0, 0, 0, 0x20, 0, 0, 0][..], &own_v6, &[2, 1], &OTHER_MAC].concat();
    trial("neighbour-link", false, ether(mac, &[], 0x86dd, v6(58, own_v6, &link)));
    let router = [134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0];
    trial("router", false, ether(mac, &[], 0x86dd, v6(58, own_v6, &router)));
    let server = [0x02, 0x23, 0x02, 0x22, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    trial("dhcp6", false, ether(mac, &[], 0x86dd, v6(17, own_v6, &server)));
    trials
}

fn ether(from: Mac, tag: &[u8], kind: u16, packet: Vec<u8>) -> Vec<u8> {
    [&ALL[..], &from, tag, &kind.to_be_bytes(), &packet].concat()
}

/// An IPv4 packet of UDP, without a checksum of its own.
fn udp(from: V4, to: V4, source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = payload.len() as u16 + 8;
    let mut packet = vec![0x45, 0];
    packet.extend((length + 20).to_be_bytes());
    packet.extend([0, 1, 0, 0, 64, 17, 0, 0]);
    packet.extend([from, to].concat());
    let sum: u32 = packet.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    for word in [source, destination, length, 0] {
        packet.extend(word.to_be_bytes());
    }
    packet.extend(payload);
    packet
}

/// A DHCP client's first message (RFC 2131).
fn discover(mac: Mac) -> Vec<u8> {
    let mut message = vec![1, 1, 6, 0, 1, 2, 3, 4];
    message.resize(28, 0);
    message.extend(mac);
    message.resize(236, 0);
    message.extend([99, 130, 83, 99, 53, 1, 1, 255]);
    message
}

fn arp(operation: u8, mac: Mac, ip: V4) -> Vec<u8> {
    let head = [0, 1, 8, 0, 6, 4, 0, operation];
    [&head[..], &mac, &ip, &ALL, &ip, &[0; 18]].concat()
}

fn v6(next: u8, from: V6, payload: &[u8]) -> Vec<u8> {
    let mut to = [0; 16];
    (to[0], to[1], to[15]) = (0xff, 2, 1);
    let head = [0x60, 0, 0, 0, 0, payload.len() as u8, next, 255];
    [&head[..], &from, &to, payload].concat()
}

/// The link-local address that is made from a MAC address (RFC 4291, appendix A).
fn link_local([a, b, c, d, e, f]: Mac) -> V6 {
    [0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]
}
