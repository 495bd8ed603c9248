//! Tests of events and log lines about domains.

#![allow(clippy::unwrap_used, reason = "these are tests")]

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use common::Host;
use nix::sys::signal::Signal;
use serde_json::Value;

const SHELL: &str = "console=ttyS0 mini.test=shell";

/// A command that goes on until it is killed, and its lines.
struct Follower {
    child: Child,
    lines: Receiver<String>,
}

impl Follower {
    fn start(host: &Host, args: &[&str]) -> Self {
        let mut child = host.command(args).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stdout.lines().map_while(Result::ok).take_while(|line| sender.send(line.clone()).is_ok()).count()
        });
        Self { child, lines }
    }

    #[track_caller]
    fn next(&self) -> String {
        self.lines.recv_timeout(Duration::from_secs(60)).unwrap()
    }

    #[track_caller]
    fn event(&self) -> Value {
        serde_json::from_str(&self.next()).unwrap()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_domain_s_life_is_told_in_order_to_all_who_follow_and_later_to_who_asks_since_the_start() {
    let mut host = Host::with_service(true);
    let dom0 = host.service().id();
    let files = || std::fs::read_dir(format!("/proc/{dom0}/fd")).unwrap().count();
    let before = files();
    let live = Follower::start(&host, &["events", "--json", "--since-start"]);
    assert_eq!(live.event()["kind"], "dom0-started");
    let file = host.guest("web1", SHELL, &format!(r#", "disks": [ {} ]"#, host.disk("root", 1, "")));
    host.ok(&["create", &file]);
    host.ok(&["pause", "web1"]);
    host.ok(&["unpause", "web1"]);
    let old = host.block_pid("web1", 0);
    common::signal(old as u32, Signal::SIGKILL);
    host.block_pid("web1", old);
    host.ok(&["destroy", "web1"]);
    let wanted =
        ["building", "running", "paused", "running", "backend-lost", "backend-back", "dying", "gone"];
    for (n, kind) in wanted.into_iter().enumerate() {
        let event = live.event();
        assert_eq!((&event["kind"], &event["domain"]), (&kind.into(), &"web1".into()), "{event}");
        assert_eq!((event["sequence"].as_u64(), event["missed"].as_u64()), (Some(n as u64 + 2), Some(0)));
        assert!(event["id"].as_u64().unwrap() > 0);
        if kind == "backend-lost" {
            assert!(event["detail"].as_str().unwrap().contains("SIGKILL"), "{event}");
        }
    }
    // Later, for people, and of some domains alone.
    let later = Follower::start(&host, &["events", "--since-start", "web*"]);
    let line = later.next();
    assert!(line.contains("Z web1 (") && line.ends_with(" building"), "{line}");
    drop(Follower::start(&host, &["events", "--since-start", "nobody"]));
    assert_eq!(host.domus(&["events", "["]).status.code(), Some(1));
    // Whoever hangs up costs nothing any more, though nothing happens.
    drop((live, later));
    host.until("hung up", || files() <= before);
}

#[test]
fn what_is_said_about_a_domain_is_kept_when_it_is_gone_and_can_be_followed() {
    let host = Host::with_service(true);
    let file = host.guest("web1", SHELL, &format!(r#", "disks": [ {} ]"#, host.disk("root", 1, "")));
    assert!(host.refused(&["logs", "web1"]).contains("\"web1\""));
    assert!(host.refused(&["logs", "../web1"]).contains("is no domain's name"));
    host.ok(&["create", &file]);
    let follower = Follower::start(&host, &["logs", "-f", "web1"]);
    let old = host.block_pid("web1", 0);
    common::signal(old as u32, Signal::SIGKILL);
    host.block_pid("web1", old);
    let line = loop {
        let line = follower.next();
        if line.contains("is back") {
            break line;
        }
    };
    assert!(line.contains("SIGKILL"), "{line}");
    host.ok(&["destroy", "web1"]);
    assert!(host.ok(&["logs", "web1"]).contains("is back"));
    let first: Value =
        serde_json::from_str(host.ok(&["logs", "web1", "--json"]).lines().next().unwrap()).unwrap();
    assert!(first["time"].as_str().unwrap().ends_with('Z') && first["text"].is_string());
}
