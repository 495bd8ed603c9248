//! Disks as the API shows and changes them.

use domus_api::{DiskCounters, DiskInfo, Limit};
use shared_abi::control::{IoLimits, Rate};

use crate::config::{LimitsFile, RateText};
use crate::domain::operate::DiskReport;

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
