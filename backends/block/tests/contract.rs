//! `domus-block --control`: started as dom0 starts it, it serves every disk of a domain, and holds nothing else.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::{File, OpenOptions, read_to_string};

use common::dom0::*;
use common::*;
use domus_driver::block::*;
use domus_driver::control::dial;
use domus_driver::process::{longest_file, private_memory};
use domus_startup::fds::Outgoing;
use shared_abi::control::{BackendEvent, BackendReply, BlockDisk, BlockSource, FdIndex, FromChild};
use vhost::vhost_user::VhostUserFrontend;

fn status(pid: u32, field: &str) -> String {
    let text = read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_once(':').unwrap().1.trim().to_owned()
}

#[test]
fn two_disks_are_served_sealed_small_and_without_their_controller() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (process, link) = controlled(dir.path());
    let pid = process.pid();
    let mut fds = Outgoing::default();
    let open = |write| OpenOptions::new().read(true).write(write).open(&path).unwrap();
    let (root, root_socket) = disk(&mut fds, "root", open(true), false, 4);
    let (data, data_socket) = disk(&mut fds, "data", open(false), true, 1);
    assert_eq!(send(&link, vec![root, data], fds), FromChild::Reply(BackendReply::Ready));

    let memory = private_memory(pid).unwrap();
    println!("private memory idle: {memory} KiB");
    // What is not optimised has more that the loader must relocate.
    let most = if cfg!(debug_assertions) { 6144 } else { 4096 };
    assert!(memory <= most, "{memory} KiB of private memory");
    let uid = identity().uid.to_string();
    assert_eq!(status(pid, "Uid").split_whitespace().collect::<Vec<_>>(), [&uid; 4]);
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    assert_eq!(status(pid, "CapBnd"), "0000000000000000");
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    assert_eq!(std::fs::read_dir(format!("/proc/{pid}/root")).unwrap().count(), 0);
    for thread in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let thread = thread.unwrap().file_name();
        let text = read_to_string(format!("/proc/{pid}/task/{}/status", thread.display())).unwrap();
        assert!(text.contains("Seccomp:\t2"), "thread {} is not sealed", thread.display());
    }

    let mut root = Driver::new(root_socket, 4, F_FLUSH);
    let mut data = Driver::new(data_socket, 1, 0);
    for queue in 0..4 {
        assert_eq!(root.sector(queue, 40 + queue as u64), 40 + queue as u64);
    }
    assert_eq!(data.sector(0, 17), 17);
    assert_eq!(data.request(0, T_OUT, 0, &[(DATA, 512, false)]).0, S_IOERR);
    assert_eq!(data.request(0, T_GET_ID, 0, &[(DATA, 20, true)]).0, S_OK);
    assert_eq!(data.memory.read_bytes(DATA, 11), b"serial-data");

    // The controller goes: the guest notices nothing. The next one is told that it came too late to start anything.
    drop(link);
    assert_eq!(root.request(1, T_OUT, 3, &[(DATA, 512, false)]).0, S_OK);
    let link = dial(&dir.path().join("block.sock")).unwrap().greeted().unwrap();
    assert!(matches!(send(&link, vec![], Outgoing::default()), FromChild::Failed(_)));

    // A frontend that breaks the protocol loses its disk, which the controller hears; the other disk goes on.
    assert!(root.frontend.set_vring_enable(3, true).is_ok());
    assert!(vhost::VhostBackend::set_features(&root.frontend, 1 << 60).is_err());
    match link.receive::<Answer>().unwrap().0 {
        FromChild::Event(BackendEvent::DeviceFailed { device, why }) => {
            assert_eq!(device.as_str(), "root");
            assert!(why.contains("0x1000000000000000"), "{why}");
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(data.sector(0, 18), 18);
}

#[test]
fn a_start_that_cannot_be_is_answered_with_the_disk_and_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4096);
    type Spoil = fn(&mut BlockDisk, &mut Outgoing);
    let cases: &[(Spoil, &str)] = &[
        (|disk, _| disk.serial = "x".repeat(21), "disk root: serial"),
        (|disk, _| disk.queues = 0, "disk root: 0 queues"),
        (|disk, _| disk.queues = 65, "disk root: 65 queues"),
        (|disk, _| disk.read_only = false, "disk root: the image is not open for writing"),
        (|disk, _| disk.socket = FdIndex(9), "descriptor 9"),
        (|_, fds| _ = fds.add(File::open("/dev/null").unwrap()), "1 of the descriptors"),
        (|disk, fds| disk.source = BlockSource::Raw(fds.add(File::open("/").unwrap())), "neither"),
    ];
    for (spoil, part) in cases {
        let (mut process, link) = controlled(dir.path());
        let mut fds = Outgoing::default();
        let (mut root, _socket) = disk(&mut fds, "root", File::open(&path).unwrap(), true, 1);
        spoil(&mut root, &mut fds);
        match send(&link, vec![root], fds) {
            FromChild::Failed(text) => assert!(text.contains(part), "\"{text}\" does not say \"{part}\""),
            other => panic!("{other:?} instead of {part}"),
        }
        assert_eq!(process.end().unwrap().code(), Some(1));
        std::fs::remove_file(dir.path().join("block.sock")).unwrap();
    }
}

#[test]
fn more_queues_than_descriptors_last_for_are_refused_with_the_limit() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4096);
    let (_process, link) = controlled(dir.path());
    let mut fds = Outgoing::default();
    let (disks, _sockets): (Vec<_>, Vec<_>) =
        ["a", "b", "c"].iter().map(|id| disk(&mut fds, id, File::open(&path).unwrap(), true, 64)).unzip();
    match send(&link, disks, fds) {
        FromChild::Failed(text) => assert!(text.contains("192 queues") && text.contains("160"), "{text}"),
        other => panic!("{other:?}"),
    }
}

/// As many disks as a domain can have, with as many queues as vCPUs share: descriptors and memory last.
#[test]
fn thirty_one_disks_with_five_queues_each_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (process, link) = controlled(dir.path());
    let mut fds = Outgoing::default();
    let (disks, sockets): (Vec<_>, Vec<_>) = (0..31)
        .map(|number| disk(&mut fds, &format!("disk{number}"), File::open(&path).unwrap(), true, 5))
        .unzip();
    assert_eq!(send(&link, disks, fds), FromChild::Reply(BackendReply::Ready));
    // Read-only all of them.
    assert_eq!(longest_file(process.pid()).unwrap(), Some(vu_server::server::MAX_LOGS));
    let mut drivers: Vec<_> = sockets.into_iter().map(|socket| Driver::new(socket, 5, 0)).collect();
    for (sector, driver) in (0..).zip(&mut drivers) {
        for queue in 0..5 {
            assert_eq!(driver.sector(queue, sector), sector);
        }
    }
    println!("private memory: {} KiB", private_memory(process.pid()).unwrap());
}
