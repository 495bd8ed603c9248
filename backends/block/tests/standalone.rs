//! `domus-block` by the vhost-user backend program conventions: `--socket-path`, `--fd`, `--print-capabilities`.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};

use common::*;
use domus_driver::block::*;
use domus_driver::process::longest_file;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vu_server::server::MAX_LOGS;

fn program() -> Command {
    let mut program = Command::new(env!("CARGO_BIN_EXE_domus-block"));
    program.stdin(Stdio::null());
    program
}

#[test]
fn it_says_what_it_can_do_as_json() {
    let output = program().arg("--print-capabilities").output().unwrap();
    assert!(output.status.success());
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(said, serde_json::json!({ "type": "block", "features": ["read-only", "blk-file"] }));
}

#[test]
fn it_serves_an_inherited_socket_and_ends_when_the_frontend_hangs_up() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 1 << 20);
    let (ours, theirs) = UnixStream::pair().unwrap();
    let theirs = OwnedFd::from(theirs);
    fcntl(&theirs, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
    let mut child = program()
        .args(["--fd", &theirs.as_raw_fd().to_string(), "--serial", "by-fd", "--blk-file"])
        .arg(&image)
        .spawn()
        .unwrap();
    drop(theirs);
    // Other VMMs share memory in files that are not sealed.
    let mut driver = Driver::negotiated_unsealed(ours, 1, 0);
    driver.set_memory();
    driver.start(0, 0);
    assert_eq!(driver.sector(0, 33), 33);
    drop(driver);
    assert!(child.wait().unwrap().success());
}

#[test]
fn what_it_cannot_serve_is_one_line_with_the_value_and_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 1 << 20);
    let (image, home) = (image.to_str().unwrap(), dir.path().to_str().unwrap());
    let socket = format!("{home}/s.sock");
    let missing = format!("{home}/none");
    let cases: &[(&[&str], i32, &str)] = &[
        (&["--socket-path", &socket, "--blk-file", &missing], 1, "none: No such file"),
        (&["--socket-path", &socket, "--blk-file", home], 1, "Is a directory"),
        (&["--socket-path", &socket, "--blk-file", home, "--read-only"], 1, "regular file or a block device"),
        (&["--socket-path", &socket, "--blk-file", "/dev/null"], 1, "regular file or a block device"),
        (&["--socket-path", &socket], 1, "--blk-file PATH"),
        (&["--blk-file", image], 1, "--socket-path PATH or --fd FDNUM"),
        (&["--socket-path", image, "--blk-file", image], 1, "cannot listen on"),
        (&["--fd", "77", "--blk-file", image], 1, "--fd 77 is no open stream socket"),
        (
            &["--socket-path", &socket, "--blk-file", image, "--serial", "a-serial-of-21-bytes!"],
            1,
            "20 bytes",
        ),
        (&["--socket-path", &socket, "--blk-file", image, "--queues", "0"], 2, "--queues"),
        (&["--socket-path", &socket, "--blk-file", image, "--queues", "65"], 2, "64"),
        (&["--control", "/x", "--blk-file", image], 2, "--control"),
        (&["--socket-path", &socket, "--blk-file", image, "--null", "4096"], 2, "--null"),
        (&["--socket-path", &socket, "--null", "511"], 1, "511 bytes has no block"),
        (&["--socket-path", &socket, "--blk-file", image, "--cache", "writethrough"], 2, "writeback"),
        (&["--socket-path", &socket, "--blk-file", image, "--block-size", "1024"], 2, "4096"),
        (&["--socket-path", &socket, "--blk-file", image, "--iops", "100:50"], 2, "RATE:BURST"),
    ];
    for (args, code, part) in cases {
        let output = program().args(*args).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*code), "{args:?}: {said}");
        assert!(said.contains(part), "{args:?}: \"{said}\" does not say \"{part}\"");
        assert!(*code == 2 || said.lines().count() == 1, "{said}");
    }
    assert_eq!(std::fs::metadata(image).unwrap().len(), 1 << 20);
}

#[test]
fn a_null_disk_answers_everything_and_touches_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut backend = Backend::of(dir.path(), &["--null", "1048576", "--serial", "nothing"]);
    let mut driver = Driver::new(backend.connect(), 1, F_FLUSH);
    driver.memory.write(0x5a5a_u64, DATA);
    assert_eq!(driver.request(0, T_IN, 0, &[(DATA, 512, true)]), (S_OK, 513));
    assert_eq!(driver.memory.read::<u64>(DATA), 0x5a5a);
    assert_eq!(driver.request(0, T_OUT, 2047, &[(DATA, 512, false)]), (S_OK, 1));
    assert_eq!(driver.request(0, T_OUT, 2048, &[(DATA, 512, false)]).0, S_IOERR);
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
    assert_eq!(driver.request(0, T_GET_ID, 0, &[(DATA, 20, true)]).0, S_OK);
    assert_eq!(driver.memory.read_bytes(DATA, 7), b"nothing");
}

#[test]
fn a_limit_on_the_command_line_holds() {
    let dir = tempfile::tempdir().unwrap();
    let mut backend = Backend::of(dir.path(), &["--null", "1048576", "--read-iops", "20"]);
    let mut driver = Driver::new(backend.connect(), 1, 0);
    let start = std::time::Instant::now();
    for _ in 0..20 {
        assert_eq!(driver.request(0, T_IN, 0, &[(DATA, 512, true)]).0, S_OK);
    }
    // The first 3 go at once, 17 in a twentieth of a second each. As many writes as these would take 10 s.
    assert!(start.elapsed().as_millis() >= 800, "{:?}", start.elapsed());
    for _ in 0..200 {
        assert_eq!(driver.request(0, T_OUT, 0, &[(DATA, 512, false)]).0, S_OK);
    }
    assert!(start.elapsed().as_secs() < 9, "{:?}", start.elapsed());
}

#[test]
fn a_file_becomes_no_longer_than_an_image_that_cannot_grow() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 8 << 20);
    let longest = |args: &[&str]| {
        let mut backend = Backend::of(dir.path(), args);
        let mut driver = Driver::logged(backend.connect(), 1, 0).0;
        assert_eq!(driver.request(0, T_OUT, 2047, &[(DATA, 512, false)]).0 == S_OK, args[2] != "--read-only");
        longest_file(backend.process.pid()).unwrap()
    };
    let image = image.to_str().unwrap();
    assert_eq!(longest(&["--blk-file", image, "--queues", "1"]), Some(8 << 20));
    assert_eq!(longest(&["--blk-file", image, "--read-only"]), Some(MAX_LOGS));
    assert_eq!(longest(&["--null", "1048576", "--queues", "1"]), Some(MAX_LOGS));
}

#[test]
fn a_guest_that_resets_its_disk_pays_for_what_waited() {
    let dir = tempfile::tempdir().unwrap();
    let mut backend = Backend::of(dir.path(), &["--null", "1048576", "--read-iops", "50"]);
    let mut driver = Driver::new(backend.connect(), 1, 0);
    driver.header(T_IN, 0, HEADER);
    let head = driver.chain(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    // The first 6 go at once; the others wait until the ring is stopped.
    (0..SIZE).for_each(|_| driver.offer(0, head));
    driver.show(0);
    driver.wait(0, 6);
    let start = std::time::Instant::now();
    let base = driver.frontend.get_vring_base(0).unwrap();
    driver.wait(0, SIZE - 6);
    assert!(start.elapsed().as_millis() < 500, "a ring that is stopped waits for its limit");
    driver.frontend.reset_device().unwrap();
    driver.start(0, base as u16);
    assert_eq!(driver.request(0, T_IN, 0, &[(DATA, 512, true)]).0, S_OK);
    assert!(start.elapsed().as_millis() >= 900, "{:?} after 58 reads too many", start.elapsed());
}

#[test]
fn an_image_with_a_broken_last_sector_is_served_without_it() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 10 * 512 + 100);
    let mut backend = Backend::start(dir.path(), &image, &["--read-only"]);
    let mut driver = Driver::new(backend.connect(), 1, 0);
    assert_eq!(driver.sector(0, 9), 9);
    assert_eq!(driver.request(0, T_IN, 10, &[(DATA, 512, true)]).0, S_IOERR);
}
