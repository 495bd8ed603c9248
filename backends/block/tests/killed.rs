//! The real `domus-block`, killed with -9 under load and replaced: no request is lost, none is answered twice.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use common::*;
use domus_driver::block::*;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

const KILLS: u64 = 40;
/// Requests in flight in each queue: chains of three in a ring of 64.
const DEPTH: u64 = 20;
const LEN: u64 = 64 << 10;
const QUEUES: usize = 2;

#[test]
fn a_backend_killed_under_load_is_replaced_and_every_request_is_answered_once() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), (QUEUES as u64 * DEPTH * LEN) as usize);
    let file = std::fs::File::open(&image).unwrap();
    let mut backend = Backend::start(dir.path(), &image, &["--queues", "2"]);
    let (mut driver, log, log_file) = Driver::logged(backend.connect(), QUEUES as u16, F_FLUSH);
    assert!(log.mmap_size > 0 && log.num_queues == 2);
    let (mut redone, mut slowest) = (0, Duration::ZERO);
    for round in 0..KILLS {
        // One buffer for all: what is written says the round.
        driver.memory.write_bytes(&vec![round as u8 + 1; LEN as usize], DATA);
        let mut heads = Vec::new();
        for queue in 0..QUEUES {
            for i in 0..DEPTH {
                let number = queue as u64 * DEPTH + i;
                let (header, status) = (HEADER + 16 * number, STATUS + number);
                driver.header(T_OUT, number * (LEN / 512), header);
                driver.memory.write(UNTOUCHED, status);
                let chain = [(header, 16, false), (DATA, LEN as u32, false), (status, 1, true)];
                let head = driver.chain(queue, &chain);
                driver.offer(queue, head);
                heads.push((queue, head));
            }
            driver.show(queue);
        }
        let moment = Instant::now();
        while moment.elapsed() < Duration::from_micros(round * 37 % 700) {
            std::hint::spin_loop();
        }
        backend.process.kill().unwrap();
        redone += (0..QUEUES)
            .map(|queue| driver.rings[queue].available.wrapping_sub(driver.used(queue)))
            .map(u64::from)
            .sum::<u64>();
        std::fs::remove_file(&backend.socket).unwrap();
        let start = Instant::now();
        backend = Backend::start(dir.path(), &image, &["--queues", "2"]);
        driver.take_over(backend.connect(), &log, &log_file);
        let mut used: Vec<(usize, u16)> = Vec::new();
        for queue in 0..QUEUES {
            used.extend(driver.wait(queue, DEPTH as u16).into_iter().map(|(head, _)| (queue, head)));
        }
        slowest = slowest.max(start.elapsed());
        used.sort_unstable();
        heads.sort_unstable();
        assert_eq!(used, heads, "round {round}");
        for number in 0..QUEUES as u64 * DEPTH {
            assert_eq!(driver.memory.read::<u8>(STATUS + number), S_OK, "round {round}, request {number}");
            let mut sector = [0; 512];
            file.read_exact_at(&mut sector, number * LEN + LEN - 512).unwrap();
            assert_eq!(sector, [round as u8 + 1; 512], "round {round}, request {number}");
        }
        for queue in 0..QUEUES {
            assert_eq!(driver.used(queue), driver.rings[queue].available, "answered twice in round {round}");
        }
    }
    println!("{KILLS} kills, {redone} requests not answered at the time, slowest replacement {slowest:?}");
    assert!(redone > 0, "no kill came while requests were in flight");
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
}

#[test]
fn logs_that_cannot_be_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), 1 << 20);
    let mut backend = Backend::start(dir.path(), &image, &[]);
    type Spoil = fn(&mut VhostUserInflight);
    let spoils: [Spoil; 5] = [
        |log| log.num_queues = 257,
        |log| log.queue_size = 1025,
        |log| log.queue_size = 128,
        |log| log.mmap_offset = u64::MAX - 64,
        |log| log.mmap_size = 64,
    ];
    for spoil in spoils {
        let mut driver = Driver::negotiated(backend.connect(), 1, 0);
        let (mut log, file) = driver.inflight();
        assert!(file.set_len(0).is_err(), "the log can be taken away under the backend");
        spoil(&mut log);
        assert!(driver.frontend.set_inflight_fd(&log, file.as_raw_fd()).is_err());
    }
    // A log that says nonsense.
    let mut driver = Driver::negotiated(backend.connect(), 1, 0);
    driver.set_memory();
    let (log, file) = driver.inflight();
    file.write_all_at(&[0xff; 1040], 0).unwrap();
    driver.frontend.set_inflight_fd(&log, file.as_raw_fd()).unwrap();
    driver.frontend.set_vring_enable(0, true).unwrap();
    assert!(
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| driver.start(0, 0))).is_err(),
        "a ring was started on a log that says nonsense"
    );
    let mut driver = Driver::new(backend.connect(), 1, 0);
    assert_eq!(driver.sector(0, 4), 4);
    backend.assert_alive();
}
