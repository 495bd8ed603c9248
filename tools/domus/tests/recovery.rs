//! Backends that are killed, missing or exchanged while a guest works: it sees a pause, and loses nothing.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{Console, Host, signal};
use nix::sys::signal::Signal;

/// A guest that verifies every request for so long.
fn endure(ms: u64) -> String {
    format!("console=ttyS0 mini.test=blk-endure mini.ms={ms} mini.end=poweroff")
}

/// The guest's own verdict, with how long it has stood still.
fn verdict(console: &mut Console) -> String {
    let value = console.wait("value blk-endure");
    console.wait("mini: ok blk-endure");
    println!("{value}");
    value
}

/// How often a backend is killed. Figures of the README come from these tests with DOMUS_KILLS=100, or 30 for NICs:
/// dom0 tells of so many stand-stills of one domain.
fn kills(usual: u64) -> u64 {
    std::env::var("DOMUS_KILLS").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

#[test]
fn a_disks_backend_killed_under_load_time_and_again_is_replaced_and_no_request_is_lost() {
    let kills = kills(12);
    let host = Host::with_service(true);
    let before = host.traces();
    let disks = format!(r#", "vcpus": 1, "disks": [ {} ]"#, host.disk("root", 64, r#", "queues": 4"#));
    let file = host.guest("web1", &endure(kills * 1200 + 1000), &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    let mut pid = 0;
    for _ in 0..kills {
        pid = host.block_pid("web1", pid);
        // One that has lived so long is taken for a good one.
        std::thread::sleep(Duration::from_millis(1050));
        signal(pid as u32, Signal::SIGKILL);
    }
    host.block_pid("web1", pid);
    assert_eq!(host.domain("web1").unwrap()["restarts"], kills);
    verdict(&mut console);
    host.until("the guest switches itself off", || host.domain("web1").is_none());
    host.until("everything is gone", || host.traces() == before);
}

#[test]
fn a_reset_ends_when_nothing_of_a_dead_backend_is_left_although_there_is_no_other_one() {
    let host = Host::with_own_programs();
    let program = host.path("libexec/domus-block");
    let disks = format!(r#", "disks": [ {} ]"#, host.disk("root", 64, ""));
    host.ok(&["create", &host.guest("web1", "console=ttyS0 mini.test=shell mini.end=poweroff", &disks)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    console.send("blk-id");
    console.wait("mini: ok blk-id");
    let pid = host.block_pid("web1", 0);
    fs::rename(&program, host.path("aside")).unwrap();
    signal(pid as u32, Signal::SIGKILL);
    // It begins with a reset, for which the guest waits 10 s, and then waits for its disk.
    console.send("blk-id");
    console.wait("mini: begin blk-id");
    host.until("the third attempt fails", || host.ok(&["why", "web1"]).contains("attempt 3 failed"));
    std::thread::sleep(Duration::from_secs(11));
    assert!(!console.has("10 s after a reset") && !console.has("mini: ok blk-id"));
    fs::rename(host.path("aside"), &program).unwrap();
    host.block_pid("web1", pid);
    console.wait("mini: ok blk-id");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_backend_that_cannot_be_started_is_waited_for_and_the_domain_says_why() {
    let host = Host::with_own_programs();
    let program = host.path("libexec/domus-block");
    let disks = format!(r#", "disks": [ {} ]"#, host.disk("root", 64, ""));
    let file = host.guest("web1", &endure(8000), &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    let pid = host.block_pid("web1", 0);
    assert_eq!(host.ok(&["why", "web1"]), "web1 is running, and nothing is amiss\n");
    fs::rename(&program, host.path("aside")).unwrap();
    signal(pid as u32, Signal::SIGKILL);
    host.until("the third attempt fails", || host.ok(&["why", "web1"]).contains("attempt 3 failed"));
    let why = host.ok(&["why", "web1"]);
    assert!(why.contains("domus-block: was killed by SIGKILL") && why.contains("next: "), "{why}");
    assert_eq!(host.disks("web1")[0]["state"], "waiting");
    assert!(host.refused(&["backend", "upgrade", "web1", "root"]).contains("being started"));
    assert!(host.refused(&["block-set", "web1", "root", "--iops", "5"]).contains("not served just now"));
    std::thread::sleep(Duration::from_secs(2));
    fs::rename(host.path("aside"), &program).unwrap();
    host.block_pid("web1", pid);
    verdict(&mut console);
}

#[test]
fn a_domain_is_paused_for_a_lost_backend_if_its_config_says_so() {
    let host = Host::with_own_programs();
    let program = host.path("libexec/domus-block");
    let policy = r#", "on_backend_loss": { "pause_after": 1 }"#;
    let disks = format!(r#", "disks": [ {} ]"#, host.disk("root", 64, policy));
    let file = host.guest("web1", &endure(4000), &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    let pid = host.block_pid("web1", 0);
    // One that is back at once pauses nobody.
    signal(pid as u32, Signal::SIGKILL);
    let pid = host.block_pid("web1", pid);
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(host.domain("web1").unwrap()["state"], "running");
    fs::rename(&program, host.path("aside")).unwrap();
    let killed = Instant::now();
    signal(pid as u32, Signal::SIGKILL);
    host.until("the domain is paused", || host.domain("web1").unwrap()["state"] == "paused");
    assert!(killed.elapsed() >= Duration::from_secs(1));
    fs::rename(host.path("aside"), &program).unwrap();
    host.block_pid("web1", pid);
    assert_eq!(host.domain("web1").unwrap()["state"], "paused", "an operator decides when it goes on");
    assert!(host.ok(&["why", "web1"]).contains("domus unpause web1"));
    host.ok(&["unpause", "web1"]);
    verdict(&mut console);
}

#[test]
fn requests_fail_after_the_time_that_the_config_says_and_an_upgrade_brings_the_disk_back() {
    let host = Host::with_own_programs();
    let program = host.path("libexec/domus-block");
    let policy = r#", "on_backend_loss": { "error_after": 1 }"#;
    let disks = format!(r#", "disks": [ {} ]"#, host.disk("root", 64, policy));
    let file = host.guest("web1", "console=ttyS0 mini.test=shell mini.end=poweroff", &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    console.send("blk-pattern");
    console.wait("mini: ok blk-pattern");
    let pid = host.block_pid("web1", 0);
    fs::rename(&program, host.path("aside")).unwrap();
    signal(pid as u32, Signal::SIGKILL);
    host.until("its time is over", || host.ok(&["why", "web1"]).contains("its requests fail now"));
    fs::rename(host.path("aside"), &program).unwrap();
    let pid = host.block_pid("web1", pid);
    console.send("blk-verify");
    console.wait("mini: fail blk-verify");
    host.ok(&["backend", "upgrade", "web1", "root"]);
    host.block_pid("web1", pid);
    assert!(host.ok(&["why", "web1"]).contains("nothing is amiss"));
    console.send("blk-verify");
    console.wait("mini: ok blk-verify");
}

#[test]
fn a_backend_is_exchanged_under_load_for_another_program_and_the_stand_still_is_told() {
    let host = Host::with_own_programs();
    let disks = format!(
        r#", "disks": [ {}, {} ]"#,
        host.disk("root", 64, r#", "queues": 2"#),
        host.disk("data", 64, "")
    );
    let file = host.guest("web1", &endure(5000), &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    let first = host.block_pid("web1", 0);
    let refused = host.refused(&["backend", "upgrade", "web1", "swap"]);
    assert!(refused.contains("\"swap\"") && refused.contains("block-list"), "{refused}");
    // A program that is none changes nothing.
    host.write("nonsense", "\0 no program");
    host.refused(&["backend", "upgrade", "web1", "root", "--exe", "nonsense"]);
    assert_eq!(host.block_pid("web1", 0), first);

    let newer = host.path("domus-block-2");
    fs::copy(host.path("libexec/domus-block"), &newer).unwrap();
    let args = ["backend", "upgrade", "web1", "data", "--exe", "domus-block-2", "--json"];
    let upgraded: serde_json::Value = serde_json::from_str(&host.ok(&args)).unwrap();
    println!("{upgraded}");
    assert!(upgraded["stalled_us"].as_u64().is_some_and(|us| us > 0), "{upgraded}");
    let second = host.block_pid("web1", first);
    assert_eq!(fs::read_link(format!("/proc/{second}/exe")).unwrap(), newer);
    // It is the program from now on.
    signal(second as u32, Signal::SIGKILL);
    let third = host.block_pid("web1", second);
    assert_eq!(fs::read_link(format!("/proc/{third}/exe")).unwrap(), newer);
    verdict(&mut console);
}

#[test]
fn a_nics_backend_killed_under_traffic_is_replaced_and_frames_come_again_without_a_kick() {
    let host = Host::with_service(true);
    host.ip(&["addr", "add", "10.77.0.1/24", "dev", "br0"]);
    let (mac, kills) = ("02:00:00:00:00:07", kills(3));
    let ms = 2500 * kills;
    let pings = format!(
        "console=ttyS0 mini.ip=10.77.0.2 mini.peer=10.77.0.1 mini.test=net-ping mini.ms={ms} mini.end=poweroff"
    );
    let nic = format!(r#", "nets": [ {{ "id": "eth0", "bridge": "br0", "mac": "{mac}" }} ]"#);
    let file = host.guest("web1", &pings, &nic);
    host.ok(&["create", &file]);
    // The guest does not answer when this host wants to know whether it is still there; and a bridge forgets its
    // neighbours when it gets its first port.
    host.ip(&["neigh", "replace", "10.77.0.2", "lladdr", mac, "dev", "br0", "nud", "permanent"]);
    let mut console = Console::attach(&host, "web1");
    let mut last = 0;
    for kill in 1..=kills {
        let mut pid = 0;
        host.until("a backend", || {
            pid = host.pid_of("web1", "net.sock").unwrap_or(0);
            pid != 0 && pid != last
        });
        // One that has lived so long is taken for a good one.
        std::thread::sleep(Duration::from_millis(1050));
        assert!(!console.has("value net-ping"), "it is over before the backend was killed");
        signal(pid, Signal::SIGKILL);
        host.until("it is replaced", || host.domain("web1").unwrap()["restarts"] == kill);
        last = pid;
    }
    println!("{}", console.wait("value net-ping"));
    console.wait("mini: ok net-ping");
}

#[test]
fn a_console_that_is_killed_is_there_again() {
    let host = Host::with_service(true);
    let file = host.guest("web1", "console=ttyS0 mini.test=shell mini.end=poweroff", "");
    host.ok(&["create", &file]);
    Console::attach(&host, "web1").wait("mini: ready");
    let pid = host.pid_of("web1", "console.sock").unwrap();
    signal(pid, Signal::SIGKILL);
    host.until("it is replaced", || host.domain("web1").unwrap()["restarts"] == 1);
    let mut console = Console::attach(&host, "web1");
    console.send("info");
    console.wait("mini: ok info");
}
