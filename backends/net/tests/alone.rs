//! The program by itself, as the backend program conventions have it: no dom0, frontends one after the other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::wire::{self, Wire, frame};
use common::{Answer, start};
use domus_driver::PATIENCE;
use domus_driver::frames::PLAIN;
use domus_driver::frontend::{F_EVENT_IDX, F_VERSION_1};
use domus_driver::net::Guest;
use domus_driver::process::Running;
use domus_net::features;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_domus-net"))
}

fn echo(wire: &Wire, stream: UnixStream, seed: u8) {
    let mut guest = Guest::new(stream, F_VERSION_1 | F_EVENT_IDX | features::MRG_RXBUF).run();
    guest.offer_buffers(8, 2000);
    guest.rx().kick();
    guest.send(PLAIN, &frame(seed, 60), 2000);
    assert_eq!(wire.receive(), frame(seed, 60));
    wire.send(PLAIN, &frame(seed, 700));
    assert_eq!(guest.receive().1, frame(seed, 700));
}

#[test]
fn one_frontend_after_the_other_is_served_at_a_path() {
    wire::own_network();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.sock");
    let mut program = program();
    program.arg("--socket-path").arg(&path).args(["--tap", "alone0"]);
    let mut child = Running::start("domus-net", &mut program).unwrap();
    // The program has made the tap before it is listening.
    let first = child.connect(&path).unwrap();
    let until = Instant::now() + PATIENCE;
    while !Path::new("/proc/thread-self/net/dev").exists()
        || !std::fs::read_to_string("/proc/thread-self/net/dev").unwrap().contains("alone0")
    {
        assert!(Instant::now() < until && child.ended().unwrap().is_none());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    let wire = Wire::new("alone0");
    echo(&wire, first, 1);
    // Nonsense instead of a frontend ends its connection, not the program.
    let mut nonsense = child.connect(&path).unwrap();
    std::io::Write::write_all(&mut nonsense, &[0xff; 64]).unwrap();
    drop(nonsense);
    for seed in 2..5 {
        echo(&wire, child.connect(&path).unwrap(), seed);
    }
    let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
}

#[test]
fn the_frontend_at_a_descriptor_is_served_until_it_hangs_up() {
    wire::own_network();
    let (tap, wire) = wire::tap("alone1");
    // Only one may be attached at a time; the interface stays, since it was made persistent.
    wire::keep(&tap);
    drop(tap);
    let (ours, theirs) = UnixStream::pair().unwrap();
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let fd = theirs.as_raw_fd().to_string();
    let mut program = program();
    program.args(["--fd", &fd, "--tap", "alone1", "--mac", "52:54:00:00:00:09"]);
    let mut child = Running::start("domus-net", &mut program).unwrap();
    drop(theirs);
    echo(&wire, ours, 9);
    assert!(child.end().unwrap().success());
}

#[test]
fn capabilities_are_printed_and_a_busy_tap_is_named() {
    let output = program().arg("--print-capabilities").output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), r#"{"type":"net","features":[]}"#);
    wire::own_network();
    let (tap, _wire) = wire::tap("busy0");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("net.sock");
    let output = program()
        .arg("--socket-path")
        .arg(&path)
        .args(["--tap", "busy0"])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("busy0"), "{said}");
    drop(tap);
}

#[test]
fn a_tap_that_is_deleted_is_reported_once_and_costs_no_processor_time() {
    wire::own_network();
    let (tap, wire) = wire::tap("gone0");
    let (program, _, mut streams) = start(vec![tap]);
    let mut guest = Guest::new(streams.remove(0), F_VERSION_1 | F_EVENT_IDX | features::MRG_RXBUF).run();
    guest.offer_buffers(8, 2000);
    guest.rx().kick();
    guest.send(PLAIN, &frame(1, 60), 2000);
    assert_eq!(wire.receive(), frame(1, 60));
    assert!(Command::new("ip").args(["link", "delete", "gone0"]).status().unwrap().success());
    match program.link.receive::<Answer>().unwrap().0 {
        Answer::Event(shared_abi::control::BackendEvent::DeviceFailed { device, why }) => {
            assert_eq!(device.as_str(), "eth0");
            assert!(why.contains("tap"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    let before = program.switches();
    std::thread::sleep(std::time::Duration::from_millis(300));
    assert_eq!(program.switches(), before);
    // Frames go nowhere, but the guest's transmit queue does not stand still.
    guest.send(PLAIN, &frame(2, 60), 2000);
}

#[test]
fn a_frontend_with_a_control_queue_of_its_own_says_which_pairs_are_in_use_by_running_their_rings() {
    wire::own_network();
    let (taps, wire) = wire::taps("alone2", 1);
    wire::keep(&taps[0]);
    drop(taps);
    let (ours, theirs) = UnixStream::pair().unwrap();
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let fd = theirs.as_raw_fd().to_string();
    let mut program = program();
    program.args(["--fd", &fd, "--tap", "alone2", "--queues", "3"]);
    let mut child = Running::start("domus-net", &mut program).unwrap();
    drop(theirs);
    let mut guest = Guest::with_queues(ours, F_VERSION_1 | features::MRG_RXBUF | features::MQ, 6);
    assert_eq!(guest.offered() & (features::CTRL_VQ | features::RSS), 0);
    assert_eq!(guest.config(10)[8..], [3, 0]);
    let run = |pairs: std::ops::Range<usize>, guest: &mut Guest| {
        for pair in pairs {
            guest.start(2 * pair);
            guest.start(2 * pair + 1);
            guest.offer_to(pair, 100);
        }
    };
    let comes = |guest: &mut Guest| {
        let mut queues = std::collections::BTreeSet::new();
        for seed in 0..48 {
            let mut frame = wire::tcp(100).1;
            (frame[35], frame[29]) = (seed, seed);
            wire.send(PLAIN, &frame);
            let until = Instant::now() + PATIENCE;
            queues.insert(loop {
                let used = (0..3).find_map(|pair| Some((pair, guest.rings[2 * pair].try_used()?.0)));
                if let Some((pair, head)) = used {
                    guest.rings[2 * pair].offer(head);
                    guest.rings[2 * pair].kick();
                    break pair;
                }
                assert!(Instant::now() < until, "flow {seed} comes on no queue");
            });
        }
        queues.into_iter().collect::<Vec<_>>()
    };
    run(0..1, &mut guest);
    assert_eq!(comes(&mut guest), [0]);
    run(1..3, &mut guest);
    // Starting a ring has no answer; the next message that has one comes after it.
    guest.config(1);
    assert_eq!(comes(&mut guest), [0, 1, 2]);
    for index in [4, 5] {
        vhost::vhost_user::VhostUserFrontend::set_vring_enable(&mut guest.frontend, index, false).unwrap();
    }
    // The message has no answer; the next one that has comes after it.
    guest.config(1);
    assert_eq!(comes(&mut guest), [0, 1]);
    drop(guest);
    assert!(child.end().unwrap().success());
}
