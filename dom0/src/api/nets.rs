//! NICs and networks as the API shows and changes them.

use domus_api::{LeaseInfo, NetworkInfo, NicInfo};
use shared_abi::control::NicLimits;

use crate::api::limits::{self, Named};
use crate::device::net::report::NicReport;
use crate::network::managed::{Forward, Lease, Shown};
use crate::value::rate::NicLimitsFile;

/// The limits of a NIC.
pub const LIMITS: [Named<NicLimitsFile, NicLimits>; 4] = [
    Named {
        name: "receive_bits",
        change: |file| &mut file.receive_bits,
        value: |limits| limits.receive.bits,
    },
    Named {
        name: "receive_packets",
        change: |file| &mut file.receive_packets,
        value: |limits| limits.receive.packets,
    },
    Named {
        name: "transmit_bits",
        change: |file| &mut file.transmit_bits,
        value: |limits| limits.transmit.bits,
    },
    Named {
        name: "transmit_packets",
        change: |file| &mut file.transmit_packets,
        value: |limits| limits.transmit.packets,
    },
];

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
            limits: limits::shown(&LIMITS, &report.limits),
            counters: report.statistics.map(Into::into),
        }
    }
}

impl From<Shown> for NetworkInfo {
    fn from(Shown { network, runs, faults }: Shown) -> Self {
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
            state: match (runs, faults.is_empty()) {
                (false, _) => "stopped",
                (true, true) => "running",
                (true, false) => "faulty",
            }
            .into(),
            fault: (!faults.is_empty())
                .then(|| faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")),
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
    use domus_api::{Limit, NIC_LIMITS, TrafficInfo};
    use shared_abi::control::{DropReason, Drops, TrafficStatistics};

    use super::*;

    #[test]
    fn limits_are_shown_as_they_are_set_and_reasons_by_name() {
        let limit = |name: &str, rate: &str| Limit { name: name.into(), rate: rate.into() };
        let set = [limit("receive_bits", "100M:400M:2"), limit("transmit_packets", "9")];
        let changed = limits::change(&LIMITS, &set).unwrap().over(NicLimits::default());
        assert_eq!(
            limits::shown(&LIMITS, &changed),
            [limit("receive_bits", "100000000:400000000:2"), set[1].clone()]
        );
        assert!(limits::change(&LIMITS, &[limit("iops", "1")]).unwrap_err().contains("transmit_bits"));
        let drops = vec![Drops { reason: DropReason::SourceMac, packets: 3 }];
        let traffic = TrafficInfo::from(TrafficStatistics { drops, ..TrafficStatistics::default() });
        assert_eq!((traffic.drops[0].reason.as_str(), traffic.drops[0].packets), ("source_mac", 3));
    }

    #[test]
    fn the_limits_are_those_that_clients_know() {
        assert_eq!(LIMITS.map(|limit| limit.name), NIC_LIMITS);
    }
}
