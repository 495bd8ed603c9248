//! A frontend that gives something else than an eventfd to be kicked by: it costs nobody's processor time, and the next
//! one is served.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::*;
use domus_driver::block::*;
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
    let kicks = [
        ("/dev/zero", File::open("/dev/zero").unwrap()),
        ("/dev/null", File::open("/dev/null").unwrap()),
        ("a file", full),
        ("a socket full of bytes", OwnedFd::from(reader).into()),
        ("a socket that nobody holds the other end of", OwnedFd::from(UnixStream::pair().unwrap().0).into()),
    ];
    for (what, kick) in kicks {
        let mut driver = Driver::negotiated(backend.connect(), 1, 0);
        driver.set_memory();
        driver.rings[0].kick = kick;
        driver.start(0, 0);
        let (before, start) = (cpu_time(backend.process.pid()), Instant::now());
        std::thread::sleep(Duration::from_millis(300));
        let (used, time) = (cpu_time(backend.process.pid()) - before, start.elapsed());
        assert!(used < time / 10, "{what}: {used:?} of {time:?}");
        drop(driver);
        assert_eq!(Driver::new(backend.connect(), 1, 0).sector(0, 9), 9, "after {what}");
    }
    backend.assert_alive();
}
