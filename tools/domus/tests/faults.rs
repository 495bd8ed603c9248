//! dom0 dies between any two steps of what it does: the next one finishes it or takes it back, and nothing is left.
//!
//! A dom0 with debug assertions (debug and lab builds) kills itself at the N-th step that outlives it
//! (`DOMUS_FAULT`). Each test goes through all N.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Console, Host, signal};
use nix::sys::signal::Signal;

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

/// More than any action here has.
const MAX_STEPS: u32 = 60;

/// Does `act` under a dom0 that dies at each of its steps in turn, until one does not die of it. `begun` is done
/// first, by a dom0 that lives. After each death the next dom0 is looked at by `check`, and told to destroy what is
/// there.
fn at_every_step(begin: impl Fn(&Host), act: &[&str], check: impl Fn(&Host, u32)) {
    let mut deaths = 0;
    for step in 1..MAX_STEPS {
        let mut host = Host::with_service(true);
        let before = host.traces();
        begin(&host);
        host.leave_service();
        let served = host.start_faulty_service(Some(step));
        if served {
            host.command(act).output().unwrap();
        }
        // Whatever follows from the act goes on in dom0's own time.
        std::thread::sleep(std::time::Duration::from_millis(100));
        let died = host.service().try_wait().unwrap().is_some();
        deaths += u32::from(died);
        host.kill_service();
        host.start_service();
        host.until("no domain is on its way", || {
            host.list()
                .iter()
                .all(|domain| !["building", "dying"].contains(&domain["state"].as_str().unwrap()))
        });
        check(&host, step);
        for domain in host.list().iter().filter(|domain| domain["id"] != 0) {
            host.ok(&["destroy", domain["name"].as_str().unwrap()]);
        }
        host.until("everything is gone", || host.traces() == before);
        if !died {
            println!("{deaths} steps of {act:?}");
            assert!(deaths > 0);
            return;
        }
    }
    panic!("{act:?} does not end");
}

fn devices(host: &Host) -> String {
    format!(
        r#", "disks": [ {} ], "nets": [ {{ "id": "eth0", "bridge": "br0" }}, {{ "id": "eth1", "switch": "lan" }} ]"#,
        host.disk("root", 16, "")
    )
}

fn create(host: &Host) {
    host.ok(&["create", &host.guest("web1", SHELL, &devices(host))]);
}

/// It runs, answers at its console and reads its disk.
fn works(host: &Host) {
    assert_eq!(host.domain("web1").unwrap()["state"], "running");
    let mut console = Console::attach(host, "web1");
    console.wait("mini: ready");
    console.send("blk-pattern");
    console.wait("mini: ok blk-pattern");
}

#[test]
fn a_create_is_done_or_not_done() {
    let begin = |host: &Host| _ = host.guest("web1", SHELL, &devices(host));
    at_every_step(begin, &["create", "web1.json"], |host, step| match host.domain("web1") {
        None => println!("step {step}: there is none"),
        Some(_) => works(host),
    });
}

#[test]
fn a_destroy_is_done_in_the_end_or_the_domain_works() {
    at_every_step(create, &["destroy", "web1"], |host, step| match host.domain("web1") {
        None => println!("step {step}: there is none"),
        Some(_) => works(host),
    });
}

#[test]
fn a_guest_that_is_reset_comes_back_whatever_becomes_of_dom0() {
    let begin = |host: &Host| {
        create(host);
        let mut console = Console::attach(host, "web1");
        console.wait("mini: ready");
        console.send("end reset");
        // The dom0 of then may deal with it, or the next one.
        console.wait("mini: end ");
    };
    at_every_step(begin, &["list"], |host, _| {
        host.until("it is back", || host.domain("web1").is_some_and(|domain| domain["state"] == "running"));
        works(host);
    });
}

#[test]
fn an_upgrade_leaves_a_domain_that_works() {
    for device in ["root", "eth0"] {
        at_every_step(create, &["backend", "upgrade", "web1", device], |host, _| {
            host.until("it is served", || host.ok(&["why", "web1"]).contains("nothing is amiss"));
            works(host);
        });
    }
}

#[test]
fn a_pause_and_an_unpause_leave_a_domain_that_can_go_on() {
    for act in ["pause", "unpause"] {
        at_every_step(create, &[act, "web1"], |host, _| {
            host.ok(&["unpause", "web1"]);
            works(host);
        });
    }
}

#[test]
fn a_backend_that_died_is_replaced_whatever_becomes_of_dom0() {
    let begin = |host: &Host| create(host);
    // The service that dies at a step finds a dead backend when it comes up.
    let kill = |host: &Host| signal(host.pid_of("web1", "block.sock").unwrap(), Signal::SIGKILL);
    at_every_step(
        |host| {
            begin(host);
            kill(host);
        },
        &["list"],
        |host, _| {
            host.until("it is served", || host.ok(&["why", "web1"]).contains("nothing is amiss"));
            works(host);
        },
    );
}

#[test]
fn no_process_is_left_that_nobody_had_written_down() {
    let host = Host::new(true);
    host.touch_run_dir();
    let dir = host.run_dir().join("domains/web1");
    std::fs::create_dir(&dir).unwrap();
    let orphan = |control: &Path| {
        Command::new(common::programs().join("domus-block")).arg("--control").arg(control).spawn().unwrap()
    };
    let mut child = orphan(&dir.join("block.sock"));
    let mut host = host;
    host.start_service();
    let how = child.wait().unwrap();
    assert_eq!(std::os::unix::process::ExitStatusExt::signal(&how), Some(9));
    assert!(!dir.exists());
}
