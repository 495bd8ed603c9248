//! Processes of a domain that do not do what they should: they hold nobody up.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::time::{Duration, Instant};

use common::Host;
use nix::sys::signal::Signal;

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

#[test]
fn a_runner_that_does_not_answer_is_destroyed_at_once_and_does_not_keep_the_service() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    for name in ["a", "b"] {
        host.ok(&["create", &host.guest(name, SHELL, "")]);
        let runner = host.domain(name).unwrap()["runner_pid"].as_u64().unwrap();
        common::signal(u32::try_from(runner).unwrap(), Signal::SIGSTOP);
    }
    let mut pauses = ["a", "a", "b"].map(|name| host.command(&["pause", name]).spawn().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    host.ok(&["destroy", "a"]);
    host.stop_service();
    assert!(asked.elapsed() < Duration::from_secs(15), "it took {:?}", asked.elapsed());
    for pause in &mut pauses {
        assert!(!pause.wait().unwrap().success());
    }
    assert_eq!(host.traces(), before);
}
