//! The console on a terminal: raw while attached, Ctrl-] leaves, and the terminal is as it was.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::process::Command;

use common::Host;
use nix::pty::{OpenptyResult, openpty};
use nix::sys::termios::{LocalFlags, tcgetattr};

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

/// A terminal and what is shown on it.
struct Terminal {
    master: File,
    slave: OwnedFd,
    shown: String,
}

impl Terminal {
    fn new() -> Self {
        let OpenptyResult { master, slave } = openpty(None, None).unwrap();
        Self { master: master.into(), slave, shown: String::new() }
    }

    fn attach(&self, command: &mut Command) -> std::process::Child {
        let end = || self.slave.try_clone().unwrap();
        command.stdin(end()).stdout(end()).stderr(end()).spawn().unwrap()
    }

    /// Reads until `text` is shown. The harness ends a test that waits for ever.
    fn wait_for(&mut self, text: &str) {
        while !self.shown.contains(text) {
            let mut buffer = [0; 1024];
            let count = self.master.read(&mut buffer).unwrap();
            self.shown += &String::from_utf8_lossy(&buffer[..count]);
        }
    }

    /// Reads what is shown by now.
    fn read_what_is_there(&mut self) {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        while poll(&mut [PollFd::new(self.master.as_fd(), PollFlags::POLLIN)], PollTimeout::ZERO).unwrap() > 0
        {
            let mut buffer = [0; 1024];
            let count = self.master.read(&mut buffer).unwrap();
            self.shown += &String::from_utf8_lossy(&buffer[..count]);
        }
    }

    fn is_raw(&self) -> bool {
        !tcgetattr(&self.slave).unwrap().local_flags.intersects(LocalFlags::ICANON | LocalFlags::ISIG)
    }
}

#[test]
fn ctrl_bracket_leaves_the_console_and_the_domain_goes_on() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let mut terminal = Terminal::new();
    let mut console = terminal.attach(&mut host.command(&["console", "web1"]));
    terminal.wait_for("mini: ready");
    assert!(terminal.is_raw());
    // Ctrl-C is the guest's, not the command's.
    terminal.master.write_all(b"\x03\ninfo\n").unwrap();
    terminal.wait_for("mini: ok info");
    assert!(console.try_wait().unwrap().is_none());
    terminal.master.write_all(b"\x1d").unwrap();
    assert!(console.wait().unwrap().success());
    assert!(!terminal.is_raw());
    assert_eq!(host.domain("web1").unwrap()["state"], "running");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_second_user_reads_until_he_takes_over_and_a_reader_never_writes() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let (mut first, mut second, mut third) = (Terminal::new(), Terminal::new(), Terminal::new());
    let mut one = first.attach(&mut host.command(&["console", "web1"]));
    first.wait_for("mini: ready");
    let mut two = second.attach(&mut host.command(&["console", "web1"]));
    second.wait_for("somebody else writes to this console");
    let mut three = third.attach(&mut host.command(&["console", "--take", "web1"]));
    third.wait_for("mini: ready");
    first.wait_for("somebody else writes to this console now");
    third.master.write_all(b"info\n").unwrap();
    first.wait_for("mini: ok info");
    second.wait_for("mini: ok info");
    for (terminal, child) in [(&mut first, &mut one), (&mut second, &mut two), (&mut third, &mut three)] {
        terminal.master.write_all(b"\x1d").unwrap();
        assert!(child.wait().unwrap().success());
        assert!(!terminal.is_raw());
    }
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_console_goes_on_when_its_process_dies_and_when_dom0_does_and_is_copied_to_a_file() {
    let mut host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let mut terminal = Terminal::new();
    let mut console =
        terminal.attach(&mut host.command(&["console", "-t", "serial", "--log", "seen.log", "web1"]));
    terminal.wait_for("mini: ready");
    // Its process is another one.
    let old = host.pid_of("web1", "console.sock").unwrap();
    common::signal(old, nix::sys::signal::Signal::SIGKILL);
    host.until("another one serves", || host.pid_of("web1", "console.sock").is_some_and(|pid| pid != old));
    let typed = |terminal: &mut Terminal| {
        terminal.shown.clear();
        // What is typed at a console that is away is lost: a user types again.
        while !terminal.shown.contains("mini: ok info") {
            terminal.master.write_all(b"info\n").unwrap();
            let mut waited = 0;
            while waited < 20 && !terminal.shown.contains("mini: ok info") {
                std::thread::sleep(std::time::Duration::from_millis(100));
                terminal.read_what_is_there();
                waited += 1;
            }
        }
    };
    typed(&mut terminal);
    // dom0 dies, and then the console's process under the next one.
    host.kill_service();
    host.start_service();
    host.until("it is taken over", || host.domain("web1").is_some_and(|it| it["state"] == "running"));
    typed(&mut terminal);
    let old = host.pid_of("web1", "console.sock").unwrap();
    common::signal(old, nix::sys::signal::Signal::SIGKILL);
    typed(&mut terminal);
    assert!(console.try_wait().unwrap().is_none());
    terminal.master.write_all(b"\x1d").unwrap();
    assert!(console.wait().unwrap().success());
    let log = std::fs::read_to_string(host.path("seen.log")).unwrap();
    assert!(log.contains("mini: ready") && log.matches("mini: ok info").count() >= 3, "{log}");
    assert_eq!(host.domus(&["console", "-t", "pv", "web1"]).status.code(), Some(2));
    assert!(host.refused(&["console", "--log", "/nowhere/log", "web1"]).contains("/nowhere/log"));
    host.ok(&["destroy", "web1"]);
}

#[test]
fn leaving_a_domain_that_run_started_ends_it() {
    let host = Host::new(true);
    host.touch_run_dir();
    let before = host.traces();
    let file = host.guest("web1", SHELL, r#", "nets": [ { "id": "eth0", "bridge": "br0" } ]"#);
    let mut terminal = Terminal::new();
    let mut run = terminal.attach(&mut host.command(&["run", "--grace", "0", &file]));
    terminal.wait_for("mini: ready");
    terminal.master.write_all(b"\x1d").unwrap();
    assert!(run.wait().unwrap().success());
    terminal.wait_for("web1: shutting down");
    assert!(!terminal.is_raw());
    assert_eq!(host.traces(), before);
}
