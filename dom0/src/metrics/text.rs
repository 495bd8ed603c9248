//! Prometheus' text format, version 0.0.4: families of samples, each family once, with its name, type and help text.

use std::fmt::{Display, Write};

use domus_api::{DiskCounters, DomainStatistics, NicCounters, OpInfo, TrafficInfo};

/// States that a domain can be in, as `domus list --json` has them.
const STATES: [&str; 6] = ["building", "running", "paused", "stopping", "preserved", "dying"];

/// Entries of a latency histogram that are believed: 2^30 µs are 18 minutes.
const BUCKETS: usize = 31;

/// Samples of one family.
struct Family<'a> {
    out: &'a mut String,
    name: &'static str,
}

/// Writes everything.
pub fn write(domains: &[DomainStatistics]) -> String {
    let mut out = String::new();
    let version = env!("CARGO_PKG_VERSION");
    family(&mut out, "domus_build_info", "gauge", "The version of dom0").sample(
        "",
        &[("version", version)],
        1,
    );
    family(&mut out, "domus_domains", "gauge", "Domains there are, without Domain-0").sample(
        "",
        &[],
        domains.len(),
    );
    whole(&mut out, domains);
    vcpus(&mut out, domains);
    disks(&mut out, domains);
    nics(&mut out, domains);
    out
}

fn family<'a>(out: &'a mut String, name: &'static str, kind: &str, help: &str) -> Family<'a> {
    // Writing to a string does not fail.
    let _ = writeln!(out, "# HELP {name} {help}.\n# TYPE {name} {kind}");
    Family { out, name }
}

impl Family<'_> {
    fn sample(&mut self, suffix: &str, labels: &[(&str, &str)], value: impl Display) {
        self.out.push_str(self.name);
        self.out.push_str(suffix);
        for (n, (label, text)) in labels.iter().enumerate() {
            self.out.push_str(if n == 0 { "{" } else { "," });
            let _ = write!(self.out, "{label}=\"{}\"", escaped(text));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        let _ = writeln!(self.out, " {value}");
    }
}

/// A label's value as the format wants it.
fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

fn whole(out: &mut String, domains: &[DomainStatistics]) {
    let mut each = |name, kind, help, value: &dyn Fn(&DomainStatistics) -> f64| {
        let mut family = family(out, name, kind, help);
        for domain in domains {
            family.sample("", &[("domain", &domain.domain.name)], value(domain));
        }
    };
    each("domus_domain_id", "gauge", "The number that a domain has now", &|domain| domain.domain.id.into());
    each("domus_domain_vcpus", "gauge", "vCPUs that a domain has", &|domain| domain.domain.vcpus.into());
    each("domus_domain_memory_bytes", "gauge", "RAM that a domain has", &|domain| {
        (domain.domain.memory_mib << 20) as f64
    });
    each(
        "domus_domain_resident_bytes",
        "gauge",
        "Memory of the host that a domain's runner has touched, the guest's with it",
        &|domain| domain.resident_bytes as f64,
    );
    each(
        "domus_domain_cpu_seconds_total",
        "counter",
        "CPU time of a domain's runner, its vCPUs with it",
        &|domain| domain.domain.cpu_seconds,
    );
    each(
        "domus_domain_backend_restarts_total",
        "counter",
        "Backends of a domain that were started again, or connected to again",
        &|domain| domain.domain.restarts as f64,
    );
    each("domus_domain_troubles", "gauge", "Things that are amiss with a domain, see domus why", &|domain| {
        domain.troubles as f64
    });
    let help = "Accesses of a domain's guest that locked the bus of all the host's CPUs";
    let mut bus_locks = family(out, "domus_domain_bus_locks_total", "counter", help);
    for domain in domains {
        if let Some(count) = domain.bus_locks {
            bus_locks.sample("", &[("domain", &domain.domain.name)], count);
        }
    }
    let mut state = family(out, "domus_domain_state", "gauge", "1 for the state that a domain is in");
    for domain in domains {
        for name in STATES {
            let value = u8::from(domain.domain.state == name);
            state.sample("", &[("domain", &domain.domain.name), ("state", name)], value);
        }
    }
}

fn vcpus(out: &mut String, domains: &[DomainStatistics]) {
    let mut each = |name, help, value: &dyn Fn(&domus_api::VcpuInfo) -> u64| {
        let mut family = family(out, name, "counter", help);
        for domain in domains {
            for vcpu in &domain.vcpus {
                let labels = [("domain", domain.domain.name.as_str()), ("vcpu", &vcpu.vcpu.to_string())];
                family.sample("", &labels, seconds(value(vcpu)));
            }
        }
    };
    each("domus_vcpu_seconds_total", "Time that a vCPU has run", &|vcpu| vcpu.ran_ns);
    each(
        "domus_vcpu_steal_seconds_total",
        "Time that a vCPU was ready to run while others had the host's CPUs",
        &|vcpu| vcpu.steal_ns,
    );
}

fn disks(out: &mut String, domains: &[DomainStatistics]) {
    let all = || {
        domains
            .iter()
            .flat_map(|domain| domain.disks.iter().map(move |disk| (domain.domain.name.as_str(), disk)))
    };
    let mut up =
        family(out, "domus_disk_serving", "gauge", "1 if a disk is served, 0 if it is held or waits");
    for (domain, disk) in all() {
        up.sample("", &[("domain", domain), ("disk", &disk.id)], u8::from(disk.state == "serving"));
    }
    let mut size = family(out, "domus_disk_size_bytes", "gauge", "Size of a disk");
    for (domain, disk) in all() {
        if let Some(bytes) = disk.bytes {
            size.sample("", &[("domain", domain), ("disk", &disk.id)], bytes);
        }
    }
    let counted =
        || all().filter_map(|(domain, disk)| Some((domain, disk.id.as_str(), disk.counters.as_ref()?)));
    let mut each = |name, kind, help, value: &dyn Fn(&DiskCounters) -> u64| {
        let mut family = family(out, name, kind, help);
        for (domain, disk, counters) in counted() {
            family.sample("", &[("domain", domain), ("disk", disk)], value(counters));
        }
    };
    each("domus_disk_in_flight", "gauge", "Requests taken from a guest and not answered yet", &|disk| {
        disk.in_flight
    });
    let oldest = "Time that the storage has had the oldest request for that it has";
    each("domus_disk_oldest_request_seconds", "gauge", oldest, &|disk| disk.oldest_ms.unwrap_or(0) / 1000);
    each("domus_disk_held", "gauge", "Requests held after an error until the domain is unpaused", &|disk| {
        disk.held
    });
    each("domus_disk_throttled_total", "counter", "Requests that had to wait for a limit", &|disk| {
        disk.throttled
    });
    each("domus_disk_stalls_total", "counter", "Times that a disk could not go on", &|disk| disk.stalls);
    let mut by_op = |name, help, value: &dyn Fn(&OpInfo) -> u64| {
        let mut family = family(out, name, "counter", help);
        for (domain, disk, counters) in counted() {
            for (op, info) in ops(counters) {
                family.sample("", &[("domain", domain), ("disk", disk), ("op", op)], value(info));
            }
        }
    };
    by_op("domus_disk_errors_total", "Requests that failed", &|op| op.errors);
    by_op("domus_disk_bytes_total", "Bytes of requests that did not fail", &|op| op.bytes);
    let mut latency =
        family(out, "domus_disk_request_seconds", "histogram", "Time from taking a request to answering it");
    for (domain, disk, counters) in counted() {
        for (op, info) in ops(counters) {
            let labels = [("domain", domain), ("disk", disk), ("op", op)];
            let mut sum = 0_u64;
            for (n, count) in info.latency.iter().take(BUCKETS).enumerate() {
                sum = sum.saturating_add(*count);
                // Entry n counts those of less than 2^n µs.
                let le = ((1_u64 << n) as f64 / 1e6).to_string();
                latency.sample("_bucket", &[labels[0], labels[1], labels[2], ("le", &le)], sum);
            }
            // The backend's word for it; a histogram's buckets do not become fewer towards the end.
            let count = info.ops.max(sum);
            latency.sample("_bucket", &[labels[0], labels[1], labels[2], ("le", "+Inf")], count);
            latency.sample("_sum", &labels, seconds(info.total_ns));
            latency.sample("_count", &labels, count);
        }
    }
}

fn ops(disk: &DiskCounters) -> [(&'static str, &OpInfo); 4] {
    [("read", &disk.read), ("write", &disk.write), ("flush", &disk.flush), ("discard", &disk.discard)]
}

fn directions(nic: &NicCounters) -> [(&'static str, &TrafficInfo); 2] {
    [("receive", &nic.receive), ("transmit", &nic.transmit)]
}

fn nics(out: &mut String, domains: &[DomainStatistics]) {
    let all = || {
        domains
            .iter()
            .flat_map(|domain| domain.nics.iter().map(move |nic| (domain.domain.name.as_str(), nic)))
    };
    let mut up = family(out, "domus_nic_serving", "gauge", "1 if a NIC is served, 0 if it waits");
    for (domain, nic) in all() {
        up.sample("", &[("domain", domain), ("nic", &nic.id)], u8::from(nic.state == "serving"));
    }
    let counted =
        || all().filter_map(|(domain, nic)| Some((domain, nic.id.as_str(), nic.counters.as_ref()?)));
    let mut link =
        family(out, "domus_nic_link_up", "gauge", "1 if somebody is at the other end of a NIC's cable");
    for (domain, nic, counters) in counted() {
        link.sample("", &[("domain", domain), ("nic", nic)], u8::from(counters.link_up));
    }
    let mut each = |name, help, value: &dyn Fn(&TrafficInfo) -> u64| {
        let mut family = family(out, name, "counter", help);
        for (domain, nic, counters) in counted() {
            for (direction, traffic) in directions(counters) {
                family.sample(
                    "",
                    &[("domain", domain), ("nic", nic), ("direction", direction)],
                    value(traffic),
                );
            }
        }
    };
    each("domus_nic_packets_total", "Frames passed on, as the guest sees their direction", &|traffic| {
        traffic.packets
    });
    each("domus_nic_bytes_total", "Bytes of frames passed on", &|traffic| traffic.bytes);
    each("domus_nic_throttled_total", "Times that frames had to wait for a limit", &|traffic| {
        traffic.throttled
    });
    let mut drops = family(out, "domus_nic_dropped_packets_total", "counter", "Frames lost, by reason");
    for (domain, nic, counters) in counted() {
        for (direction, traffic) in directions(counters) {
            // A reason is one of a few; a backend that names one twice would make two samples of one name.
            let mut told = std::collections::BTreeMap::<&str, u64>::new();
            for drop in &traffic.drops {
                let sum = told.entry(&drop.reason).or_default();
                *sum = sum.saturating_add(drop.packets);
            }
            for (reason, packets) in told {
                let labels = [("domain", domain), ("nic", nic), ("direction", direction), ("reason", reason)];
                drops.sample("", &labels, packets);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_values_are_escaped() {
        let mut out = String::new();
        family(&mut out, "domus_x", "gauge", "X").sample("_sum", &[("a", "\\\"\n"), ("b", "c")], 1.5);
        assert_eq!(
            out,
            "# HELP domus_x X.\n# TYPE domus_x gauge\ndomus_x_sum{a=\"\\\\\\\"\\n\",b=\"c\"} 1.5\n"
        );
    }

    #[test]
    fn without_domains_there_are_families_and_no_samples_of_theirs() {
        let text = write(&[]);
        assert!(
            text.contains("domus_domains 0\n")
                && text.contains("# TYPE domus_disk_request_seconds histogram")
        );
        assert_eq!(text.lines().filter(|line| !line.starts_with('#')).count(), 2, "{text}");
    }
}
