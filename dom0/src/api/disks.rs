//! Disks as the API shows and changes them.

use serde::{Deserialize, Serialize};
use shared_abi::DomainName;
use shared_abi::control::{IoLimits, OpStatistics, Rate};
use zlink::introspect;

use crate::config::{LimitsFile, RateText};
use crate::domain::operate::DiskReport;
use crate::domain::state::State;
use crate::domain::{Trouble, View};

/// One limit of a disk, of all disks of a domain, or of a NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct Limit {
    /// `iops`, `read_iops`, `write_iops`, `bytes`, `read_bytes` or `write_bytes`; of a NIC `receive_bits`,
    /// `receive_packets`, `transmit_bits` or `transmit_packets`.
    pub name: String,
    /// `RATE[:BURST[:SECONDS]]`, or `none`.
    pub rate: String,
}

/// What a disk has done of one kind of request.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct OpInfo {
    /// Requests answered.
    pub ops: u64,
    /// Of these, those that failed.
    pub errors: u64,
    /// Bytes of those that did not.
    pub bytes: u64,
    /// Time from taking a request to answering it, all added up, in nanoseconds.
    pub total_ns: u64,
    /// Number of requests by that time: entry n counts those of less than 2^n µs that no entry before it counts.
    pub latency: Vec<u64>,
}

/// What a disk has done since its backend started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct DiskCounters {
    /// Requests taken from the guest and not answered yet.
    pub in_flight: u64,
    /// Of these, those held after an error.
    pub held: u64,
    /// The most that were in flight at once.
    pub deepest: u64,
    /// Requests that had to wait for a limit.
    pub throttled: u64,
    /// Times that the disk could not go on.
    pub stalls: u64,
    /// Reads.
    pub read: OpInfo,
    /// Writes.
    pub write: OpInfo,
    /// Flushes.
    pub flush: OpInfo,
    /// Discards and write-zeroes.
    pub discard: OpInfo,
}

/// One disk of a domain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct DiskInfo {
    /// Its id.
    pub id: String,
    /// Path, URI or socket.
    pub source: String,
    /// `raw`, `qcow2`, `nbd` or `vhost-user`.
    pub format: String,
    /// The guest cannot write.
    pub read_only: bool,
    /// Number of virtqueues.
    pub queues: u32,
    /// `none`, `writeback`, `unsafe`, or empty if that is somebody else's matter.
    pub cache: String,
    /// `serving`, `held` (after an error, until unpause) or `waiting` (for a backend or a server).
    pub state: String,
    /// The process that serves it, if it is the domain's own and there.
    pub backend_pid: Option<i32>,
    /// Its size, if its backend is there to say.
    pub bytes: Option<u64>,
    /// The limits it has.
    pub limits: Vec<Limit>,
    /// What it has done, if its backend is there to say.
    pub counters: Option<DiskCounters>,
}

/// The answer to `BlockList`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct DiskList {
    /// In the order the guest sees them.
    pub disks: Vec<DiskInfo>,
}

/// The answer to `BlockResize`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Resized {
    /// The disk's size now.
    pub bytes: u64,
}

/// The answer to `BackendUpgrade`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Upgraded {
    /// How long the devices of the backend stood still, in microseconds.
    pub stalled_us: u64,
}

/// Something amiss.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::CustomType)]
pub struct TroubleInfo {
    /// Where: a disk, a backend, the guest.
    pub layer: String,
    /// What has happened.
    pub cause: String,
    /// What to do, or what is being done.
    pub next: String,
}

/// The answer to `Why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, introspect::Type)]
pub struct Troubles {
    /// The domain's state, as `List` has it.
    pub state: String,
    /// What is amiss; empty if nothing is.
    pub troubles: Vec<TroubleInfo>,
}

/// What is amiss with a domain.
pub fn troubles(name: &DomainName, view: &View) -> Vec<TroubleInfo> {
    let mut troubles: Vec<_> = view
        .troubles
        .iter()
        .map(|Trouble { layer, cause, next }| TroubleInfo {
            layer: layer.clone(),
            cause: cause.clone(),
            next: next.clone(),
        })
        .collect();
    if let (State::Preserved { crashed: true }, Some(ended)) = (view.state, &view.ended) {
        let next = format!("look at domus console {name}, then domus destroy {name}");
        troubles.push(TroubleInfo { layer: "guest".into(), cause: ended.clone(), next });
    }
    if view.state == State::Paused && troubles.is_empty() {
        let cause = "it is paused, and everything that it was paused for is well".into();
        let next = format!("domus unpause {name}");
        troubles.push(TroubleInfo { layer: "domain".into(), cause, next });
    }
    troubles
}

/// The changes that a client asks for.
///
/// # Errors
/// One line that names the limit and what would be accepted.
pub fn change(limits: &[Limit]) -> Result<LimitsFile, String> {
    let mut change = LimitsFile::default();
    for Limit { name, rate } in limits {
        let place = match name.as_str() {
            "iops" => &mut change.iops,
            "read_iops" => &mut change.read_iops,
            "write_iops" => &mut change.write_iops,
            "bytes" => &mut change.bytes,
            "read_bytes" => &mut change.read_bytes,
            "write_bytes" => &mut change.write_bytes,
            other => {
                let other: String = other.chars().take(64).collect();
                return Err(format!(
                    "there is no limit \"{other}\": iops, read_iops, write_iops, bytes, read_bytes and write_bytes \
                     are"
                ));
            }
        };
        let rate: RateText = rate.parse().map_err(|error| format!("{name}: {error}"))?;
        *place = Some(rate);
    }
    Ok(change)
}

fn limits(limits: &IoLimits) -> Vec<Limit> {
    let all = [
        ("iops", limits.total.iops),
        ("read_iops", limits.read.iops),
        ("write_iops", limits.write.iops),
        ("bytes", limits.total.bytes),
        ("read_bytes", limits.read.bytes),
        ("write_bytes", limits.write.bytes),
    ];
    let set = all.into_iter().filter_map(|(name, rate)| Some((name, rate?)));
    set.map(|(name, limit)| Limit { name: name.into(), rate: rate(limit) }).collect()
}

/// A rate as it is set.
pub fn rate(Rate { per_second, burst, burst_seconds }: Rate) -> String {
    match (burst == per_second, burst_seconds) {
        (true, 1) => per_second.to_string(),
        _ => format!("{per_second}:{burst}:{burst_seconds}"),
    }
}

impl From<OpStatistics> for OpInfo {
    fn from(op: OpStatistics) -> Self {
        let OpStatistics { ops, errors, bytes, total_ns, latency } = op;
        Self { ops, errors, bytes, total_ns, latency }
    }
}

impl From<DiskReport> for DiskInfo {
    fn from(report: DiskReport) -> Self {
        Self {
            id: report.id.to_string(),
            source: report.source,
            format: report.format.into(),
            read_only: report.read_only,
            queues: report.queues.into(),
            cache: report.cache.into(),
            state: report.state.into(),
            backend_pid: report.backend,
            bytes: report.statistics.as_ref().map(|statistics| statistics.bytes),
            limits: limits(&report.limits),
            counters: report.statistics.map(|it| DiskCounters {
                in_flight: it.in_flight,
                held: it.held,
                deepest: it.deepest,
                throttled: it.throttled,
                stalls: it.stalls,
                read: it.read.into(),
                write: it.write.into(),
                flush: it.flush.into(),
                discard: it.discard.into(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_shown_as_they_are_set() {
        let limit = |name: &str, rate: &str| Limit { name: name.into(), rate: rate.into() };
        let set = [limit("iops", "500:2000:10"), limit("write_bytes", "1048576")];
        let changed = change(&set).unwrap().over(IoLimits::default());
        assert_eq!(limits(&changed), set);
        let none = change(&[limit("iops", "none")]).unwrap().over(changed);
        assert_eq!(limits(&none), set[1..]);
        assert!(change(&[limit("speed", "1")]).unwrap_err().contains("read_iops"));
        assert!(change(&[limit("iops", "x")]).unwrap_err().starts_with("iops: "));
    }
}
