//! What dom0 asks of disks that are being served: limits, sizes, numbers, and "do it again".
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::dom0::*;
use common::*;
use domus_driver::block::*;
use domus_driver::process::{Running, may_raise_limits};
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use shared_abi::control::{
    BackendEvent, BackendReply, BlockDisk, BlockRequest, BlockSource, Cache, FdIndex, FromChild, IoLimit,
    IoLimits, OnError, Rate,
};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

fn writable(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

/// One running disk, `root`, changed before it is started.
fn served(dir: &Path, image: File, change: impl FnOnce(&mut BlockDisk)) -> (Running, Link, Driver) {
    let (process, link) = controlled(dir);
    let mut fds = Outgoing::default();
    let (mut root, socket) = disk(&mut fds, "root", image, false, 1);
    change(&mut root);
    let queues = root.queues;
    assert_eq!(send(&link, vec![root], fds), FromChild::Reply(BackendReply::Ready));
    (process, link, Driver::new(socket, queues, F_FLUSH))
}

fn done() -> Answer {
    FromChild::Reply(BackendReply::Done)
}

fn why(answer: Answer) -> String {
    match answer {
        FromChild::Failed(why) => why,
        other => panic!("{other:?}"),
    }
}

fn capacity(driver: &mut Driver) -> u64 {
    let config = driver.frontend.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).unwrap().1;
    u64::from_le_bytes(config.try_into().unwrap())
}

fn resize(bytes: Option<u64>) -> BlockRequest {
    BlockRequest::Resize { disk: "root".parse().unwrap(), bytes }
}

/// Lets a process make files of so many bytes, as dom0 does before it asks for them.
fn allow(process: &Running, bytes: u64) {
    let [pid, limit] = [format!("--pid={}", process.pid()), format!("--fsize={bytes}:")];
    assert!(Command::new("prlimit").args([pid, limit]).status().unwrap().success());
}

#[test]
fn a_disk_grows_and_shrinks_while_it_is_served() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (process, link, mut driver) = served(dir.path(), writable(&path), |root| root.queues = 3);
    assert_eq!(driver.request(0, T_IN, 2048, &[(DATA, 512, true)]).0, S_IOERR);
    let size = |bytes| FromChild::Reply(BackendReply::Size(bytes));
    // Not before it may: a process that is its guest's makes no image longer.
    if may_raise_limits() {
        assert!(why(ask(&link, &resize(Some(1 << 30))).0).contains("disk root"));
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        allow(&process, 1 << 30);
    }
    assert_eq!(ask(&link, &resize(Some(1 << 30))).0, size(1 << 30));
    assert_eq!(ask(&link, &resize(Some(2 << 20))).0, size(2 << 20));
    assert_eq!((capacity(&mut driver), std::fs::metadata(&path).unwrap().len()), (4096, 2 << 20));
    assert_eq!(driver.request(1, T_OUT, 4095, &[(DATA, 512, false)]).0, S_OK);
    assert_eq!(ask(&link, &resize(Some(512 << 10))).0, size(512 << 10));
    assert_eq!((capacity(&mut driver), std::fs::metadata(&path).unwrap().len()), (1024, 512 << 10));
    assert_eq!(driver.request(2, T_IN, 1024, &[(DATA, 512, true)]).0, S_IOERR);
    assert_eq!(driver.sector(0, 1023), 1023);
    // It has grown by itself, by a broken block.
    writable(&path).set_len((1 << 20) + 77).unwrap();
    assert_eq!(ask(&link, &resize(None)).0, size(1 << 20));
    assert_eq!(capacity(&mut driver), 2048);
    assert_eq!(statistics(&link, "root").bytes, 1 << 20);
    for (bytes, part) in [(Some(0), "0 bytes"), (Some(1000), "its blocks have 512")] {
        assert!(why(ask(&link, &resize(bytes)).0).contains(part));
    }
}

#[test]
fn a_disk_shrinks_under_writes_and_none_of_them_makes_it_longer_again() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4 << 20);
    let (_process, link, mut driver) = served(dir.path(), writable(&path), |_| {});
    for _ in 0..20 {
        for i in 0..20_u64 {
            driver.header(T_OUT, 4096 + 128 * i, HEADER + 16 * i);
            let chain = [(HEADER + 16 * i, 16, false), (DATA, 65536, false), (STATUS + i, 1, true)];
            let head = driver.chain(0, &chain);
            driver.offer(0, head);
        }
        driver.show(0);
        assert_eq!(ask(&link, &resize(Some(1 << 20))).0, FromChild::Reply(BackendReply::Size(1 << 20)));
        driver.wait(0, 20);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
        assert_eq!(ask(&link, &resize(Some(4 << 20))).0, FromChild::Reply(BackendReply::Size(4 << 20)));
    }
}

#[test]
fn what_a_disk_cannot_do_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (_process, link) = controlled(dir.path());
    let mut fds = Outgoing::default();
    let (fixed, _fixed) = disk(&mut fds, "fixed", File::open(&path).unwrap(), true, 1);
    assert_eq!(send(&link, vec![fixed], fds), FromChild::Reply(BackendReply::Ready));
    let fixed = || "fixed".parse().unwrap();
    let other = || "other".parse().unwrap();
    let cases = [
        (BlockRequest::Resize { disk: fixed(), bytes: Some(4096) }, "read-only"),
        (BlockRequest::Resize { disk: other(), bytes: None }, "no disk other"),
        (BlockRequest::Limit { disk: Some(other()), limits: IoLimits::default() }, "no disk other"),
        (BlockRequest::Statistics(other()), "no disk other"),
    ];
    for (request, part) in cases {
        let said = why(ask(&link, &request).0);
        assert!(said.contains(part), "\"{said}\" does not say \"{part}\"");
    }
    // A connection for what has no server.
    let reconnect = BlockRequest::Reconnect { disk: fixed(), socket: FdIndex(0) };
    let null = File::open("/dev/null").unwrap();
    link.send_request(&reconnect, &[std::os::fd::AsFd::as_fd(&null)]).unwrap();
    assert!(why(link.receive::<Answer>().unwrap().0).contains("no server"));
}

/// One request, and hardly another one.
fn one_at_once() -> IoLimit {
    IoLimit { iops: None, bytes: Some(Rate { per_second: 1, burst: 1, burst_seconds: 1 }) }
}

#[test]
fn limits_hold_and_change_while_requests_wait_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let slow = IoLimits { read: one_at_once(), ..IoLimits::default() };
    let (_process, link, mut driver) = served(dir.path(), writable(&path), |root| root.limits = slow);
    let ten = |driver: &mut Driver| {
        for i in 0..10 {
            driver.header(T_IN, i, HEADER + 16 * i);
            let chain = [(HEADER + 16 * i, 16, false), (DATA + 512 * i, 512, true), (STATUS + i, 1, true)];
            let head = driver.chain(0, &chain);
            driver.offer(0, head);
        }
        driver.show(0);
    };
    ten(&mut driver);
    driver.wait(0, 1);
    // Writes are not limited, and go past the reads that wait.
    driver.header(T_OUT, 100, HEADER + 0x800);
    let chain = [(HEADER + 0x800, 16, false), (DATA + 0x8000, 512, false), (STATUS + 0x800, 1, true)];
    let write = driver.chain(0, &chain);
    driver.offer(0, write);
    driver.show(0);
    assert_eq!(driver.wait(0, 1)[0].0, write);
    let waiting = statistics(&link, "root");
    assert_eq!((waiting.in_flight, waiting.throttled), (9, 9));
    // Without the limit they go at once, in their order.
    let start = Instant::now();
    let free = BlockRequest::Limit { disk: Some("root".parse().unwrap()), limits: IoLimits::default() };
    assert_eq!(ask(&link, &free).0, done());
    driver.wait(0, 9);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(
        (0..10).map(|i| driver.memory.read::<u64>(DATA + 512 * i)).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    // The domain's limit is another one: nine wait, and let go when the ring is stopped.
    let domain = BlockRequest::Limit { disk: None, limits: slow };
    assert_eq!(ask(&link, &domain).0, done());
    ten(&mut driver);
    driver.wait(0, 1);
    let start = Instant::now();
    assert_eq!(driver.frontend.get_vring_base(0).unwrap(), 21);
    assert!(start.elapsed() < Duration::from_secs(5), "stopping took {:?}", start.elapsed());
    driver.wait(0, 9);
    assert!((0..10).all(|i| driver.memory.read::<u8>(STATUS + i) == S_OK));
}

#[test]
fn a_disk_counts_what_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 1 << 20);
    let (_process, link, mut driver) = served(dir.path(), writable(&path), |root| root.queues = 2);
    for queue in 0..2 {
        assert_eq!(driver.request(queue, T_IN, 0, &[(DATA, 4096, true)]).0, S_OK);
        assert_eq!(driver.request(queue, T_OUT, 8, &[(DATA, 512, false)]).0, S_OK);
    }
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
    driver.segments(&[(8, 8, 0)]);
    assert_eq!(driver.request(1, T_DISCARD, 0, &[(DATA, 16, false)]).0, S_OK);
    let said = statistics(&link, "root");
    let [read, write, flush, discard] = [&said.read, &said.write, &said.flush, &said.discard];
    assert_eq!((read.ops, read.bytes, write.ops, write.bytes), (2, 8192, 2, 1024));
    assert_eq!((flush.ops, flush.bytes, discard.ops, discard.bytes), (1, 0, 1, 4096));
    for op in [read, write, flush, discard] {
        assert_eq!((op.latency.iter().sum::<u64>(), op.errors), (op.ops, 0), "{op:?}");
    }
    assert!(
        flush.total_ns > 0 && said.deepest >= 1 && said.in_flight == 0 && said.bytes == 1 << 20,
        "{said:?}"
    );
}

#[test]
fn a_lost_disk_has_its_size_and_its_serial_and_fails_everything_else() {
    let dir = tempfile::tempdir().unwrap();
    let (_process, link) = controlled(dir.path());
    let mut fds = Outgoing::default();
    let (mut root, socket) = disk(&mut fds, "root", File::open("/dev/null").unwrap(), false, 1);
    // Held by nobody: there is nothing to do again.
    (root.read_error, root.write_error) = (OnError::Pause, OnError::Pause);
    root.source = BlockSource::Lost { bytes: 1 << 20 };
    // The image's descriptor, which is not named now.
    let mut kept = Outgoing::default();
    root.socket = kept.add(fds.into_vec().pop().unwrap());
    assert_eq!(send(&link, vec![root], kept), FromChild::Reply(BackendReply::Ready));
    let mut driver = Driver::new(socket, 1, F_FLUSH | F_DISCARD | F_WRITE_ZEROES);
    assert_eq!(capacity(&mut driver), 2048);
    assert_eq!(driver.request(0, T_IN, 0, &[(DATA, 512, true)]), (S_IOERR, 1));
    assert_eq!(driver.request(0, T_OUT, 0, &[(DATA, 512, false)]), (S_IOERR, 1));
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]), (S_IOERR, 1));
    driver.segments(&[(8, 8, 0)]);
    assert_eq!(driver.request(0, T_DISCARD, 0, &[(DATA, 16, false)]), (S_IOERR, 1));
    assert_eq!(driver.request(0, T_GET_ID, 0, &[(DATA, 20, true)]), (S_OK, 21));
    assert!(why(ask(&link, &resize(None)).0).contains("no image"));
    assert_eq!(statistics(&link, "root").read.errors, 1);
}

#[test]
fn buffers_that_direct_io_cannot_take_are_served_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let path = image(dir.path(), 4 << 20);
    let direct = OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).unwrap();
    let (_process, _link, mut driver) = served(dir.path(), direct, |root| root.cache = Cache::None);
    assert_eq!(driver.sector(0, 77), 77);
    // 300 KiB at an odd address, in pieces of odd lengths: longer than one bounce buffer.
    let bytes: Vec<u8> = (0..300 << 10).map(|i: u32| ((i * 7) >> 3) as u8).collect();
    let odd = DATA + 3;
    driver.memory.write_bytes(&bytes, odd);
    let pieces = |written| {
        [(odd, 1001, written), (odd + 1001, 99, written), (odd + 1100, (300 << 10) - 1100, written)]
    };
    assert_eq!(driver.request(0, T_OUT, 1000, &pieces(false)), (S_OK, 1));
    driver.memory.write_bytes(&vec![0; 300 << 10], odd);
    assert_eq!(driver.request(0, T_IN, 1000, &pieces(true)), (S_OK, (300 << 10) + 1));
    assert_eq!(driver.memory.read_bytes(odd, 300 << 10), bytes);
    // More at once than there are buffers.
    for i in 0..20 {
        driver.header(T_IN, 10 * i, HEADER + 16 * i);
        let chain = [(HEADER + 16 * i, 16, false), (odd + 1024 * i, 512, true), (STATUS + i, 1, true)];
        let head = driver.chain(0, &chain);
        driver.offer(0, head);
    }
    driver.show(0);
    driver.wait(0, 20);
    for i in 0..20 {
        assert_eq!(
            (driver.memory.read::<u8>(STATUS + i), driver.memory.read::<u64>(odd + 1024 * i)),
            (S_OK, 10 * i)
        );
    }
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
}

/// A file system of 2 MiB that this test's thread alone sees. None without root.
fn small_file_system(dir: &Path) -> Option<()> {
    use nix::mount::{MsFlags, mount};
    if !nix::unistd::geteuid().is_root() {
        println!("not run: only root can mount a small file system");
        return None;
    }
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
    mount(Some("small"), dir, Some("tmpfs"), MsFlags::empty(), Some("size=2m")).unwrap();
    Some(())
}

/// Fills the disk of a small file system with writes, of which some are held, in a ring with an inflight log or
/// without.
fn filled(dir: &Path, logged: bool) -> Option<(Running, Link, Driver, Vec<BackendEvent>)> {
    let small = dir.join("small");
    std::fs::create_dir(&small).unwrap();
    small_file_system(&small)?;
    let path = small.join("image");
    File::create(&path).unwrap().set_len(4 << 20).unwrap();
    std::fs::write(small.join("ballast"), vec![1; 1 << 20]).unwrap();
    let (process, link) = controlled(dir);
    let mut fds = Outgoing::default();
    let (mut root, socket) = disk(&mut fds, "root", writable(&path), false, 1);
    root.write_error = OnError::PauseIfFull;
    assert_eq!(send(&link, vec![root], fds), FromChild::Reply(BackendReply::Ready));
    let mut driver = match logged {
        true => Driver::logged(socket, 1, F_FLUSH).0,
        false => Driver::new(socket, 1, F_FLUSH),
    };
    // 20 writes of 64 KiB each: 1.25 MiB where 1 MiB is free.
    for i in 0..20 {
        driver.header(T_OUT, 128 * i, HEADER + 16 * i);
        driver.memory.write(UNTOUCHED, STATUS + i);
        let chain = [(HEADER + 16 * i, 16, false), (DATA, 65536, false), (STATUS + i, 1, true)];
        let head = driver.chain(0, &chain);
        driver.offer(0, head);
    }
    driver.memory.write_bytes(&[0xdd; 65536], DATA);
    driver.show(0);
    let mut events = Vec::new();
    let start = Instant::now();
    loop {
        let (answer, told) = ask(&link, &BlockRequest::Statistics("root".parse().unwrap()));
        events.extend(told);
        let FromChild::Reply(BackendReply::Disk(said)) = answer else { panic!("{answer:?}") };
        if said.held > 0 && said.held == said.in_flight && said.held + said.write.ops == 20 {
            assert_eq!((said.stalls, said.write.errors), (1, 0));
            return Some((process, link, driver, events));
        }
        assert!(start.elapsed() < Duration::from_secs(10), "{said:?}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn writes_to_a_full_disk_are_held_told_once_and_done_when_there_is_room() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_process, link, mut driver, events)) = filled(dir.path(), false) else { return };
    match &events[..] {
        [BackendEvent::IoError { device, operation, errno, .. }] => {
            assert_eq!((device.as_str(), operation.as_str(), *errno), ("root", "write", libc::ENOSPC));
        }
        other => panic!("{other:?}"),
    }
    // Reads go on meanwhile. Still full: held again, and told again.
    driver.frontend.set_vring_enable(0, true).unwrap();
    let (answer, mut told) = ask(&link, &BlockRequest::Retry);
    assert_eq!(answer, done());
    // Told with the first; the others are held by then, or soon.
    loop {
        let (answer, more) = ask(&link, &BlockRequest::Statistics("root".parse().unwrap()));
        told.extend(more);
        let FromChild::Reply(BackendReply::Disk(said)) = answer else { panic!("{answer:?}") };
        if !told.is_empty() && said.held == said.in_flight {
            break;
        }
    }
    assert_eq!(told.len(), 1);
    std::fs::remove_file(dir.path().join("small/ballast")).unwrap();
    assert_eq!(ask(&link, &BlockRequest::Retry).0, done());
    driver.wait(0, 20);
    assert!((0..20).all(|i| driver.memory.read::<u8>(STATUS + i) == S_OK));
    assert!(
        std::fs::read(dir.path().join("small/image")).unwrap()[..20 << 16].iter().all(|&byte| byte == 0xdd)
    );
    let said = statistics(&link, "root");
    assert_eq!((said.held, said.in_flight, said.write.errors, said.stalls), (0, 0, 0, 2));
}

#[test]
fn a_ring_with_held_requests_stops_and_the_log_keeps_them_for_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_process, link, mut driver, _)) = filled(dir.path(), true) else { return };
    let used = driver.used(0);
    assert_eq!(driver.frontend.get_vring_base(0).unwrap(), 20);
    assert_eq!(driver.used(0), used, "a held request was answered");
    std::fs::remove_file(dir.path().join("small/ballast")).unwrap();
    // Whoever serves the ring next finds them in the log.
    driver.start(0, used);
    driver.wait(0, 20);
    assert!((0..20).all(|i| driver.memory.read::<u8>(STATUS + i) == S_OK));
    assert_eq!(statistics(&link, "root").held, 0);
}

#[test]
fn a_ring_with_held_requests_and_no_log_stops_and_they_fail() {
    let dir = tempfile::tempdir().unwrap();
    let Some((_process, link, mut driver, _)) = filled(dir.path(), false) else { return };
    assert_eq!(driver.frontend.get_vring_base(0).unwrap(), 20);
    driver.wait(0, 20);
    let failed = (0..20).filter(|&i| driver.memory.read::<u8>(STATUS + i) == S_IOERR).count() as u64;
    let said = statistics(&link, "root");
    assert!(failed > 0);
    assert_eq!((said.held, said.write.errors), (0, failed));
}

#[test]
fn a_runners_memory_that_could_become_shorter_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (_program, link) = controlled(dir.path());
    let mut fds = Outgoing::default();
    let (disk, stream) = disk(&mut fds, "d", writable(&image(dir.path(), 1 << 20)), false, 1);
    assert_eq!(send(&link, vec![disk], fds), FromChild::Reply(BackendReply::Ready));
    let driver = Driver::negotiated_unsealed(stream, 1, 0);
    // Whether the frontend is told depends on what was negotiated; it is hung up on.
    let _ = driver.frontend.set_mem_table(&driver.regions());
    let why = match link.receive::<Answer>().unwrap().0 {
        FromChild::Event(BackendEvent::DeviceFailed { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(why.contains("F_SEAL_SHRINK"), "{why}");
}
