//! NICs, with their counters.

use serde::{Deserialize, Serialize};
use shared_abi::control::{Drops, NicStatistics, TrafficStatistics};
use zlink::introspect;

use crate::Limit;

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

impl From<TrafficStatistics> for TrafficInfo {
    fn from(traffic: TrafficStatistics) -> Self {
        let TrafficStatistics {
            packets,
            bytes,
            open_checksums,
            segments,
            segment_bytes,
            throttled,
            sizes,
            drops,
        } = traffic;
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

impl From<NicStatistics> for NicCounters {
    fn from(nic: NicStatistics) -> Self {
        let NicStatistics { link_up, pairs, promiscuous, receive, transmit } = nic;
        let (receive, transmit) = (receive.into(), transmit.into());
        Self { link_up, pairs: pairs.into(), promiscuous, receive, transmit }
    }
}
