//! Another name for a running domain, with the mini guest in the real processes.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use common::{Console, Host, signal};
use nix::sys::signal::Signal;

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

#[test]
fn a_renamed_domain_is_driven_repaired_taken_over_and_started_again_under_its_new_name() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    let devices = format!(r#", "disks": [ {} ], "on_poweroff": "restart""#, host.disk("root", 16, ""));
    let file = host.guest("web1", SHELL, &devices);
    host.ok(&["create", &file]);
    let other = host.guest("other", SHELL, "");
    host.ok(&["create", &other]);
    let was = host.domain("web1").unwrap();
    for (to, part) in
        [("other", "\"other\" is taken"), ("7", "taken for the host or for a domain's ID"), ("a/b", "a/b")]
    {
        let line = host.refused(&["rename", "web1", to]);
        assert!(line.contains(part), "{line}");
    }
    host.ok(&["rename", "web1", "web2"]);
    assert!(host.domain("web1").is_none());
    let now = host.domain("web2").unwrap();
    assert_eq!((&now["id"], &now["runner_pid"]), (&was["id"], &was["runner_pid"]));
    // Its processes have the old name still.
    let line = host.refused(&["create", &file]);
    assert!(line.contains("web1.json: name: ") && line.contains("\"web2\""), "{line}");
    let mut console = Console::attach(&host, "web2");
    console.wait("mini: ready");
    let block = host.block_pid("web2", 0);
    signal(block as u32, Signal::SIGKILL);
    let block = host.block_pid("web2", block);
    signal(host.pid_of("web1", "console.sock").unwrap(), Signal::SIGKILL);
    host.until("both are replaced", || host.domain("web2").unwrap()["restarts"] == 2);
    host.kill_service();
    host.start_service();
    host.until("it is taken over", || host.domain("web2").is_some_and(|d| d["state"] == "running"));
    assert_eq!(host.block_pid("web2", 0), block);
    assert!(host.refused(&["create", &file]).contains("\"web2\""));
    let mut console = Console::attach(&host, "web2");
    console.send("quit");
    host.until("it is back", || {
        host.domain("web2").is_some_and(|d| d["id"].as_u64() > was["id"].as_u64() && d["state"] == "running")
    });
    // The old name is free now, but for the disk.
    let plain = host.guest("web1", SHELL, "");
    host.ok(&["create", &plain]);
    for name in ["web1", "web2", "other"] {
        host.ok(&["destroy", name]);
    }
    assert_eq!(host.traces(), before);
}
