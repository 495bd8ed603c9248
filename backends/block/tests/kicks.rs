//! A frontend that gives something else than an eventfd to be kicked by: it costs nobody's processor time, and the next
//! one is served.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod driver;

use std::fs::File;
use std::io::Write;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use driver::*;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vmm_sys_util::eventfd::EventFd;

const SECTORS: u64 = 4096;

/// CPU time of all threads of a process.
fn cpu_time(pid: u32) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let times = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("schedstat")).unwrap());
    Duration::from_nanos(times.map(|text| text.split(' ').next().unwrap().parse::<u64>().unwrap()).sum())
}

#[expect(unsafe_code, reason = "only the kernel tells an eventfd from another descriptor")]
fn as_event(fd: impl Into<OwnedFd>) -> EventFd {
    // SAFETY: the descriptor is open, and whoever owned it has given it away.
    unsafe { EventFd::from_raw_fd(fd.into().into_raw_fd()) }
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
        ("/dev/zero", as_event(File::open("/dev/zero").unwrap())),
        ("/dev/null", as_event(File::open("/dev/null").unwrap())),
        ("a file", as_event(full)),
        ("a socket full of bytes", as_event(reader)),
        ("a socket that nobody holds the other end of", as_event(UnixStream::pair().unwrap().0)),
    ];
    for (what, kick) in kicks {
        let mut driver = Driver::negotiated(backend.connect(), 1, 0);
        driver.set_memory();
        driver.rings[0].kick = kick;
        driver.start(0, 0);
        let (before, start) = (cpu_time(backend.child.id()), Instant::now());
        std::thread::sleep(Duration::from_millis(300));
        let (used, time) = (cpu_time(backend.child.id()) - before, start.elapsed());
        assert!(used < time / 10, "{what}: {used:?} of {time:?}");
        drop(driver);
        assert_eq!(Driver::new(backend.connect(), 1, 0).sector(0, 9), 9, "after {what}");
    }
    backend.assert_alive();
}
