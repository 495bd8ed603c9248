//! NICs of each kind, with the mini guest in the real processes and the network in a namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::process::{Child, Command, Stdio};

use common::{Console, Host};

/// A guest that has its echoes answered by 10.1.0.1.
const PING: &str =
    "console=ttyS0 mini.test=net-ping mini.ip=10.1.0.2 mini.peer=10.1.0.1 mini.rounds=20 mini.end=poweroff";

/// The same guest, which does so when it is told to.
const SHELL: &str =
    "console=ttyS0 mini.test=shell mini.ip=10.1.0.2 mini.peer=10.1.0.1 mini.rounds=20 mini.end=poweroff";

/// A process of the test's, ended with it.
struct Aid(Child);

impl Drop for Aid {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn aid(program: &str, args: &[&str]) -> Aid {
    // One that reads its standard input takes an end of it as a wish to end.
    let child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    Aid(child.unwrap_or_else(|error| panic!("{program}: {error}")))
}

/// Runs the guest to its end; it has checked its network itself.
fn runs_well(host: &Host, name: &str, cmdline: &str, nets: &str) {
    let before = host.traces();
    let file = host.guest(name, cmdline, &format!(r#", "vcpus": 2, "nets": [ {nets} ]"#));
    host.ok(&["check", &file]);
    host.ok(&["create", &file]);
    let mut console = Console::attach(host, name);
    console.wait("mini: ok net-ping");
    host.until("the guest switches itself off", || host.domain(name).is_none());
    assert_eq!(host.traces(), before);
}

#[test]
fn a_nic_is_on_a_bridge_a_tap_with_one_queue_or_many_or_a_macvtap() {
    let host = Host::with_service(true);
    host.touch_run_dir();
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "br0"]);
    runs_well(&host, "bridged", PING, r#"{ "id": "eth0", "bridge": "br0" }"#);

    for (name, more) in [("tap1", &[][..]), ("tapm", &["multi_queue"])] {
        host.ip(&[&["tuntap", "add", name, "mode", "tap"][..], more].concat());
        host.ip(&["link", "set", name, "up", "master", "br0"]);
        runs_well(&host, name, PING, &format!(r#"{{ "id": "eth0", "tap": "{name}" }}"#));
    }

    // Two ends of a cable: the guest is on one, the host on the other.
    host.ip(&["addr", "flush", "dev", "br0"]);
    host.ip(&["link", "add", "near", "type", "veth", "peer", "name", "far"]);
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "far"]);
    host.ip(&["link", "set", "far", "up"]);
    host.ip(&["link", "set", "near", "up"]);
    runs_well(&host, "macvtap", PING, r#"{ "id": "eth0", "macvtap": "near", "queues": 1 }"#);
    let file = host.guest("none", PING, r#", "nets": [ { "id": "eth0", "macvtap": "nothere" } ]"#);
    assert!(host.refused(&["check", &file]).contains("nets[0].macvtap: \"nothere\" does not exist"));
}

#[test]
fn a_nic_of_a_foreign_backend_gets_frames_through_and_is_connected_to_again() {
    let host = Host::with_service(true);
    host.touch_run_dir();
    let socket = host.path("pmd.sock").display().to_string();
    // A tap beside the guest's port, and testpmd forwards between the two.
    let testpmd = || {
        let _ = std::fs::remove_file(&socket);
        let device = format!("net_vhost0,iface={socket},queues=1");
        let pmd = aid(
            "dpdk-testpmd",
            &[
                "-l",
                "0-1",
                "--no-huge",
                "-m",
                "256",
                "--no-pci",
                "--log-level=lib.vhost.*:error",
                "--file-prefix",
                "domus-test",
                "--vdev",
                &device,
                "--vdev",
                "net_tap0,iface=pmd0",
                "--",
                "--forward-mode=io",
                "--auto-start",
                "--total-num-mbufs=4096",
            ],
        );
        host.until("testpmd listens", || std::path::Path::new(&socket).exists());
        host.until("testpmd has its tap", || host.ip(&["-o", "link", "show"]).contains("pmd0"));
        host.ip(&["addr", "add", "10.1.0.1/24", "dev", "pmd0"]);
        host.ip(&["link", "set", "pmd0", "up"]);
        pmd
    };
    let first = testpmd();
    let nic = format!(r#", "nets": [ {{ "id": "eth0", "vhost_user_socket": "{socket}" }} ]"#);
    let file = host.guest("web1", SHELL, &nic);
    host.ok(&["check", &file]);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    drop(first);
    host.until("the loss is seen", || host.ok(&["why", "web1"]).contains("the backend of eth0"));
    let _second = testpmd();
    host.until("it is connected to again", || host.domain("web1").unwrap()["restarts"] == 1);
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    host.ok(&["destroy", "web1"]);
}
