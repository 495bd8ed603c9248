//! Rates from two samples of the counters.

use std::time::Duration;

use domus_api::DomainStatistics;
use serde::Serialize;

use super::SortKey;

/// The rates of one domain between two samples.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Its number.
    pub id: u32,
    /// Its state, as `domus list --json` has it.
    pub state: String,
    /// vCPU time, in percent of one CPU.
    pub cpu_percent: f64,
    /// Time that vCPUs waited for a CPU, in percent of one.
    pub steal_percent: f64,
    /// RAM in MiB.
    pub memory_mib: u64,
    /// What of the host's RAM its runner has touched, in MiB.
    pub resident_mib: u64,
    /// Bytes a second that its disks read.
    pub disk_read: f64,
    /// Bytes a second that its disks wrote.
    pub disk_written: f64,
    /// Requests a second, of every kind.
    pub disk_requests: f64,
    /// Bytes a second to the guest.
    pub net_received: f64,
    /// Bytes a second from the guest.
    pub net_transmitted: f64,
    /// Things that are amiss.
    pub troubles: u64,
}

/// Compares two samples. A domain that the first one lacks, or had under another number, has rates of zero.
pub fn rates(
    before: &[DomainStatistics],
    now: &[DomainStatistics],
    between: Duration,
    order: SortKey,
) -> Vec<Row> {
    let seconds = between.as_secs_f64().max(1e-3);
    let mut rows: Vec<Row> = now
        .iter()
        .map(|now| {
            let was = before
                .iter()
                .find(|was| was.domain.name == now.domain.name && was.domain.id == now.domain.id);
            row(was.unwrap_or(now), now, seconds)
        })
        .collect();
    sort(&mut rows, order);
    rows
}

/// The most first; by name where that is the same.
pub fn sort(rows: &mut [Row], order: SortKey) {
    let key = |row: &Row| match order {
        SortKey::Cpu => row.cpu_percent,
        SortKey::Steal => row.steal_percent,
        SortKey::Memory => row.memory_mib as f64,
        SortKey::Disk => row.disk_read + row.disk_written,
        SortKey::Net => row.net_received + row.net_transmitted,
        SortKey::Name => 0.0,
    };
    rows.sort_by(|a, b| key(b).total_cmp(&key(a)).then_with(|| a.name.cmp(&b.name)));
}

/// The sum of nothing is 0; that of the standard library is -0, which is printed as such.
fn sum(each: impl Iterator<Item = f64>) -> f64 {
    each.fold(0.0, |sum, one| sum + one)
}

fn row(was: &DomainStatistics, now: &DomainStatistics, seconds: f64) -> Row {
    // One that has become smaller has begun anew.
    let grown = |was: u64, now: u64| (if now < was { now } else { now - was }) as f64 / seconds;
    let vcpu = |of: fn(&domus_api::VcpuInfo) -> u64| -> f64 {
        let each = now.vcpus.iter().map(|it| {
            let old = was.vcpus.iter().find(|old| old.vcpu == it.vcpu).map_or(of(it), of);
            grown(old, of(it))
        });
        sum(each) / 1e9 * 100.0
    };
    let disk = |of: fn(&domus_api::DiskCounters) -> u64| -> f64 {
        let each = now.disks.iter().filter_map(|it| {
            let old = was.disks.iter().find(|old| old.id == it.id)?.counters.as_ref()?;
            Some(grown(of(old), of(it.counters.as_ref()?)))
        });
        sum(each)
    };
    let nic = |of: fn(&domus_api::NicCounters) -> u64| -> f64 {
        let each = now.nics.iter().filter_map(|it| {
            let old = was.nics.iter().find(|old| old.id == it.id)?.counters.as_ref()?;
            Some(grown(of(old), of(it.counters.as_ref()?)))
        });
        sum(each)
    };
    Row {
        name: now.domain.name.clone(),
        id: now.domain.id,
        state: now.domain.state.clone(),
        cpu_percent: vcpu(|it| it.ran_ns),
        steal_percent: vcpu(|it| it.steal_ns),
        memory_mib: now.domain.memory_mib,
        resident_mib: now.resident_bytes >> 20,
        disk_read: disk(|it| it.read.bytes),
        disk_written: disk(|it| it.write.bytes),
        // What a backend says is taken as it comes: no sum of it may overflow.
        disk_requests: disk(|it| {
            it.read
                .ops
                .saturating_add(it.write.ops)
                .saturating_add(it.flush.ops)
                .saturating_add(it.discard.ops)
        }),
        net_received: nic(|it| it.receive.bytes),
        net_transmitted: nic(|it| it.transmit.bytes),
        troubles: now.troubles,
    }
}

/// The list, a line each.
pub fn table(rows: &[Row]) -> String {
    let mut text = format!(
        "{:<24} {:>5} {:<10} {:>6} {:>6} {:>7} {:>7} {:>9} {:>9} {:>7} {:>9} {:>9} {:>4}",
        "Name",
        "ID",
        "State",
        "CPU%",
        "Steal%",
        "Mem",
        "Res",
        "Read/s",
        "Write/s",
        "Req/s",
        "Recv/s",
        "Send/s",
        "Ills"
    );
    for row in rows {
        let bytes = [row.disk_read, row.disk_written, row.net_received, row.net_transmitted].map(amount);
        let [read, written, received, transmitted] = &bytes;
        text += &format!(
            "\n{:<24} {:>5} {:<10} {:>6.1} {:>6.1} {:>7} {:>7} {read:>9} {written:>9} {:>7.0} \
             {received:>9} {transmitted:>9} {:>4}",
            row.name,
            row.id,
            row.state,
            row.cpu_percent,
            row.steal_percent,
            row.memory_mib,
            row.resident_mib,
            row.disk_requests,
            row.troubles
        );
    }
    text
}

/// Bytes, in the unit that leaves few digits.
fn amount(bytes: f64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut bytes = bytes;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if bytes < 1024.0 {
            break;
        }
        bytes /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{bytes:.0}B") } else { format!("{bytes:.1}{unit}") }
}

#[cfg(test)]
mod tests {
    use domus_api::{DiskCounters, DiskInfo, DomainInfo, OpInfo, VcpuInfo};

    use super::*;

    fn domain(name: &str, id: u32, ran_ns: u64, read: u64) -> DomainStatistics {
        let info = DomainInfo {
            name: name.into(),
            id,
            uuid: None,
            memory_mib: 32,
            vcpus: 1,
            flags: "r-----".into(),
            state: "running".into(),
            cpu_seconds: 0.0,
            ended: None,
            runner_pid: None,
            restarts: 0,
        };
        let counters = DiskCounters {
            in_flight: 0,
            held: 0,
            deepest: 0,
            throttled: 0,
            stalls: 0,
            read: OpInfo { ops: read / 4096, bytes: read, ..OpInfo::default() },
            write: OpInfo { ops: u64::MAX, ..OpInfo::default() },
            flush: OpInfo::default(),
            discard: OpInfo::default(),
            oldest_ms: None,
        };
        let disk = DiskInfo {
            id: "root".into(),
            source: String::new(),
            format: "raw".into(),
            read_only: false,
            queues: 1,
            cache: String::new(),
            state: "serving".into(),
            backend_pid: None,
            bytes: None,
            limits: vec![],
            counters: Some(counters),
        };
        DomainStatistics {
            domain: info,
            resident_bytes: 3 << 20,
            vcpus: vec![VcpuInfo { vcpu: 0, ran_ns, steal_ns: ran_ns / 2 }],
            disks: vec![disk],
            nics: vec![],
            bus_locks: None,
            troubles: 0,
        }
    }

    #[test]
    fn rates_are_what_was_added_in_a_second_and_a_counter_that_began_anew_counts_from_nothing() {
        let before = [domain("a", 1, 0, 8192), domain("b", 2, 0, 1 << 30)];
        let now =
            [domain("a", 1, 1_000_000_000, 8192), domain("b", 2, 0, 4096), domain("new", 3, 7, 1 << 20)];
        let rows = rates(&before, &now, Duration::from_secs(2), SortKey::Cpu);
        assert_eq!(rows.iter().map(|row| row.name.as_str()).collect::<Vec<_>>(), ["a", "b", "new"]);
        assert_eq!((rows[0].cpu_percent, rows[0].steal_percent, rows[0].disk_read), (50.0, 25.0, 0.0));
        assert_eq!(rows[1].disk_read, 2048.0);
        assert_eq!((rows[2].cpu_percent, rows[2].disk_read, rows[2].resident_mib), (0.0, 0.0, 3));
        let rows = rates(&before, &now, Duration::from_secs(2), SortKey::Disk);
        assert_eq!(rows[0].name, "b");
        assert_eq!(table(&rows).lines().count(), 4);
    }

    #[test]
    fn a_domain_without_devices_does_nothing_and_not_less() {
        let mut bare = domain("a", 1, 0, 0);
        (bare.disks, bare.nics, bare.vcpus) = (vec![], vec![], vec![]);
        let rows = rates(&[bare.clone()], &[bare], Duration::from_secs(1), SortKey::Disk);
        for text in [table(&rows), serde_json::to_string(&rows).unwrap()] {
            assert!(!text.contains("-0"), "{text}");
        }
    }

    #[test]
    fn amounts_have_few_digits() {
        assert_eq!(
            [0.0, 1023.0, 1536.0, 3.0 * 1024.0 * 1024.0].map(amount),
            ["0B", "1023B", "1.5KiB", "3.0MiB"]
        );
    }
}
