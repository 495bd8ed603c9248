//! Commands over several domains, and what they say of domains and of the host.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::time::{Duration, Instant};

use common::Host;
use serde_json::Value;

const SHELL: &str = "console=ttyS0 mini.test=shell";

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

#[test]
fn a_command_reaches_the_domains_that_are_named_by_pattern_and_fails_for_each_apart() {
    let host = Host::with_service(true);
    let before = host.traces();
    for name in ["web1", "web2", "db"] {
        host.ok(&["create", &host.guest(name, SHELL, "")]);
    }
    let flags = |name: &str| host.domain(name).unwrap()["flags"].as_str().unwrap()[2..3].to_owned();
    // A dry run says what it would do, and does nothing.
    assert_eq!(host.ok(&["pause", "-n", "web*"]), "web1: would be paused\nweb2: would be paused\n");
    assert_eq!(json(&host.ok(&["destroy", "--all", "--dry-run", "--json"])).as_array().unwrap().len(), 3);
    assert_eq!(flags("web1"), "-");
    host.ok(&["pause", "web*"]);
    assert_eq!(["web1", "web2", "db"].map(flags), ["p", "p", "-"]);
    // One that fails keeps nobody from its turn.
    let out = host.domus(&["unpause", "nobody", "web1", "no-one", "web2"]);
    let text = String::from_utf8(out.stderr).unwrap();
    assert_eq!((out.status.code(), text.lines().count()), (Some(1), 2), "{text}");
    assert!(text.contains("domus: there is no domain \"nobody\"") && text.contains("\"no-one\""), "{text}");
    assert_eq!(["web1", "web2", "db"].map(flags), ["-", "-", "-"]);
    let done = host.domus(&["pause", "nobody", "db", "--json"]);
    let list = json(&String::from_utf8(done.stdout).unwrap());
    assert_eq!((list[0]["name"].as_str(), list[1]["error"].clone()), (Some("nobody"), Value::Null));
    assert!(list[0]["error"].as_str().unwrap().contains("no domain"));
    assert!(host.refused(&["pause", "mail*"]).contains("\"mail*\""));
    assert_eq!(host.domus(&["pause"]).status.code(), Some(2));
    assert_eq!(host.domus(&["pause", "--all", "db"]).status.code(), Some(2));
    assert_eq!(host.ok(&["list", "web?"]).lines().count(), 3);
    host.ok(&["destroy", "--all"]);
    assert_eq!(host.list().len(), 1);
    host.ok(&["destroy", "--all"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_guest_that_does_not_switch_itself_off_in_time_is_told_and_destroyed_only_if_that_is_wanted() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("deaf", SHELL, "")]);
    let began = Instant::now();
    let line = host.refused(&["shutdown", "deaf", "--wait", "--timeout", "1"]);
    assert!(line.contains("deaf: has not switched itself off in 1 s") && line.contains("domus destroy deaf"));
    assert!(began.elapsed() >= Duration::from_secs(1));
    assert!(host.domain("deaf").is_some());
    host.ok(&["shutdown", "-a", "-w", "-F", "--timeout", "1"]);
    assert!(host.domain("deaf").is_none());
    assert_eq!(host.domus(&["shutdown", "-F", "deaf"]).status.code(), Some(2));
}

#[test]
fn domains_are_listed_by_uuid_id_and_name_and_a_dry_run_creates_none() {
    let host = Host::with_service(true);
    let uuid = "7d3a4a6e-5a55-4d52-8a7a-2f8f0c1f6b11";
    let file = host.guest("web1", SHELL, &format!(r#", "uuid": "{uuid}""#));
    host.ok(&["create", "-n", &file]);
    assert_eq!(host.ok(&["vm-list"]).lines().count(), 1);
    host.ok(&["create", &file]);
    let id = host.domain("web1").unwrap()["id"].as_u64().unwrap().to_string();
    let list = host.ok(&["vm-list"]);
    let words: Vec<&str> = list.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(words, [uuid, &id, "web1"]);
    assert_eq!(json(&host.ok(&["vm-list", "--json"]))[0]["uuid"], uuid);
    assert_eq!(host.ok(&["domid", "web1"]).trim(), id);
    assert_eq!(host.ok(&["domname", &id]).trim(), "web1");
    assert_eq!(host.ok(&["domname", "0"]).trim(), "Domain-0");
    assert!(host.refused(&["domid", &id]).contains("is an ID already"));
    assert!(host.refused(&["domname", "4711"]).contains("no domain \"4711\""));
    assert!(host.ok(&["list", "-v"]).contains(uuid));
    assert_eq!(json(&host.ok(&["list", "--long", "web1"]))[0]["uuid"], uuid);
    host.ok(&["destroy", "web1"]);
}

#[test]
fn the_host_is_described_with_its_nodes_if_that_is_asked() {
    let host = Host::with_service(false);
    let info = json(&host.ok(&["info", "--json"]));
    assert!(info["total_memory"].as_u64().unwrap() > info["free_memory"].as_u64().unwrap());
    assert_eq!((info["domains"].as_u64(), info.get("numa_info")), (Some(0), None));
    let info = json(&host.ok(&["info", "-n", "--json"]));
    assert!(!info["cpu_topology"].as_array().unwrap().is_empty());
    let text = host.ok(&["info", "-n"]);
    assert!(text.contains("nr_cpus                : ") && text.contains("numa_info"), "{text}");
}

/// Runs a command of which nobody reads what it prints, not even its errors; returns its exit status.
fn unread(host: &Host, args: &[&str]) -> Option<i32> {
    let closed = || {
        let (_, end) = std::io::pipe().unwrap();
        end
    };
    let mut child = host.command(args).stdout(closed()).stderr(closed()).spawn().unwrap();
    let begun = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        if begun.elapsed() > Duration::from_secs(10) {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!("domus {args:?} goes on and nobody reads it");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_reader_that_has_gone_ends_what_is_only_printed_and_no_command_panics() {
    let host = Host::with_service(true);
    let file = host.guest("web1", SHELL, "");
    host.ok(&["create", &file]);
    let other = host.guest("web2", SHELL, "");
    host.write("old.cfg", "name = 'old'\nkernel = 'vmlinuz'\nmemory = 64\nvnc = 1\n");
    host.write("bad.json", "{");
    for args in [
        &["completions", "bash"][..],
        &["completions", "zsh"],
        &["completions", "fish"],
        &["list"],
        &["list", "--json", "--verbose"],
        &["vm-list"],
        &["info"],
        &["why", "web1"],
        &["check", &other],
        &["import", "old.cfg"],
        &["top", "--batch", "--delay", "1"],
        &["events"],
        &["events", "--since-start", "--json"],
        &["logs", "web1", "--follow"],
        &["console", "web1"],
        &["block-list", "web1"],
        &["network-list"],
        &["vcpu-list", "web1"],
        &["pause", "web1", "--json"],
        &["unpause", "web1"],
        &["disk", "create", "new.img", "1M", "--json"],
        &["disk", "info", "new.img"],
        &["destroy", "--all", "--json"],
        &["--help"],
        &["disk", "--help"],
        &["--version"],
    ] {
        assert_eq!(unread(&host, args), Some(0), "{args:?}");
    }
    for (args, status) in [
        (&["check", "bad.json"][..], 1),
        (&["import", "no.cfg"], 1),
        (&["run", "bad.json"], 1),
        (&["console", "web9"], 1),
        (&["destroy", "web9"], 1),
        (&["disk", "info", "no.img"], 1),
        (&["frob"], 2),
        (&["list", "--tall"], 2),
    ] {
        assert_eq!(unread(&host, args), Some(status), "{args:?}");
    }
    // What was to be done is done.
    assert!(host.domain("web1").is_none() && host.path("new.img").exists());
}

#[test]
fn a_name_that_is_taken_is_refused_at_once_and_whoever_has_it_stays() {
    let host = Host::with_service(true);
    let file = host.guest("web1", SHELL, "");
    host.ok(&["create", &file]);
    let begun = Instant::now();
    let refused = host.refused(&["run", &file]);
    assert!(refused.contains("name: a domain named \"web1\" runs already"), "{refused}");
    assert!(begun.elapsed() < Duration::from_secs(2), "after {:?}", begun.elapsed());
    assert_eq!(host.domain("web1").unwrap()["state"], "running");
}
