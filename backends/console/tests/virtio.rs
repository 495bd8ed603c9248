//! The program by itself, as a virtio-console device, with a driver and a frontend of our own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::Client;
use domus_driver::console::{Guest, MEMORY, offer};
use domus_driver::frontend::{F_EVENT_IDX, F_VERSION_1};
use domus_driver::process::Running;
use domus_driver::ring::WRITE;
use shared_abi::console::{Mode, ServerFrame};

struct Program {
    process: Running,
    console: PathBuf,
    _dir: tempfile::TempDir,
}

fn start() -> (Program, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let (path, console) = (dir.path().join("vhost-user.sock"), dir.path().join("console.sock"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_domus-console"));
    command.arg("--socket-path").arg(&path).arg("--console-socket").arg(&console);
    let mut process = Running::start("domus-console", &mut command).unwrap();
    let stream = process.connect(&path).unwrap();
    (Program { process, console, _dir: dir }, stream)
}

#[test]
fn a_guest_prints_through_its_ring_and_reads_what_is_typed() {
    for wanted in [F_VERSION_1 | F_EVENT_IDX, F_VERSION_1] {
        let (mut program, stream) = start();
        let mut guest = Guest::new(stream, wanted);
        guest.print(b"Linux version 6\n");
        let mut client = Client::attach(&program.console, Mode::Write);
        assert!(matches!(client.next(), Some(ServerFrame::Welcome { writer: true, .. })));
        assert_eq!(client.output(16), b"Linux version 6\n");
        client.input(b"root\n");
        assert_eq!(guest.typed(5), b"root\n");
        // More than the driver has room for waits, in order.
        let long: Vec<u8> = (0..3000_u32).map(|at| at as u8).collect();
        client.input(&long);
        assert_eq!(guest.typed(3000), long);
        for line in 0..200 {
            let line = format!("line {line:10}\n").into_bytes();
            guest.print(&line);
            assert_eq!(client.output(line.len()), line);
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.process.pid())).unwrap();
        for line in
            ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
        {
            assert!(status.contains(line), "{line} is not in {status}");
        }
        for task in std::fs::read_dir(format!("/proc/{}/task", program.process.pid())).unwrap() {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            assert!(
                status.contains("CapEff:\t0000000000000000") && status.contains("Seccomp:\t2"),
                "{status}"
            );
        }
        drop(guest);
        assert!(program.process.end().unwrap().success(), "the program ends with its frontend");
    }
}

#[test]
fn chains_of_wild_addresses_are_given_back_empty_and_the_console_goes_on() {
    let (program, stream) = start();
    let mut guest = Guest::new(stream, F_VERSION_1 | F_EVENT_IDX);
    let mut client = Client::attach(&program.console, Mode::Write);
    assert!(matches!(client.next(), Some(ServerFrame::Welcome { writer: true, .. })));
    for (addr, len) in [(MEMORY, 10), (MEMORY - 5, 10), (u64::MAX - 5, 10), (0, u32::MAX), (0x1000, 0)] {
        offer(&mut guest.tx, 1, addr, len, 0);
        assert_eq!(guest.tx.used().0, 1);
        offer(&mut guest.rx, 2, addr, len, WRITE);
        assert_eq!(guest.rx.used(), (2, 0), "{addr:#x} {len}");
    }
    guest.print(b"alive");
    let mut output = Vec::new();
    while !output.ends_with(b"alive") {
        match client.next().unwrap() {
            ServerFrame::Output(bytes) => output.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    client.input(b"yes");
    assert_eq!(guest.typed(3), b"yes");
    // A ring that makes no sense stands still; the other goes on, and nobody spins.
    guest.rx.set_available_index(1000);
    guest.rx.kick();
    guest.print(b"still");
    assert_eq!(client.output(5), b"still");
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", program.process.pid())).unwrap();
    let ticks = |stat: &str| stat.split(' ').skip(13).take(2).map(|n| n.parse::<u64>().unwrap()).sum::<u64>();
    let before = ticks(&stat());
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks(&stat()) - before <= 1);
    let _ = &guest.frontend;
}

#[test]
fn capabilities_are_printed_and_a_missing_console_socket_is_named() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_domus-console")).args(args).output().unwrap();
    let output = run(&["--print-capabilities"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), r#"{"type":"console","features":[]}"#);
    let output = run(&["--socket-path", "/nonexistent/x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--console-socket"));
}
