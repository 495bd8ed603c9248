//! qcow2 images and NBD exports behind the real `domus-block`.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::dom0::*;
use common::*;
use domus_driver::block::*;
use domus_driver::process::Running;
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use nix::poll::{PollFd, PollFlags, poll};
use shared_abi::control::{
    BackendEvent, BackendReply, BlockDisk, BlockRequest, BlockSource, FdIndex, FromChild, IoLimits,
};
use shared_abi::ids::DeviceId;

const LEN: u64 = 64 << 10;
const DEPTH: u64 = 20;
const QUEUES: usize = 2;
/// Images behind one another: as many as a config may list, less the raw one.
const CHAIN: usize = 15;
/// Places that are written to, each followed by as much that is not.
const PLACES: u64 = 512;

fn qemu_img(dir: &Path, args: &[&str]) -> std::process::Output {
    Command::new("qemu-img").current_dir(dir).args(args).output().unwrap()
}

fn created(dir: &Path, args: &[&str]) -> PathBuf {
    let output = qemu_img(dir, &[&["create", "-q", "-f", "qcow2"], args].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    dir.join("disk.qcow2")
}

/// Clean, or with nothing worse than leaked clusters.
fn assert_consistent(dir: &Path, when: &str) {
    let output = qemu_img(dir, &["check", "disk.qcow2"]);
    let code = output.status.code();
    assert!(matches!(code, Some(0 | 3)), "{when}: {code:?} {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_guest_reads_through_a_chain_writes_discards_and_flushes() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path(), 4 << 20);
    let top = created(dir.path(), &["-F", "raw", "-b", "image.raw", "disk.qcow2", "16M"]);
    let base = format!("{}:raw", dir.path().join("image.raw").display());
    let args = ["--format", "qcow2", "--backing", &base, "--queues", "2"];
    let mut backend = Backend::start(dir.path(), &top, &args);
    let mut driver = Driver::new(backend.connect(), 2, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
    assert_eq!((driver.sector(0, 77), driver.sector(1, 8191), driver.sector(1, 8192)), (77, 8191, 0));
    driver.memory.write_bytes(&[5; 1 << 20], DATA);
    assert_eq!(driver.request(0, T_OUT, 100, &[(DATA, 1 << 20, false)]).0, S_OK);
    assert_eq!(driver.request(1, T_OUT, 8192, &[(DATA, 512, false)]).0, S_OK);
    assert_eq!((driver.sector(1, 99), driver.sector(0, 2148)), (99, 2148));
    driver.memory.write_bytes(&[0; 1 << 20], DATA);
    assert_eq!(driver.request(1, T_IN, 100, &[(DATA, 4096, true), (DATA + 4096, 1 << 19, true)]).0, S_OK);
    assert!(driver.memory.read_bytes(DATA, 4096 + (1 << 19)).iter().all(|&byte| byte == 5));
    driver.memory.write_bytes(&[[100, 0, 0, 0, 0, 0, 0, 0], [8, 0, 0, 0, 0, 0, 0, 0]].concat(), DATA);
    assert_eq!(driver.request(0, T_WRITE_ZEROES, 0, &[(DATA, 16, false)]).0, S_OK);
    assert_eq!(driver.request(0, T_DISCARD, 0, &[(DATA, 16, false)]).0, S_OK);
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
    assert_eq!(driver.request(0, T_IN, 32768, &[(DATA, 512, true)]).0, S_IOERR);
    drop(backend);
    assert_consistent(dir.path(), "after all");
    assert!(std::fs::read(dir.path().join("image.raw")).unwrap()[77 * 512] == 77, "the base is as it was");
}

#[test]
fn a_long_chain_is_read_to_its_end() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path(), 1 << 20);
    let mut args = vec!["--format".into(), "qcow2".into(), "--backing".into()];
    args.push(format!("{}:raw", dir.path().join("image.raw").display()));
    let (mut below, mut format) = ("image.raw".to_owned(), "raw");
    for level in 0..CHAIN {
        let name = format!("{level}.qcow2");
        created(dir.path(), &["-F", format, "-b", &below, &name]);
        args.extend(["--backing".into(), format!("{}:qcow2", dir.path().join(&name).display())]);
        (below, format) = (name, "qcow2");
    }
    let top = created(dir.path(), &["-F", format, "-b", &below, "disk.qcow2"]);
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let mut backend = Backend::start(dir.path(), &top, &args);
    let mut driver = Driver::new(backend.connect(), 1, F_FLUSH);
    assert_eq!((driver.sector(0, 0), driver.sector(0, 2047)), (0, 2047));
    driver.memory.write_bytes(&[7; 512], DATA);
    assert_eq!(driver.request(0, T_OUT, 5, &[(DATA, 512, false)]).0, S_OK);
    assert_eq!((driver.sector(0, 4), driver.sector(0, 6)), (4, 6));
}

/// A process that serves one qcow2 image, the frontend's end of its socket, and the other end of its lifeline.
struct Served {
    process: Running,
    frontend: UnixStream,
    lifeline: OwnedFd,
    link: Link,
}

impl Served {
    fn qcow2(dir: &Path, image: &Path) -> Self {
        let (process, link) = controlled(dir);
        let mut fds = Outgoing::default();
        let (mut root, frontend) = disk(&mut fds, "root", writable(image), false, QUEUES as u16);
        let BlockSource::Raw(index) = root.source else { panic!("{root:?}") };
        let path = image.to_str().unwrap().into();
        root.source = BlockSource::Qcow2 { image: index, path, backing: Vec::new() };
        let (answer, lifeline) = send_limited(&link, vec![root], fds, IoLimits::default());
        assert_eq!(answer, FromChild::Reply(BackendReply::Ready));
        Self { process, frontend, lifeline, link }
    }

    /// Kills it; returns when the kernel has finished everything it was asked to do.
    fn kill(&mut self) {
        self.process.kill().unwrap();
        let mut lifeline = [PollFd::new(self.lifeline.as_fd(), PollFlags::POLLIN)];
        assert_eq!(poll(&mut lifeline, 10_000_u16), Ok(1), "something of it is left");
    }
}

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn a_qcow2_image_survives_kills_under_load_and_every_request_is_answered_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = created(dir.path(), &["disk.qcow2", "64M"]);
    let mut backend = Served::qcow2(dir.path(), &image);
    let stream = backend.frontend.try_clone().unwrap();
    let (mut driver, log, log_file) = Driver::logged(stream, QUEUES as u16, F_FLUSH);
    let mut redone = 0;
    // What was acknowledged last at each place. Nothing is flushed before the end: the guest lives on, and so must
    // this.
    let mut known = [0_u8; PLACES as usize];
    for round in 0..25_u64 {
        let byte = round as u8 + 1;
        driver.memory.write_bytes(&vec![byte; LEN as usize], DATA);
        for queue in 0..QUEUES {
            for i in 0..DEPTH {
                let number = queue as u64 * DEPTH + i;
                // Another order in each round; 37 and 512 have no common factor.
                let place = (round * 40 + number) * 37 % PLACES;
                known[place as usize] = byte;
                let (header, status) = (HEADER + 16 * number, STATUS + number);
                driver.header(T_OUT, place * 2 * LEN / 512, header);
                driver.memory.write(UNTOUCHED, status);
                let chain = [(header, 16, false), (DATA, LEN as u32, false), (status, 1, true)];
                let head = driver.chain(queue, &chain);
                driver.offer(queue, head);
            }
            driver.show(queue);
        }
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_micros(round * 531 % 9000) {
            std::hint::spin_loop();
        }
        backend.kill();
        assert_consistent(dir.path(), &format!("killed in round {round}"));
        redone += (0..QUEUES)
            .map(|queue| u64::from(driver.rings[queue].available.wrapping_sub(driver.used(queue))))
            .sum::<u64>();
        backend = Served::qcow2(dir.path(), &image);
        driver.take_over(backend.frontend.try_clone().unwrap(), &log, &log_file);
        for queue in 0..QUEUES {
            assert_eq!(driver.wait(queue, DEPTH as u16).len(), DEPTH as usize);
            assert_eq!(driver.used(queue), driver.rings[queue].available, "answered twice in round {round}");
        }
        assert!((0..40).all(|number| driver.memory.read::<u8>(STATUS + number) == S_OK), "round {round}");
    }
    assert!(redone > 0, "no kill came while requests were in flight");
    backend.kill();
    assert_consistent(dir.path(), "at the end");
    let output = qemu_img(dir.path(), &["convert", "-O", "raw", "disk.qcow2", "end.raw"]);
    assert!(output.status.success());
    let end = std::fs::read(dir.path().join("end.raw")).unwrap();
    for (place, &byte) in known.iter().enumerate() {
        let at = place * 2 * LEN as usize;
        assert!(end[at..at + LEN as usize].iter().all(|&found| found == byte), "place {place}");
    }
    println!("25 kills, {redone} requests not answered at the time");
}

#[test]
fn a_qcow2_disk_grows_under_its_guest_and_a_bad_one_is_refused_before_it_is_ready() {
    let dir = tempfile::tempdir().unwrap();
    let image = created(dir.path(), &["disk.qcow2", "1M"]);
    let backend = Served::qcow2(dir.path(), &image);
    let mut driver = Driver::new(backend.frontend.try_clone().unwrap(), QUEUES as u16, F_FLUSH);
    assert_eq!(driver.request(0, T_OUT, 2048, &[(DATA, 512, false)]).0, S_IOERR);
    let resize = |bytes| BlockRequest::Resize { disk: "root".parse().unwrap(), bytes };
    assert_eq!(ask(&backend.link, &resize(Some(8 << 20))).0, FromChild::Reply(BackendReply::Size(8 << 20)));
    assert_eq!(driver.request(1, T_OUT, 2048, &[(DATA, 512, false)]).0, S_OK);
    assert!(matches!(ask(&backend.link, &resize(Some(1 << 20))).0, FromChild::Failed(_)));
    assert_eq!(driver.request(1, T_IN, 2048, &[(DATA, 512, true)]).0, S_OK);
    drop(backend);
    assert_consistent(dir.path(), "at the end");

    std::fs::write(&image, [0x5a; 4096]).unwrap();
    let (_process, link) = controlled(dir.path());
    let mut fds = Outgoing::default();
    let (mut root, _frontend) = disk(&mut fds, "root", writable(&image), false, 1);
    root.source = BlockSource::Qcow2 { image: FdIndex(0), path: "/d/disk.qcow2".into(), backing: Vec::new() };
    match send(&link, vec![root], fds) {
        FromChild::Failed(why) => {
            assert!(why.contains("root") && why.contains("/d/disk.qcow2: it is no qcow2"), "{why}")
        }
        other => panic!("{other:?}"),
    }
}

/// An NBD server of an image, killed when dropped.
struct Server(Running);

impl Server {
    fn start(dir: &Path, image: &Path) -> Self {
        let mut nbd = Command::new("qemu-nbd");
        nbd.args(["--persistent", "--format=raw", "--shared=8", "--export-name=disk", "--socket"])
            .arg(dir.join("nbd.sock"));
        let _ = std::fs::remove_file(dir.join("nbd.sock"));
        let mut server = Self(Running::start("qemu-nbd", nbd.arg(image).stdin(Stdio::null())).unwrap());
        // Now it listens.
        drop(server.connect(dir));
        server
    }

    fn connect(&mut self, dir: &Path) -> UnixStream {
        self.0.connect(&dir.join("nbd.sock")).unwrap()
    }
}

#[test]
fn an_export_is_a_disk_until_its_server_goes() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 4 << 20);
    let server = Server::start(dir.path(), &image);
    let uri = format!("nbd+unix:///disk?socket={}", dir.path().join("nbd.sock").display());
    let mut backend = Backend::of(dir.path(), &["--nbd", &uri]);
    let mut driver = Driver::new(backend.connect(), 1, F_FLUSH);
    assert_eq!((driver.sector(0, 3), driver.sector(0, 8191)), (3, 8191));
    driver.memory.write_bytes(&[9; 512], DATA);
    assert_eq!(driver.request(0, T_OUT, 3, &[(DATA, 512, false)]).0, S_OK);
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
    assert_eq!(std::fs::read(&image).unwrap()[3 * 512..4 * 512], [9; 512]);
    drop(server);
    assert_eq!(backend.process.end().unwrap().code(), Some(1));
}

#[test]
fn images_and_servers_that_cannot_be_served_are_one_line_with_the_cure() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path(), 4 << 20);
    let top = created(dir.path(), &["-F", "raw", "-b", "image.raw", "disk.qcow2", "16M"]);
    let (socket, top) = (dir.path().join("s.sock"), top.to_str().unwrap().to_owned());
    let raw = dir.path().join("image.raw");
    let cases: [(&[&str], &str); 3] = [
        (&["--blk-file", &top, "--format", "qcow2"], r#"image.raw", "format": "raw"}]"#),
        (&["--blk-file", raw.to_str().unwrap(), "--format", "qcow2"], "no qcow2 image"),
        (
            &["--nbd", "nbd+unix:///x?socket=/none"],
            "cannot connect to nbd+unix:///x?socket=/none: No such file",
        ),
    ];
    for (args, part) in cases {
        let mut program = Command::new(env!("CARGO_BIN_EXE_domus-block"));
        let output = program.arg("--socket-path").arg(&socket).args(args).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), text.lines().count()), (Some(1), 1), "{text}");
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn an_export_whose_server_comes_and_goes_is_a_disk_all_the_time() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 4 << 20);
    let (_process, link) = controlled(dir.path());
    let mut fds = Outgoing::default();
    let (ours, theirs) = UnixStream::pair().unwrap();
    let socket = fds.add(OwnedFd::from(theirs));
    let source = BlockSource::Nbd { socket: None, export: "disk".into(), error_after: None };
    let id: DeviceId = "far".parse().unwrap();
    let disk = BlockDisk { source, ..BlockDisk::raw(id.clone(), FdIndex(0), socket) };
    // There is no server yet: dom0 is told, and asked for a connection before the disk is ready.
    let lost = send(&link, vec![disk], fds);
    assert!(matches!(lost, FromChild::Event(BackendEvent::ConnectionLost { .. })), "{lost:?}");
    let reconnect = |server: &mut Server| {
        let stream = OwnedFd::from(server.connect(dir.path()));
        let request = BlockRequest::Reconnect { disk: id.clone(), socket: FdIndex(0) };
        link.send_request(&request, &[stream.as_fd()]).unwrap();
    };
    let mut server = Server::start(dir.path(), &image);
    reconnect(&mut server);
    assert_eq!(link.receive::<Answer>().unwrap().0, FromChild::Reply(BackendReply::Done));
    assert_eq!(link.receive::<Answer>().unwrap().0, FromChild::Reply(BackendReply::Ready));
    let mut driver = Driver::new(ours, 1, F_FLUSH);
    assert_eq!(driver.sector(0, 8191), 8191);
    for round in 1..=5_u8 {
        driver.memory.write_bytes(&[round; 4096], DATA);
        for number in 0..DEPTH {
            let (header, status) = (HEADER + 16 * number, STATUS + number);
            driver.header(T_OUT, number * 8, header);
            driver.memory.write(UNTOUCHED, status);
            let head = driver.chain(0, &[(header, 16, false), (DATA, 4096, false), (status, 1, true)]);
            driver.offer(0, head);
        }
        driver.show(0);
        drop(server);
        let event = link.receive::<Answer>().unwrap().0;
        assert!(matches!(event, FromChild::Event(BackendEvent::ConnectionLost { .. })), "{event:?}");
        server = Server::start(dir.path(), &image);
        reconnect(&mut server);
        // One loss is told once: what comes next is the answer.
        assert_eq!(link.receive::<Answer>().unwrap().0, FromChild::Reply(BackendReply::Done));
        assert_eq!(driver.wait(0, DEPTH as u16).len(), DEPTH as usize);
        assert!((0..DEPTH).all(|number| driver.memory.read::<u8>(STATUS + number) == S_OK), "round {round}");
        assert!(std::fs::read(&image).unwrap()[..DEPTH as usize * 4096].iter().all(|&byte| byte == round));
    }
    assert_eq!(driver.sector(0, 8190), 8190);
    // The five, and that there was none at first.
    assert_eq!(statistics(&link, "far").stalls, 6);
}
