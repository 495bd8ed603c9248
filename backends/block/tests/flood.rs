//! Guests and frontends that do what is worth a line in the host's log, as often as they can: the log does not grow
//! with them.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::time::Instant;

use common::*;
use domus_driver::block::*;
use vhost::VhostBackend;

const SECTORS: u64 = 4096;

/// Lines that may be said in ten seconds, and what begins in one such time may end in the next.
fn allowed(start: Instant) -> usize {
    10 * (start.elapsed().as_secs() as usize / 10 + 2)
}

/// One request a thousand times over, through a ring that is full each time; the status is that of the last.
fn flood(driver: &mut Driver, kind: u32, sector: u64) -> u8 {
    driver.header(kind, sector, HEADER);
    let head = driver.chain(0, &[(HEADER, 16, false), (DATA, 512, kind == T_IN), (STATUS, 1, true)]);
    for _ in 0..16 {
        driver.memory.write(UNTOUCHED, STATUS);
        (0..SIZE).for_each(|_| driver.offer(0, head));
        driver.show(0);
        driver.wait(0, SIZE);
    }
    driver.memory.read(STATUS)
}

#[test]
fn whoever_floods_the_backend_with_errors_gets_a_few_lines_of_log() {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), SECTORS as usize * 512);
    let log = dir.path().join("log");
    let words = File::create(&log).unwrap();
    let start = Instant::now();
    let args = ["--blk-file", image.to_str().unwrap()];
    let mut backend = Backend::logged(dir.path(), &args, words.into());
    let mut driver = Driver::new(backend.connect(), 1, 0);

    // Requests against the rules, requests that nobody offers, and requests that the image has no bytes for any more.
    assert_eq!(flood(&mut driver, T_IN, SECTORS), S_IOERR);
    assert_eq!(flood(&mut driver, T_OUT, u64::MAX), S_IOERR);
    assert_eq!(flood(&mut driver, 99, 0), S_UNSUPP);
    File::options().write(true).open(&image).unwrap().set_len(512 * 100).unwrap();
    assert_eq!(flood(&mut driver, T_IN, 2000), S_IOERR);

    // Rings that cannot be made sense of, and are reset.
    for _ in 0..100 {
        let base = driver.rings[0].available;
        driver.offer(0, SIZE);
        driver.show(0);
        assert_eq!(counted(&driver.errors[0], 5000), 1);
        driver.frontend.get_vring_base(0).unwrap();
        driver.rings[0].available = base;
        driver.show(0);
        driver.start(0, base);
    }
    assert_eq!(driver.sector(0, 7), 7);
    drop(driver);

    // Frontends that are hung up on.
    for _ in 0..100 {
        let mut stream = backend.connect();
        stream.write_all(&[0xff; 64]).unwrap();
        let _ = stream.read(&mut [0; 64]);
    }
    assert_eq!(Driver::new(backend.connect(), 1, 0).sector(0, 8), 8);
    backend.assert_alive();

    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().count();
    assert!((1..=allowed(start)).contains(&lines), "{lines} lines:\n{text}");
}
