//! What an operator does to a running domain's machine, with the mini guest in the real processes.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use common::{Console, Host};

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

#[test]
fn a_sysrq_key_reaches_the_guest_as_a_break_and_the_key() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    assert_eq!(host.ok(&["sysrq", "web1", "h"]), "");
    assert_eq!(console.wait("mini: break"), "mini: break Some(0) key Some('h')");
    // The line goes on as if nothing had been.
    console.send("info");
    console.wait("mini: ok info");
    let line = host.refused(&["sysrq", "web1", "help"]);
    assert!(line.contains("\"help\"") && line.contains("one letter"), "{line}");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn an_nmi_reaches_the_vcpu_that_is_named() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, r#", "vcpus": 2"#)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    let line = host.refused(&["trigger", "web1", "nmi", "2"]);
    assert!(line.contains("no vCPU 2") && line.contains("0 to 1"), "{line}");
    let line = host.refused(&["trigger", "web1", "reset", "0"]);
    assert!(line.contains("leave the vCPU out"), "{line}");
    host.ok(&["trigger", "web1", "nmi", "0"]);
    // The mini guest expects none: it is a fault.
    console.wait("mini: fault vector=2");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_reset_from_outside_is_the_guests_own_and_buttons_are_the_machines() {
    let host = Host::with_service(true);
    let before = host.traces();
    // The register of buttons: see the runner's `power`.
    host.ok(&["create", &host.guest("web1", &format!("{SHELL} mini.buttons=0x603"), "")]);
    let first = host.domain("web1").unwrap()["id"].as_u64().unwrap();
    host.ok(&["trigger", "web1", "reset"]);
    host.until("it has come back", || {
        host.domain("web1").is_some_and(|d| d["id"].as_u64().unwrap() > first && d["state"] == "running")
    });
    // A guest that does not care for it goes on.
    host.ok(&["trigger", "web1", "sleep"]);
    assert_eq!(host.domain("web1").unwrap()["state"], "running");
    host.ok(&["trigger", "web1", "power"]);
    host.until("it has switched itself off", || host.domain("web1").is_none());
    assert_eq!(host.traces(), before);
    // Also while it is paused; what on_reboot says is done.
    host.ok(&["create", &host.guest("still", SHELL, r#", "on_reboot": "preserve""#)]);
    host.ok(&["pause", "still"]);
    host.ok(&["trigger", "still", "reset"]);
    host.until("it is preserved", || host.domain("still").is_some_and(|d| d["flags"] == "---s--"));
    let line = host.refused(&["trigger", "still", "nmi"]);
    assert!(line.contains("cannot give an NMI") && line.contains("preserved"), "{line}");
    host.ok(&["destroy", "still"]);
    assert_eq!(host.traces(), before);
}
