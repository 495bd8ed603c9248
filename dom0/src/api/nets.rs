//! NICs and networks as the API shows and changes them.

use domus_api::{LeaseInfo, Limit, NetworkInfo, NicCounters, NicInfo};
use shared_abi::control::NicLimits;

use super::disks::rate;
use crate::config::{NicLimitsFile, RateText};
use crate::domain::nics::NicReport;
use crate::networks::{Forward, Lease, Shown};

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
