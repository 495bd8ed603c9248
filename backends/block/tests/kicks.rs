//! A frontend that gives something else than an eventfd to be kicked by: it is refused, or costs nobody's processor
//! time, and the next one is served.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::*;
use domus_driver::block::*;
use domus_driver::frontend::{OWN, run, set_up};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::memfd::{MFdFlags, memfd_create};

const SECTORS: u64 = 4096;

/// CPU time of all threads of a process.
fn cpu_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let times = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap());
    Duration::from_nanos(times.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum())
}

#[test]
fn a_kick_that_is_no_eventfd_costs_no_processor_time() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), SECTORS as usize * 512);
    let mut backend = Backend::start(dir.path(), &image, &[]);
    let mut full = File::from(memfd_create("full", MFdFlags::MFD_CLOEXEC).unwrap());
    full.write_all(&[1; 4096]).unwrap();
    let (mut writer, reader) = UnixStream::pair().unwrap();
    writer.write_all(&[1; 4096]).unwrap();
    let ready = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap();
    let (_, always) = UnixStream::pair().unwrap();
    ready.add(&always, EpollEvent::new(EpollFlags::EPOLLIN, 0)).unwrap();
    let kicks = [
        ("/dev/zero", File::open("/dev/zero").unwrap(), false),
        ("/dev/null", File::open("/dev/null").unwrap(), false),
        ("a file", full, false),
        ("a socket full of bytes", OwnedFd::from(reader).into(), false),
        ("a socket without a peer", OwnedFd::from(UnixStream::pair().unwrap().0).into(), false),
        ("an epoll that is always ready", ready.0.into(), true),
    ];
    for (what, kick, anonymous) in kicks {
        let mut driver = Driver::negotiated(backend.connect(), 1, 0);
        driver.set_memory();
        driver.rings[0].kick = kick;
        set_up(&driver.frontend, 0, &driver.rings[0], OWN, 0).unwrap();
        assert_eq!(run(&mut driver.frontend, 0, &driver.rings[0]).is_ok(), anonymous, "{what}");
        let (before, start) = (cpu_time(backend.process.pid()), Instant::now());
        std::thread::sleep(Duration::from_millis(300));
        let (used, time) = (cpu_time(backend.process.pid()) - before, start.elapsed());
        assert!(used < time / 10, "{what}: {used:?} of {time:?}");
        drop(driver);
        assert_eq!(Driver::new(backend.connect(), 1, 0).sector(0, 9), 9, "after {what}");
    }
    backend.assert_alive();
}
