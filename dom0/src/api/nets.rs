//! NICs and networks as the API shows and changes them.

use serde::{Deserialize, Serialize};
use shared_abi::control::{Drops, NicLimits, TrafficStatistics};
use zlink::introspect;

use super::disks::{Limit, rate};
use crate::config::{NicLimitsFile, RateText};
use crate::domain::nics::NicReport;
use crate::networks::{Forward, Lease, Shown};

/// Frames lost for one reason.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct DropInfo {
    /// Why, in snake_case: `link_down`, `source_mac`, `no_room` and so on.
    pub reason: String,
    /// How many.
    pub packets: u64,
}

/// What a NIC has carried one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct TrafficInfo {
    /// Frames passed on, a segment that is cut later as one.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of these frames, those whose checksum was left open.
    pub open_checksums: u64,
    /// Of these frames, those that are cut later.
    pub segments: u64,
    /// Their bytes.
    pub segment_bytes: u64,
    /// Times that frames had to wait for a limit.
    pub throttled: u64,
    /// Frames by length: entry n counts those of less than 2^n bytes that no entry before it counts.
    pub sizes: Vec<u64>,
    /// Frames lost.
    pub drops: Vec<DropInfo>,
}

/// What a NIC has done since its backend started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct NicCounters {
    /// The cable is plugged in, and somebody is at its other end.
    pub link_up: bool,
    /// Queue pairs that the driver uses.
    pub pairs: u32,
    /// The driver takes frames for any MAC address.
    pub promiscuous: bool,
    /// To the guest.
    pub receive: TrafficInfo,
    /// From the guest.
    pub transmit: TrafficInfo,
}

/// One NIC of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct NicInfo {
    /// Its id.
    pub id: String,
    /// `bridge`, `tap`, `macvtap`, `network`, `switch`, `vhost_user_socket` or `user`.
    pub kind: String,
    /// The bridge, tap, interface, network, switch or socket, or the ports that lead to the guest.
    pub wire: String,
    /// Its MAC address.
    pub mac: String,
    /// Its MTU in bytes.
    pub mtu: u32,
    /// Number of queue pairs.
    pub pairs: u32,
    /// `up` or `down`: whether its cable is plugged in.
    pub link: String,
    /// `serving` or `waiting` (for a backend).
    pub state: String,
    /// The process that serves it, if it is the domain's own and there.
    pub backend_pid: Option<i32>,
    /// The limits it has.
    pub limits: Vec<Limit>,
    /// What it has done, if its backend is there to say.
    pub counters: Option<NicCounters>,
}

/// The answer to `NicList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct NicList {
    /// In the order the guest sees them.
    pub nics: Vec<NicInfo>,
}

/// A network that dom0 manages.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct NetworkInfo {
    /// Its name.
    pub name: String,
    /// Its bridge.
    pub bridge: String,
    /// The host's addresses there.
    pub addresses: Vec<String>,
    /// The IPv4 addresses that guests get, as `FROM-TO`.
    pub dhcp: Option<String>,
    /// `nat`, `routed` or `isolated`.
    pub forward: String,
    /// It is started without being asked for.
    pub autostart: bool,
    /// `running` or `stopped`.
    pub state: String,
}

/// The answer to `NetworkList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct NetworkList {
    /// By name.
    pub networks: Vec<NetworkInfo>,
}

/// The answer to `NetworkDefine`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Defined {
    /// Its name.
    pub name: String,
}

/// An address that a network has lent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct LeaseInfo {
    /// The address.
    pub ip: String,
    /// To whom it is lent.
    pub mac: String,
    /// The name that the guest gives itself.
    pub name: Option<String>,
    /// When it ends, in seconds since 1970; absent if it does not.
    pub expires: Option<u64>,
}

/// The answer to `NetworkLeases`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct LeaseList {
    /// As dnsmasq has them.
    pub leases: Vec<LeaseInfo>,
}

/// The changes that a client asks for.
///
/// # Errors
/// One line that names the limit and what would be accepted.
pub fn change(limits: &[Limit]) -> Result<NicLimitsFile, String> {
    let mut change = NicLimitsFile::default();
    for Limit { name, rate } in limits {
        let place = match name.as_str() {
            "receive_bits" => &mut change.receive_bits,
            "receive_packets" => &mut change.receive_packets,
            "transmit_bits" => &mut change.transmit_bits,
            "transmit_packets" => &mut change.transmit_packets,
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(format!(
                    "there is no limit \"{other}\": receive_bits, receive_packets, transmit_bits and transmit_packets are"
                ));
            }
        };
        let rate: RateText = rate.parse().map_err(|error| format!("{name}: {error}"))?;
        *place = Some(rate);
    }
    Ok(change)
}

fn limits(limits: &NicLimits) -> Vec<Limit> {
    let all = [
        ("receive_bits", limits.receive.bits),
        ("receive_packets", limits.receive.packets),
        ("transmit_bits", limits.transmit.bits),
        ("transmit_packets", limits.transmit.packets),
    ];
    let set = all.into_iter().filter_map(|(name, rate)| Some((name, rate?)));
    set.map(|(name, limit)| Limit { name: name.into(), rate: rate(limit) }).collect()
}

impl From<TrafficStatistics> for TrafficInfo {
    fn from(it: TrafficStatistics) -> Self {
        let TrafficStatistics {
            packets,
            bytes,
            open_checksums,
            segments,
            segment_bytes,
            throttled,
            sizes,
            drops,
        } = it;
        let reason = |Drops { reason, packets }| DropInfo {
            // A unit variant is a string.
            reason: serde_json::to_value(reason)
                .ok()
                .and_then(|value| value.as_str().map(str::to_owned))
                .unwrap_or_default(),
            packets,
        };
        let drops = drops.into_iter().map(reason).collect();
        Self { packets, bytes, open_checksums, segments, segment_bytes, throttled, sizes, drops }
    }
}

impl From<NicReport> for NicInfo {
    fn from(report: NicReport) -> Self {
        Self {
            id: report.id.to_string(),
            kind: report.kind.into(),
            wire: report.wire,
            mac: report.mac.to_string(),
            mtu: report.mtu.into(),
            pairs: report.pairs.into(),
            link: if report.up { "up" } else { "down" }.into(),
            state: report.state.into(),
            backend_pid: report.backend,
            limits: limits(&report.limits),
            counters: report.statistics.map(|it| NicCounters {
                link_up: it.link_up,
                pairs: it.pairs.into(),
                promiscuous: it.promiscuous,
                receive: it.receive.into(),
                transmit: it.transmit.into(),
            }),
        }
    }
}

impl From<Shown> for NetworkInfo {
    fn from(Shown { network, runs }: Shown) -> Self {
        let forward = match network.forward {
            Forward::Nat => "nat",
            Forward::Routed => "routed",
            Forward::Isolated => "isolated",
        };
        Self {
            name: network.name.to_string(),
            bridge: network.bridge.clone(),
            addresses: network.addresses.iter().map(|at| format!("{}/{}", at.address, at.prefix)).collect(),
            dhcp: network.dhcp.map(|range| format!("{}-{}", range.from, range.to)),
            forward: forward.into(),
            autostart: network.autostart,
            state: if runs { "running" } else { "stopped" }.into(),
        }
    }
}

impl From<Lease> for LeaseInfo {
    fn from(lease: Lease) -> Self {
        let Lease { expires, mac, ip, name } = lease;
        Self { ip: ip.to_string(), mac, name, expires: Some(expires).filter(|at| *at != 0) }
    }
}

#[cfg(test)]
mod tests {
    use shared_abi::control::DropReason;

    use super::*;

    #[test]
    fn limits_are_shown_as_they_are_set_and_reasons_by_name() {
        let limit = |name: &str, rate: &str| Limit { name: name.into(), rate: rate.into() };
        let set = [limit("receive_bits", "100M:400M:2"), limit("transmit_packets", "9")];
        let changed = change(&set).unwrap().over(NicLimits::default());
        assert_eq!(limits(&changed), [limit("receive_bits", "100000000:400000000:2"), set[1].clone()]);
        assert!(change(&[limit("iops", "1")]).unwrap_err().contains("transmit_bits"));
        let drops = vec![Drops { reason: DropReason::SourceMac, packets: 3 }];
        let traffic = TrafficInfo::from(TrafficStatistics { drops, ..TrafficStatistics::default() });
        assert_eq!((traffic.drops[0].reason.as_str(), traffic.drops[0].packets), ("source_mac", 3));
    }
}
