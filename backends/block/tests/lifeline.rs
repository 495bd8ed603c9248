//! What a killed `domus-block` leaves behind: its lifeline hangs up when the kernel has finished everything that the
//! process asked for and has freed its rings; a lock on an image ends with the last operation on it, which is sooner.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use common::dom0::*;
use common::*;
use domus_driver::block::*;
use domus_startup::fds::Outgoing;
use nix::fcntl::{FcntlArg, fcntl};
use nix::poll::{PollFd, PollFlags, poll};
use shared_abi::control::{BackendReply, Cache, FromChild, IoLimits};

const KILLS: usize = 25;
/// Requests in flight in each of two queues.
const DEPTH: u64 = 20;
const LEN: u64 = 64 << 10;

fn hung_up(lifeline: &OwnedFd, ms: u16) -> bool {
    let mut fds = [PollFd::new(lifeline.as_fd(), PollFlags::POLLIN)];
    poll(&mut fds, ms).unwrap() == 1 && fds[0].revents().unwrap().contains(PollFlags::POLLHUP)
}

/// A lock of the whole file that stays with its description, as dom0 takes it.
fn whole() -> libc::flock {
    let (l_type, l_whence) = (libc::F_WRLCK as libc::c_short, libc::SEEK_SET as libc::c_short);
    libc::flock { l_type, l_whence, l_start: 0, l_len: 0, l_pid: 0 }
}

/// Kills processes under load, and says how long it took from there to the end of the lock and to the hang-up.
fn kill(dir: &Path, cache: Cache) {
    let path = image(dir, (2 * DEPTH * LEN) as usize);
    let flags = if cache == Cache::None { libc::O_DIRECT } else { 0 };
    let open =
        || -> File { OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap() };
    let (mut unlocks, mut times) = (Vec::new(), Vec::new());
    for round in 0..KILLS {
        let (mut process, link) = controlled(dir);
        let mut fds = Outgoing::default();
        let locked = open();
        fcntl(&locked, FcntlArg::F_OFD_SETLK(&whole())).unwrap();
        let (mut root, socket) = disk(&mut fds, "root", locked, false, 2);
        root.cache = cache;
        let (answer, lifeline) = send_limited(&link, vec![root], fds, IoLimits::default());
        assert_eq!(answer, FromChild::Reply(BackendReply::Ready));
        let mut driver = Driver::new(socket, 2, F_FLUSH);
        for queue in 0..2 {
            for i in 0..DEPTH {
                let number = queue as u64 * DEPTH + i;
                let kind = if i % 2 == 0 { T_OUT } else { T_IN };
                driver.header(kind, number * (LEN / 512), HEADER + 16 * number);
                let data = (DATA, LEN as u32, kind == T_IN);
                let head = driver
                    .chain(queue, &[(HEADER + 16 * number, 16, false), data, (STATUS + number, 1, true)]);
                driver.offer(queue, head);
            }
            driver.show(queue);
        }
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_micros(round as u64 * 97 % 1500) {
            std::hint::spin_loop();
        }
        assert!(!hung_up(&lifeline, 0), "hung up while the process lives");
        let start = Instant::now();
        process.child().kill().unwrap();
        fcntl(open(), FcntlArg::F_OFD_SETLKW(&whole())).unwrap();
        unlocks.push(start.elapsed());
        assert!(hung_up(&lifeline, 10_000), "no hang-up after the process was killed");
        times.push(start.elapsed());
        process.end().unwrap();
        std::fs::remove_file(dir.join("block.sock")).unwrap();
    }
    for (what, times) in [("end of the lock", &mut unlocks), ("hang-up", &mut times)] {
        times.sort_unstable();
        let (median, longest) = (times[KILLS / 2], times[KILLS - 1]);
        println!("{cache:?}: from kill to {what}: median {median:?}, longest {longest:?}");
    }
}

#[test]
fn it_hangs_up_soon_after_a_kill_with_direct_io_in_flight() {
    kill(tempfile::tempdir().unwrap().path(), Cache::None);
}

#[test]
fn it_hangs_up_soon_after_a_kill_with_the_page_cache_at_work() {
    kill(tempfile::tempdir().unwrap().path(), Cache::Writeback);
}
