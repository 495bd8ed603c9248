//! dom0 is killed, stopped, or dies with others: its domains go on, and the next dom0 takes them over.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::time::Duration;

use common::{Console, Host, signal};
use nix::sys::signal::Signal;
use serde_json::Value;

const NIC: &str = r#", "nets": [ { "id": "eth0", "bridge": "br0" } ]"#;
const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

/// A guest that verifies every request for so long.
fn endure(ms: u64) -> String {
    format!("console=ttyS0 mini.test=blk-endure mini.ms={ms} mini.end=poweroff")
}

fn is(host: &Host, name: &str, state: &str) -> bool {
    host.domain(name).is_some_and(|domain| domain["state"] == state)
}

#[test]
fn a_guest_under_load_does_not_notice_that_dom0_is_killed_and_the_next_one_has_it_in_hand() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    let devices = format!(r#", "disks": [ {} ]{NIC}"#, host.disk("root", 64, r#", "queues": 2"#));
    let file = host.guest("web1", &endure(9000), &devices);
    host.ok(&["create", &file]);
    host.ok(&["block-set", "web1", "root", "--iops", "900000"]);
    let was = host.domain("web1").unwrap();
    let block = host.block_pid("web1", 0);
    for _ in 0..3 {
        host.kill_service();
        host.start_service();
    }
    host.until("it is taken over", || is(&host, "web1", "running"));
    let now = host.domain("web1").unwrap();
    for key in ["id", "runner_pid", "restarts"] {
        assert_eq!(now[key], was[key], "{key}");
    }
    // Everything can be asked of it, and what was changed is known.
    assert_eq!(host.block_pid("web1", 0), block);
    assert_eq!(host.disks("web1")[0]["limits"][0]["name"], "iops", "{:?}", host.disks("web1"));
    host.ok(&["network-list", "web1"]);
    host.ok(&["pause", "web1"]);
    host.ok(&["unpause", "web1"]);
    assert!(host.refused(&["create", &file]).contains("runs already"));
    let mut console = Console::attach(&host, "web1");
    // What serves it can be replaced: images and taps are opened again.
    signal(block as u32, Signal::SIGKILL);
    host.block_pid("web1", block);
    signal(host.pid_of("web1", "net.sock").unwrap(), Signal::SIGKILL);
    host.until("both are replaced", || host.domain("web1").unwrap()["restarts"] == 2);
    assert!(host.traces().links.contains("vif"));
    host.ok(&["backend", "upgrade", "web1", "root"]);
    console.wait("mini: ok blk-endure");
    host.until("it switches itself off", || host.domain("web1").is_none());
    host.until("everything is gone", || host.traces() == before);
}

/// The record of a domain as a dom0 wrote it before records had a version.
fn without_version(record: &Value) -> Value {
    let mut old = record.clone();
    let fields = old.as_object_mut().unwrap();
    for key in ["version", "started_as", "memory", "vcpus", "devices"] {
        fields.remove(key).unwrap();
    }
    let devices = &record["devices"];
    let pick = |from: &Value, keys: &[&str]| {
        let mut picked: serde_json::Map<_, _> =
            keys.iter().map(|key| ((*key).to_owned(), from[*key].clone())).collect();
        picked.insert("id".into(), from["spec"]["id"].clone());
        Value::from(picked)
    };
    let disks = devices["block"]["disks"].as_array().unwrap().iter();
    let disks =
        disks.map(|disk| pick(disk, &["files", "cache", "limits", "bytes", "lost"])).collect::<Vec<_>>();
    let nics = devices["nics"].as_array().unwrap().iter();
    let nics = nics.map(|nic| pick(nic, &["pairs", "limits", "up"])).collect::<Vec<_>>();
    fields.insert("unit".into(), record["started_as"].clone());
    fields.insert("passts".into(), Value::Array(Vec::new()));
    fields.insert("disks".into(), disks.into());
    fields.insert("disk_limits".into(), devices["block"]["limits"].clone());
    fields.insert("nics".into(), nics.into());
    old
}

#[test]
fn a_guest_of_a_dom0_whose_records_had_no_version_goes_on_and_its_backends_can_be_exchanged() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    let devices = format!(r#", "disks": [ {} ]{NIC}"#, host.disk("root", 64, ""));
    let file = host.guest("web1", &endure(5000), &devices);
    host.ok(&["create", &file]);
    host.ok(&["block-set", "web1", "root", "--iops", "900000"]);
    let was = host.domain("web1").unwrap();
    host.kill_service();
    let path = host.run_dir().join("domains/web1/state.json");
    let record: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    std::fs::write(&path, without_version(&record).to_string()).unwrap();
    host.start_service();
    host.until("it is taken over", || is(&host, "web1", "running"));
    let now = host.domain("web1").unwrap();
    for key in ["id", "runner_pid", "restarts"] {
        assert_eq!(now[key], was[key], "{key}");
    }
    assert_eq!(host.disks("web1")[0]["limits"][0]["name"], "iops", "{:?}", host.disks("web1"));
    host.ok(&["backend", "upgrade", "web1", "root"]);
    host.ok(&["backend", "upgrade", "web1", "eth0"]);
    let again: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(again["devices"]["nics"][0]["spec"], record["devices"]["nics"][0]["spec"]);
    Console::attach(&host, "web1").wait("mini: ok blk-endure");
    host.until("it switches itself off", || host.domain("web1").is_none());
    host.until("everything is gone", || host.traces() == before);
}

#[test]
fn a_dom0_that_dies_with_every_backend_is_followed_by_one_that_starts_them_again() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    let devices = format!(r#", "disks": [ {} ]{NIC}"#, host.disk("root", 64, ""));
    let file = host.guest("web1", &endure(6000), &devices);
    host.ok(&["create", &file]);
    let runner = host.domain("web1").unwrap()["runner_pid"].clone();
    host.kill_service();
    for socket in ["block.sock", "net.sock", "console.sock"] {
        signal(host.pid_of("web1", socket).unwrap(), Signal::SIGKILL);
    }
    host.until("they are gone", || host.processes().len() == 1);
    host.start_service();
    host.until("they are back", || host.domain("web1").unwrap()["restarts"] == 3);
    assert_eq!(host.domain("web1").unwrap()["runner_pid"], runner);
    Console::attach(&host, "web1").wait("mini: ok blk-endure");
    host.until("it switches itself off", || host.domain("web1").is_none());
    host.until("everything is gone", || host.traces() == before);
}

#[test]
fn an_upgrade_right_after_dom0_has_come_back_exchanges_every_kind_of_backend() {
    let mut host = Host::with_service(true);
    let devices = format!(r#", "disks": [ {} ]{NIC}"#, host.disk("root", 64, ""));
    let file = host.guest("web1", &endure(5000), &devices);
    host.ok(&["create", &file]);
    let (block, net) = (host.block_pid("web1", 0), host.pid_of("web1", "net.sock"));
    host.leave_service();
    host.start_service();
    host.ok(&["backend", "upgrade", "web1", "root"]);
    host.ok(&["backend", "upgrade", "web1", "eth0"]);
    assert!(host.block_pid("web1", 0) != block && host.pid_of("web1", "net.sock") != net);
    Console::attach(&host, "web1").wait("mini: ok blk-endure");
}

#[test]
fn what_a_machine_did_while_there_was_no_dom0_is_dealt_with_as_its_config_says() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    let crash = r#", "on_crash": "preserve""#;
    for (name, more) in [("off", ""), ("again", ""), ("killed", crash), ("gone", "")] {
        host.ok(&["create", &host.guest(name, SHELL, more)]);
    }
    let mut consoles = ["off", "again", "killed", "gone"].map(|name| Console::attach(&host, name));
    consoles.iter_mut().for_each(|console| _ = console.wait("mini: ready"));
    let was = host.domain("again").unwrap()["id"].as_u64().unwrap();
    host.kill_service();
    consoles[0].send("end poweroff");
    consoles[1].send("end reset");
    for console in &mut consoles[..2] {
        console.wait("mini: end ");
    }
    drop(consoles);
    for name in ["killed", "gone"] {
        signal(host.pid_of(name, "runner.sock").unwrap(), Signal::SIGKILL);
    }
    std::thread::sleep(Duration::from_millis(300));
    host.start_service();
    host.until("off is off", || host.domain("off").is_none());
    host.until("again has been started again", || {
        host.domain("again")
            .is_some_and(|domain| domain["id"].as_u64() > Some(was) && domain["state"] == "running")
    });
    host.until("killed is preserved", || is(&host, "killed", "preserved"));
    assert!(host.domain("killed").unwrap()["ended"].as_str().unwrap().contains("while dom0 was away"));
    host.until("gone is gone", || host.domain("gone").is_none());
    // A preserved one is one for the next dom0, too.
    host.kill_service();
    host.start_service();
    assert!(is(&host, "killed", "preserved"));
    Console::attach(&host, "killed").wait("mini: ready");
    host.ok(&["destroy", "killed"]);
    host.ok(&["destroy", "again"]);
    host.until("everything is gone", || host.traces() == before);
}

#[test]
fn a_paused_guest_stays_paused_and_held_requests_stay_held_under_the_next_dom0() {
    let mut host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    host.ok(&["pause", "web1"]);
    host.kill_service();
    host.start_service();
    host.until("it is taken over", || is(&host, "web1", "paused"));
    host.ok(&["unpause", "web1"]);
    let mut console = Console::attach(&host, "web1");
    console.send("info");
    console.wait("mini: ok info");
}

#[test]
fn a_service_that_is_terminated_leaves_its_domains_and_a_console_stays_attached() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("web1", SHELL, NIC)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    host.leave_service();
    console.send("info");
    console.wait("mini: ok info");
    host.start_service();
    host.until("it is taken over", || is(&host, "web1", "running"));
    console.send("info");
    console.wait("mini: ok info");
    host.stop_service();
    assert_eq!(host.traces(), before);
}
