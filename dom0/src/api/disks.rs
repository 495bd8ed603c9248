//! Disks as the API shows and changes them.

use domus_api::DiskInfo;
use shared_abi::control::IoLimits;

use crate::api::limits::{self, Named};
use crate::device::block::report::DiskReport;
use crate::value::rate::LimitsFile;

/// The limits of a disk, and of all disks of a domain together.
pub const LIMITS: [Named<LimitsFile, IoLimits>; 6] = [
    Named { name: "iops", change: |file| &mut file.iops, value: |limits| limits.total.iops },
    Named { name: "read_iops", change: |file| &mut file.read_iops, value: |limits| limits.read.iops },
    Named { name: "write_iops", change: |file| &mut file.write_iops, value: |limits| limits.write.iops },
    Named { name: "bytes", change: |file| &mut file.bytes, value: |limits| limits.total.bytes },
    Named { name: "read_bytes", change: |file| &mut file.read_bytes, value: |limits| limits.read.bytes },
    Named { name: "write_bytes", change: |file| &mut file.write_bytes, value: |limits| limits.write.bytes },
];

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
            limits: limits::shown(&LIMITS, &report.limits),
            counters: report.statistics.map(Into::into),
        }
    }
}

#[cfg(test)]
mod tests {
    use domus_api::{DISK_LIMITS, Limit};

    use super::*;

    #[test]
    fn limits_are_shown_as_they_are_set() {
        let limit = |name: &str, rate: &str| Limit { name: name.into(), rate: rate.into() };
        let set = [limit("iops", "500:2000:10"), limit("write_bytes", "1048576")];
        let changed = limits::change(&LIMITS, &set).unwrap().over(IoLimits::default());
        assert_eq!(limits::shown(&LIMITS, &changed), set);
        let none = limits::change(&LIMITS, &[limit("iops", "none")]).unwrap().over(changed);
        assert_eq!(limits::shown(&LIMITS, &none), set[1..]);
        assert!(limits::change(&LIMITS, &[limit("speed", "1")]).unwrap_err().contains("read_iops"));
        assert!(limits::change(&LIMITS, &[limit("iops", "x")]).unwrap_err().starts_with("iops: "));
    }

    #[test]
    fn the_limits_are_those_that_clients_know() {
        assert_eq!(LIMITS.map(|limit| limit.name), DISK_LIMITS);
    }
}
