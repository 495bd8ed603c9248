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
