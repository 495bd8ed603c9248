//! dom0 as a service manager's: a socket that is handed over, signs of life, another version in its place, guests
//! that start and stop with the host.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::fs;
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use common::{Host, programs};

/// A guest that switches itself off when its power button is pressed.
const SHELL: &str = "console=ttyS0 mini.test=shell mini.buttons=0x603 mini.end=poweroff";

/// Ended with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_socket_that_is_handed_over_is_served_and_stays_when_dom0_ends() {
    let host = Host::new(false);
    let run = host.run_dir();
    fs::create_dir(&run).unwrap();
    let socket = run.join("dom0.sock");
    let activate = |host: &Host| {
        let mut command = Command::new("systemd-socket-activate");
        command.arg("--listen").arg(&socket).arg(programs().join("dom0")).arg("--run-dir").arg(&run);
        let child = Ended(command.arg("--config-dir").arg(host.path("etc")).spawn().unwrap());
        host.until("somebody listens", || socket.exists());
        child
    };
    let service = activate(&host);
    // The first call starts it, and is answered.
    assert!(host.ok(&["list"]).contains("Domain-0"));
    drop(service);
    assert!(socket.exists());
    assert!(UnixStream::connect(&socket).is_err(), "nobody listens any more");
}

#[test]
fn the_service_manager_is_told_when_dom0_serves_and_again_and_again_that_it_does() {
    let host = Host::new(false);
    let path = host.path("notify");
    let told = UnixDatagram::bind(&path).unwrap();
    told.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut command = Command::new(programs().join("dom0"));
    command.arg("--run-dir").arg(host.run_dir()).arg("--config-dir").arg(host.path("etc"));
    let _service = Ended(command.env("NOTIFY_SOCKET", &path).env("WATCHDOG_USEC", "300000").spawn().unwrap());
    let next = || {
        let mut buffer = [0; 64];
        let length = told.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    };
    assert_eq!(next(), "READY=1");
    let since = Instant::now();
    for _ in 0..4 {
        assert_eq!(next(), "WATCHDOG=1");
    }
    // A third of the time it has: 100 ms.
    assert!(since.elapsed() >= Duration::from_millis(200), "{:?}", since.elapsed());
}

#[test]
fn an_upgrade_of_dom0_puts_the_installed_program_in_its_place_and_guests_do_not_notice() {
    let mut host = Host::with_service(true);
    let file = host.guest("web1", SHELL, "");
    host.ok(&["create", &file]);
    let was = host.domain("web1").unwrap();
    let told: serde_json::Value = serde_json::from_str(&host.ok(&["dom0", "upgrade", "--json"])).unwrap();
    // No service manager is there to start another one: the process becomes it.
    assert_eq!(told["pid"], u64::from(host.service().id()));
    assert_eq!(told["before"]["pid"], told["pid"]);
    host.until("it is taken over", || host.domain("web1").is_some_and(|domain| domain["state"] == "running"));
    assert_eq!(host.domain("web1").unwrap()["runner_pid"], was["runner_pid"]);
    host.ok(&["shutdown", "web1", "--wait"]);
}

#[test]
fn a_guest_that_hangs_while_it_starts_does_not_hold_up_those_behind_it() {
    let mut host = Host::new(true);
    let domains = host.path("etc/domains");
    fs::create_dir_all(&domains).unwrap();
    let nic = r#", "nets": [ { "id": "n", "bridge": "br0" } ], "autostart": { "order": 1 }"#;
    for (name, more) in [("late", r#", "autostart": true"#), ("early", nic)] {
        let file = host.guest(name, SHELL, more);
        fs::copy(host.path(&file), domains.join(file)).unwrap();
    }
    fs::copy(host.path("mini.elf"), domains.join("mini.elf")).unwrap();
    let libexec = host.programs_but("domus-net", "#!/bin/sh\nexec sleep 1000\n");
    host.start_service_with(&["--libexec-dir", &libexec]);
    let state = |name: &str| Some(host.domain(name)?["state"].as_str()?.to_owned());
    host.until("the one behind it runs", || state("late").as_deref() == Some("running"));
    assert_eq!(state("early").as_deref(), Some("building"));
    host.ok(&["destroy", "early"]);
}

#[test]
fn guests_whose_turn_has_not_come_are_started_by_the_next_dom0_and_none_twice() {
    let mut host = Host::new(true);
    let domains = host.path("etc/domains");
    fs::create_dir_all(&domains).unwrap();
    for order in 1..=3 {
        let more = format!(r#", "autostart": {{ "order": {order}, "delay": 2 }}"#);
        let file = host.guest(&format!("g{order}"), SHELL, &more);
        fs::copy(host.path(&file), domains.join(file)).unwrap();
    }
    fs::copy(host.path("mini.elf"), domains.join("mini.elf")).unwrap();
    host.start_service();
    host.until("the first one runs", || host.domain("g1").is_some_and(|it| it["state"] == "running"));
    host.ok(&["destroy", "g1"]);
    host.kill_service();
    host.start_service();
    host.until("the others run", || ["g2", "g3"].iter().all(|name| host.domain(name).is_some()));
    host.until("that is all", || host.run_dir().join("autostarted").exists());
    assert!(host.domain("g1").is_none(), "somebody has destroyed it");
}

#[test]
fn guests_start_with_the_host_in_order_and_once_and_stop_with_it() {
    let mut host = Host::new(true);
    let domains = host.path("etc/domains");
    fs::create_dir_all(&domains).unwrap();
    for (name, autostart) in [("late", "true"), ("early", r#"{ "order": 1, "delay": 1 }"#)] {
        let file = host.guest(name, SHELL, &format!(r#", "autostart": {autostart}"#));
        fs::copy(host.path(&file), domains.join(format!("{name}.json"))).unwrap();
    }
    // Paths start at the file.
    fs::copy(host.path("mini.elf"), domains.join("mini.elf")).unwrap();
    fs::write(domains.join("wrong.json"), "{").unwrap();
    host.start_service();
    host.until("both run", || ["early", "late"].iter().all(|name| host.domain(name).is_some()));
    let id = |name: &str| host.domain(name).unwrap()["id"].as_u64().unwrap();
    assert!(id("early") < id("late"));
    host.until("both run", || host.domain("late").is_some_and(|domain| domain["state"] == "running"));
    let told: serde_json::Value =
        serde_json::from_str(&host.ok(&["guests-stop", "--grace", "20", "--json"])).unwrap();
    // Each in its turn, the last one first.
    assert_eq!(told["shut_down"], serde_json::json!(["late", "early"]), "{told}");
    assert!(host.refused(&["guests-stop", "--action", "save"]).contains("ON_SHUTDOWN=shutdown"));
    host.kill_service();
    host.start_service();
    std::thread::sleep(Duration::from_millis(500));
    assert!(host.domain("early").is_none() && host.domain("late").is_none());
}
