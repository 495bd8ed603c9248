//! Tests of the counters of domains, as `domus top` and Prometheus read them.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::Host;
use serde_json::Value;

/// A guest that reads and writes its disk for longer than a test takes.
const WORKER: &str = "console=ttyS0 mini.test=blk-endure mini.ms=60000 mini.end=poweroff";

fn worker(host: &Host, name: &str) -> String {
    let disk = host.disk("root", 16, "");
    let more =
        format!(r#", "vcpus": 2, "disks": [ {disk} ], "nets": [ {{ "id": "eth0", "bridge": "br0" }} ]"#);
    host.guest(name, WORKER, &more)
}

/// What is answered to these bytes: the status line, and the body.
fn ask(host: &Host, request: &[u8]) -> (String, String) {
    let mut stream = UnixStream::connect(host.path("metrics.sock")).unwrap();
    stream.write_all(request).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    (head.lines().next().unwrap_or_default().into(), body.into())
}

/// One sample: its whole name, its labels, its value.
type Sample = (String, BTreeMap<String, String>, f64);

/// Reads the text format 0.0.4 as strictly as Prometheus' own `promtool check metrics` does: every family has one
/// HELP and one TYPE before its samples, families do not mix, no sample is there twice, counters are called so,
/// histograms are whole.
fn parse(text: &str) -> Vec<Sample> {
    assert!(text.ends_with('\n'));
    let name_is = |name: &str| {
        name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    let (mut families, mut seen) = (BTreeMap::<String, String>::new(), BTreeSet::new());
    let (mut now, mut helped) = (String::new(), String::new());
    let mut samples = Vec::new();
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').unwrap();
            assert!(name_is(name) && !text.is_empty(), "{line}");
            helped = name.into();
            continue;
        }
        if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap();
            assert_eq!(name, helped, "TYPE without its HELP: {line}");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(families.insert(name.into(), kind.into()).is_none(), "a family twice: {line}");
            now = name.into();
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let value: f64 = value.parse().unwrap_or_else(|_| panic!("no number: {line}"));
        assert!(seen.insert(series.to_owned()), "a sample twice: {line}");
        let (name, labels) = match series.split_once('{') {
            None => (series, ""),
            Some((name, labels)) => (name, labels.strip_suffix('}').unwrap()),
        };
        let suffix =
            name.strip_prefix(now.as_str()).unwrap_or_else(|| panic!("not of the family {now}: {line}"));
        let histogram = families[&now] == "histogram";
        assert!(
            if histogram { ["_bucket", "_sum", "_count"].contains(&suffix) } else { suffix.is_empty() },
            "{line}"
        );
        let mut parsed = BTreeMap::new();
        for label in labels.split_terminator(',') {
            let (key, text) = label.split_once("=\"").unwrap();
            let text = text.strip_suffix('"').unwrap();
            assert!(name_is(key) && !text.contains(['"', '\\']), "{line}");
            assert!(parsed.insert(key.to_owned(), text.to_owned()).is_none(), "{line}");
        }
        assert_eq!(parsed.contains_key("le"), suffix == "_bucket" && histogram, "{line}");
        samples.push((name.to_owned(), parsed, value));
    }
    whole_histograms(&samples);
    samples
}

fn whole_histograms(samples: &[Sample]) {
    let mut groups = BTreeMap::<_, Vec<(f64, f64)>>::new();
    for (name, labels, value) in samples {
        let Some(base) = name.strip_suffix("_bucket") else { continue };
        let mut rest = labels.clone();
        let le = rest.remove("le").unwrap();
        let le = if le == "+Inf" { f64::INFINITY } else { le.parse().unwrap() };
        groups.entry((base.to_owned(), rest)).or_default().push((le, *value));
    }
    for ((base, labels), buckets) in groups {
        assert!(
            buckets.windows(2).all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1),
            "{base} {labels:?}"
        );
        let last = buckets.last().unwrap();
        assert_eq!(last.0, f64::INFINITY);
        let count = samples.iter().find(|it| it.0 == format!("{base}_count") && it.1 == labels).unwrap();
        assert_eq!(count.2, last.1, "{base} {labels:?}");
    }
}

/// The value of the one sample with this name and these labels among others.
fn value(samples: &[Sample], name: &str, labels: &[(&str, &str)]) -> f64 {
    let has = |sample: &&Sample| {
        sample.0 == name && labels.iter().all(|(key, text)| sample.1.get(*key).is_some_and(|is| is == text))
    };
    let found: Vec<_> = samples.iter().filter(has).collect();
    assert_eq!(found.len(), 1, "{name} {labels:?}: {found:?}");
    found[0].2
}

#[test]
fn prometheus_reads_what_domains_have_done_and_strangers_get_nothing_else() {
    let mut host = Host::new(true);
    let at = host.path("metrics.sock").display().to_string();
    host.start_service_with(&["--metrics", &at]);
    let get = b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    let (status, text) = ask(&host, get);
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert_eq!(value(&parse(&text), "domus_domains", &[]), 0.0);

    host.ok(&["create", &worker(&host, "web1")]);
    let mut samples = Vec::new();
    host.until("its disk has done something", || {
        samples = parse(&ask(&host, get).1);
        let wrote = samples
            .iter()
            .find(|it| it.0 == "domus_disk_bytes_total" && it.1.get("op").is_some_and(|op| op == "write"));
        wrote.is_some_and(|it| it.2 > 0.0)
    });
    let it = ("domain", "web1");
    assert_eq!(value(&samples, "domus_domains", &[]), 1.0);
    assert_eq!(value(&samples, "domus_domain_memory_bytes", &[it]), f64::from(32 << 20));
    assert_eq!(value(&samples, "domus_domain_state", &[it, ("state", "running")]), 1.0);
    assert_eq!(value(&samples, "domus_domain_state", &[it, ("state", "paused")]), 0.0);
    for vcpu in ["0", "1"] {
        assert!(value(&samples, "domus_vcpu_seconds_total", &[it, ("vcpu", vcpu)]) > 0.0);
        value(&samples, "domus_vcpu_steal_seconds_total", &[it, ("vcpu", vcpu)]);
    }
    assert!(
        value(&samples, "domus_disk_request_seconds_count", &[it, ("disk", "root"), ("op", "write")]) > 0.0
    );
    assert_eq!(value(&samples, "domus_disk_serving", &[it, ("disk", "root")]), 1.0);
    assert_eq!(value(&samples, "domus_disk_size_bytes", &[it, ("disk", "root")]), f64::from(16 << 20));
    assert_eq!(value(&samples, "domus_disk_stalls_total", &[it]), 0.0);
    value(&samples, "domus_nic_bytes_total", &[it, ("nic", "eth0"), ("direction", "transmit")]);
    assert_eq!(value(&samples, "domus_domain_backend_restarts_total", &[it]), 0.0);

    // A backend that dies is counted.
    let old = host.block_pid("web1", 0);
    common::signal(old as u32, nix::sys::signal::Signal::SIGKILL);
    host.block_pid("web1", old);
    host.until("it is counted", || {
        value(&parse(&ask(&host, get).1), "domus_domain_backend_restarts_total", &[it]) == 1.0
    });

    for (request, status) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "HTTP/1.1 404 Not Found"),
        (b"POST /metrics HTTP/1.1\r\n\r\n", "HTTP/1.1 405 Method Not Allowed"),
        (b"\xff\xfe\r\n\r\n", "HTTP/1.1 400 Bad Request"),
        (&[b'a'; 9000], "HTTP/1.1 431 Request Header Fields Too Large"),
    ] {
        assert_eq!(ask(&host, request).0, status);
    }
    // Those that say nothing do not keep others out, and very many of them for a moment only.
    let connect = || UnixStream::connect(host.path("metrics.sock")).unwrap();
    let mut silent: Vec<_> = (0..20).map(|_| connect()).collect();
    assert_eq!(ask(&host, get).0, "HTTP/1.1 200 OK");
    silent.extend((0..80).map(|_| connect()));
    host.until("it answers again", || {
        let asked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| ask(&host, get).0));
        asked.is_ok_and(|status| status == "HTTP/1.1 200 OK")
    });
    drop(silent);
    host.ok(&["destroy", "web1"]);
    host.stop_service();
    assert!(!host.path("metrics.sock").exists());
}

#[test]
fn top_tells_rates_and_in_batch_mode_prints_them() {
    let host = Host::with_service(true);
    host.ok(&["create", &worker(&host, "busy")]);
    host.ok(&["create", &host.guest("idle", "console=ttyS0 mini.test=shell", "")]);
    let out = host.ok(&["top", "--batch", "--iterations", "2", "--delay", "1", "--json"]);
    assert_eq!(out.lines().count(), 2);
    for line in out.lines() {
        let rows: Vec<Value> = serde_json::from_str(line).unwrap();
        assert_eq!(rows.len(), 2);
        for row in &rows {
            for key in [
                "cpu_percent",
                "steal_percent",
                "memory_mib",
                "resident_mib",
                "disk_read",
                "disk_written",
                "disk_requests",
                "net_received",
                "net_transmitted",
                "troubles",
            ] {
                assert!(row[key].as_f64().is_some_and(|number| number >= 0.0), "{key}: {row}");
            }
            assert_eq!(row["memory_mib"], 32);
            assert!(row["state"] == "running" && row["id"].as_u64() > Some(0), "{row}");
        }
    }
    let out = host.ok(&["top", "-b", "-n", "1", "-d", "1", "--sort", "name"]);
    let names: Vec<_> = out.lines().map(|line| line.split_whitespace().next().unwrap()).collect();
    assert_eq!(names, ["Name", "busy", "idle"]);
    // Without a terminal there is nothing to show it on.
    assert!(host.refused(&["top"]).contains("--batch"));
    host.ok(&["destroy", "busy"]);
    host.ok(&["destroy", "idle"]);
}

#[test]
fn metrics_that_others_would_reach_need_to_be_meant() {
    let host = Host::new(false);
    let mut dom0 = std::process::Command::new(common::programs().join("dom0"));
    let out = dom0.arg("--run-dir").arg(host.run_dir()).args(["--metrics", "0.0.0.0:9273"]).output().unwrap();
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("--metrics-public"));
    let mut dom0 = std::process::Command::new(common::programs().join("dom0"));
    assert_eq!(dom0.args(["--metrics", "here"]).output().unwrap().status.code(), Some(2));
}
