//! Tests of a domain's part of the host's CPUs, with the mini guest in the real processes.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use common::Host;

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

/// The CPUs that a vCPU's thread may run on, as the kernel has them.
fn allowed(host: &Host, name: &str, vcpu: &str) -> String {
    let pid = host.domain(name).unwrap()["runner_pid"].as_u64().unwrap();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    let read = |path: std::path::PathBuf| std::fs::read_to_string(path).unwrap_or_default();
    let found = threads.map(|thread| thread.path()).find(|path| read(path.join("comm")).trim() == vcpu);
    let status = read(found.unwrap().join("status"));
    status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap().trim().to_owned()
}

fn affinities(host: &Host, name: &str) -> Vec<String> {
    let list: Vec<serde_json::Value> =
        serde_json::from_str(&host.ok(&["vcpu-list", name, "--json"])).unwrap();
    list.iter().map(|vcpu| vcpu["affinity"].as_str().unwrap().into()).collect()
}

#[test]
fn vcpus_run_where_they_are_pinned_also_after_a_restart_and_under_the_next_dom0() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    let anywhere = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap().trim().to_owned();
    host.ok(&["create", &host.guest("web1", SHELL, r#", "vcpus": 2, "cpus": ["0"]"#)]);
    assert_eq!(
        (allowed(&host, "web1", "vcpu0"), allowed(&host, "web1", "vcpu1")),
        ("0".into(), anywhere.clone())
    );
    assert_eq!(affinities(&host, "web1"), ["0", "all"]);
    host.ok(&["vcpu-pin", "web1", "0", "all"]);
    host.ok(&["vcpu-pin", "web1", "1", "all,^1"]);
    assert_eq!((allowed(&host, "web1", "vcpu0"), allowed(&host, "web1", "vcpu1")), (anywhere, "0".into()));
    let table = host.ok(&["vcpu-list"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["Name", "ID", "VCPU", "CPU", "State", "Time(s)", "Affinity"]);
    assert_eq!((lines.len(), lines[2][0], lines[2][2], lines[2][6]), (3, "web1", "1", "all,^1"));
    // The next dom0 knows it, and so does the next machine.
    host.kill_service();
    host.start_service();
    host.until("it is taken over", || host.domain("web1").is_some_and(|d| d["state"] == "running"));
    assert_eq!(affinities(&host, "web1"), ["all", "all,^1"]);
    let first = host.domain("web1").unwrap()["id"].as_u64().unwrap();
    host.ok(&["reboot", "web1"]);
    let mut console = common::Console::attach(&host, "web1");
    console.wait("mini: ready");
    console.send("quit");
    host.until("it is back", || {
        host.domain("web1").is_some_and(|d| d["id"].as_u64().unwrap() > first && d["state"] == "running")
    });
    assert_eq!(allowed(&host, "web1", "vcpu1"), "0");
    host.ok(&["vcpu-pin", "web1", "all", "0"]);
    assert_eq!(allowed(&host, "web1", "vcpu0"), "0");
    for (args, part) in [
        (["web1", "2", "0"], "no vCPU 2: the domain has 0 to 1"),
        (["web1", "one", "0"], "\"one\" is no vCPU"),
        (["web1", "0", "1000"], "no CPU 1000: this host has"),
        (["web1", "0", "x"], "\"x\" is no set of CPUs"),
    ] {
        let line = host.refused(&["vcpu-pin", args[0], args[1], args[2]]);
        assert!(line.contains(part), "{line}");
    }
    assert_eq!(affinities(&host, "web1"), ["0", "0"]);
    host.ok(&["destroy", "web1"]);
    let file = host.guest("web2", SHELL, r#", "cpus": "1000""#);
    for command in ["create", "check"] {
        let line = host.refused(&[command, &file]);
        assert!(line.contains("web2.json: cpus: there is no CPU 1000"), "{line}");
    }
    assert_eq!(host.traces(), before);
}

#[test]
fn a_weight_is_the_cgroups_or_refused_by_name_and_uptime_counts() {
    let host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let sched = || host.ok(&["sched-list", "web1"]).lines().nth(1).unwrap().to_owned();
    assert_eq!(sched().split_whitespace().skip(2).collect::<Vec<_>>(), ["100", "0"]);
    let out = host.domus(&["sched-set", "web1", "-w", "200", "-c", "150"]);
    if out.status.success() {
        assert_eq!(sched().split_whitespace().skip(2).collect::<Vec<_>>(), ["200", "150"]);
    } else {
        let line = String::from_utf8_lossy(&out.stderr).into_owned();
        assert!(line.contains("web1: ") && line.contains("cgroup"), "{line}");
        let line = host.refused(&["create", &host.guest("web2", SHELL, r#", "cpu_cap": 50"#)]);
        assert!(line.contains("web2.json: cpu_cap: ") && line.contains("leave it out"), "{line}");
    }
    assert!(host.refused(&["sched-set", "web1", "-w", "0"]).contains("1 to 10000"));
    assert!(host.refused(&["sched-set", "web1", "-c", "25501"]).contains("up to 25500"));
    host.until("its machine has run for a second", || {
        let up: serde_json::Value = serde_json::from_str(&host.ok(&["uptime", "web1", "--json"])).unwrap();
        up[0]["seconds"].as_u64().is_some_and(|seconds| (1..60).contains(&seconds))
    });
    assert!(host.ok(&["uptime"]).lines().nth(1).unwrap().contains(" 0:00:0"));
    host.ok(&["destroy", "web1"]);
    assert_eq!(host.traces(), before);
}
