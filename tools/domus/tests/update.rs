//! Another config for a running domain, with the mini guest in the real processes.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use common::{Console, Host};

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

#[test]
fn the_next_machine_is_made_from_the_config_that_was_given_last_also_by_the_next_dom0() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let first = host.domain("web1").unwrap();
    let bigger = host.guest("web1", SHELL, r#", "vcpus": 2, "on_poweroff": "restart", "cpus": "0""#);
    host.ok(&["config-update", "web1", &bigger]);
    assert_eq!(host.domain("web1").unwrap()["vcpus"], 1);
    host.kill_service();
    host.start_service();
    host.until("it is taken over", || host.domain("web1").is_some_and(|d| d["state"] == "running"));
    // What it says of this machine's end counts at once.
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    console.send("quit");
    host.until("it is back", || {
        host.domain("web1").is_some_and(|d| d["id"] != first["id"] && d["state"] == "running")
    });
    assert_eq!(host.domain("web1").unwrap()["vcpus"], 2);
    assert_eq!(host.ok(&["vcpu-list", "web1"]).lines().filter(|line| line.ends_with(" 0")).count(), 2);

    let text = |more: &str| {
        format!(r#"{{ "name": "web1", "memory": "32MiB", "boot": {{ "kernel": "mini.elf" }}{more} }}"#)
    };
    host.write("other.json", &text(r#", "uuid": "5c1d2e5e-0b4f-4d63-9c0a-1f2e3d4c5b6a""#));
    host.write("none.json", &text("").replace("mini.elf", "gone.elf"));
    host.write("cpus.json", &text(r#", "cpus": "1000""#));
    let name = host.guest("web2", SHELL, "");
    for (file, part) in [
        (name.as_str(), "web2.json: name: \"web2\" is not the name of the domain: \"web1\" would do"),
        ("other.json", "other.json: uuid: "),
        ("none.json", "none.json: boot.kernel: "),
        ("cpus.json", "cpus.json: cpus: there is no CPU 1000"),
    ] {
        let line = host.refused(&["config-update", "web1", file]);
        assert!(line.contains(part), "{line}");
    }
    host.ok(&["destroy", "web1"]);
    assert!(host.refused(&["config-update", "web1", &bigger]).contains("there is no domain"));
    assert_eq!(host.traces(), before);
}
