//! The real `domus-block --socket-path` against drivers and frontends that break each rule once: it answers as virtio
//! says, or stops that ring, and serves the next request.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use common::*;
use domus_driver::block::*;
use domus_driver::event::lent;
use domus_driver::frontend::{F_INDIRECT, F_PROTOCOL, F_VERSION_1, OWN};
use domus_driver::ring::{INDIRECT, NEXT, put_descriptor};
use vhost::vhost_user::VhostUserFrontend;
use vhost::{VhostBackend, VringConfigData};

const SECTORS: u64 = 4096;
/// Outside the guest's memory.
const NOWHERE: u64 = MEMORY + 0x1000;

fn served(queues: u16, features: u64, more: &[&str]) -> (tempfile::TempDir, Backend, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), SECTORS as usize * 512);
    let count = queues.to_string();
    let mut backend = Backend::start(dir.path(), &image, &[&["--queues", &count], more].concat());
    let driver = Driver::new(backend.connect(), queues, features);
    (dir, backend, driver)
}

/// What is done, with which type, at which sector, with which data, and the status that the guest sees.
type Case<'a> = (&'a str, u32, u64, Vec<(u64, u32, bool)>, u8);
/// What is done, with which chain, and the byte at [`STATUS`] and the used length afterwards.
type RawCase<'a> = (&'a str, &'a [(u64, u32, bool)], u8, u32);

/// Virtio 1.3 §5.2.6, each rule broken once: what the guest reads as the status.
#[test]
fn each_broken_request_has_its_status_and_the_next_one_is_served() {
    let (dir, mut backend, mut driver) = served(1, F_FLUSH, &[]);
    let before = std::fs::read(dir.path().join("image.raw")).unwrap();
    let input = |len| vec![(DATA, len, true)];
    let output = |len| vec![(DATA, len, false)];
    let cases: &[Case<'_>] = &[
        ("read of the sector after the last", T_IN, SECTORS, input(512), S_IOERR),
        ("read that ends after the last sector", T_IN, SECTORS - 1, input(1024), S_IOERR),
        ("read at the end of all numbers", T_IN, u64::MAX, input(512), S_IOERR),
        ("read of a sector whose byte offset wraps around", T_IN, 1 << 55, input(512), S_IOERR),
        ("read of half a sector", T_IN, 0, input(256), S_IOERR),
        ("read of a sector and a byte", T_IN, 0, input(513), S_IOERR),
        ("read with data to write", T_IN, 0, output(512), S_IOERR),
        ("read of 4 GiB", T_IN, 0, input(u32::MAX), S_IOERR),
        ("read to nowhere", T_IN, 0, vec![(NOWHERE, 512, true)], S_IOERR),
        ("read to where memory ends", T_IN, 0, vec![(MEMORY - 256, 512, true)], S_IOERR),
        ("read to an address that wraps around", T_IN, 0, vec![(u64::MAX - 100, 512, true)], S_IOERR),
        ("write after the last sector", T_OUT, SECTORS, output(512), S_IOERR),
        ("write of half a sector", T_OUT, 0, output(256), S_IOERR),
        ("write with a buffer to read", T_OUT, 0, input(512), S_IOERR),
        ("write from nowhere", T_OUT, 0, vec![(DATA, 512, false), (NOWHERE, 512, false)], S_IOERR),
        ("write of 16 GiB", T_OUT, 0, vec![(DATA, u32::MAX, false); 4], S_IOERR),
        ("id in too small a buffer", T_GET_ID, 0, input(19), S_IOERR),
        ("id in too large a buffer", T_GET_ID, 0, input(21), S_IOERR),
        ("id to nowhere", T_GET_ID, 0, vec![(NOWHERE, 20, true)], S_IOERR),
        ("a secure erase, not offered", 14, 0, output(16), S_UNSUPP),
        ("a SCSI command", 2, 0, vec![], S_UNSUPP),
        ("a type that does not exist", u32::MAX, 0, vec![], S_UNSUPP),
        ("read of nothing at the end", T_IN, SECTORS, vec![], S_OK),
        ("flush with data and a sector", T_FLUSH, 7, output(512), S_OK),
    ];
    for (case, kind, sector, data, status) in cases {
        assert_eq!(driver.request(0, *kind, *sector, data).0, *status, "{case}");
        assert_eq!(driver.sector(0, 42), 42, "the read after: {case}");
    }
    // Chains that are no request.
    driver.header(T_IN, 0, HEADER);
    let raw: &[RawCase<'_>] = &[
        ("a header of 15 bytes", &[(HEADER, 15, false), (STATUS, 1, true)], S_IOERR, 1),
        ("no header", &[(STATUS, 1, true)], S_IOERR, 1),
        ("a header nowhere", &[(NOWHERE, 16, false), (STATUS, 1, true)], S_IOERR, 1),
        ("no status", &[(HEADER, 16, false)], UNTOUCHED, 0),
        ("an empty status", &[(HEADER, 16, false), (STATUS, 0, true)], UNTOUCHED, 0),
        ("a status nowhere", &[(HEADER, 16, false), (DATA, 512, true), (NOWHERE, 1, true)], UNTOUCHED, 0),
        ("a status at the end of all numbers", &[(HEADER, 16, false), (u64::MAX, 2, true)], UNTOUCHED, 0),
    ];
    for (case, buffers, status, used) in raw {
        driver.header(T_IN, 0, HEADER);
        assert_eq!(driver.raw(0, buffers), (*status, *used), "{case}");
        assert_eq!(driver.sector(0, 42), 42, "the read after: {case}");
    }
    backend.assert_alive();
    assert!(
        std::fs::read(dir.path().join("image.raw")).unwrap() == before,
        "a refused write changed the image"
    );
}

/// What is done, with which type, and the segments and the bytes of them that are given.
type SegmentCase<'a> = (&'a str, u32, &'a [(u64, u32, u32)], u32, u8);

/// Virtio 1.3 §5.2.6.1 and §5.2.6.2 of discard and write-zeroes, each rule broken once.
#[test]
fn each_broken_discard_and_write_zeroes_has_its_status_and_changes_nothing() {
    let (dir, mut backend, mut driver) = served(1, F_FLUSH, &[]);
    let before = std::fs::read(dir.path().join("image.raw")).unwrap();
    let fits = (8, 8, 0);
    let cases: &[SegmentCase<'_>] = &[
        ("a discard of nothing", T_DISCARD, &[], 0, S_IOERR),
        ("half a segment", T_DISCARD, &[fits], 8, S_IOERR),
        ("a segment and a half", T_WRITE_ZEROES, &[fits, fits], 24, S_IOERR),
        ("more segments than there may be", T_DISCARD, &[fits; 17], 272, S_IOERR),
        ("more sectors than there may be", T_WRITE_ZEROES, &[(0, (1 << 21) + 1, 0)], 16, S_IOERR),
        ("a discard beyond the end", T_DISCARD, &[(SECTORS, 1, 0)], 16, S_IOERR),
        ("a discard across the end", T_DISCARD, &[(SECTORS - 1, 2, 0)], 16, S_IOERR),
        ("a start at the end of all numbers", T_WRITE_ZEROES, &[(u64::MAX, 8, 0)], 16, S_IOERR),
        ("a start whose byte offset wraps around", T_DISCARD, &[(1 << 55, 8, 0)], 16, S_IOERR),
        ("a good segment before a bad one", T_WRITE_ZEROES, &[fits, (SECTORS, 8, 0)], 32, S_IOERR),
        ("a discard with the flag of write-zeroes", T_DISCARD, &[(8, 8, 1)], 16, S_UNSUPP),
        ("a reserved flag of a discard", T_DISCARD, &[(8, 8, 2)], 16, S_UNSUPP),
        ("a reserved flag of write-zeroes", T_WRITE_ZEROES, &[(8, 8, 3)], 16, S_UNSUPP),
        ("no sectors at all", T_WRITE_ZEROES, &[(8, 0, 0)], 16, S_OK),
    ];
    for (case, kind, segments, given, status) in cases {
        driver.segments(segments);
        assert_eq!(driver.request(0, *kind, 0, &[(DATA, *given, false)]).0, *status, "{case}");
        assert_eq!(driver.sector(0, 42), 42, "the read after: {case}");
    }
    driver.segments(&[fits]);
    assert_eq!(driver.request(0, T_DISCARD, 0, &[(NOWHERE, 16, false)]).0, S_IOERR);
    assert_eq!(driver.request(0, T_DISCARD, 0, &[(DATA, 16, false), (DATA, 16, true)]).0, S_IOERR);
    backend.assert_alive();
    assert!(
        std::fs::read(dir.path().join("image.raw")).unwrap() == before,
        "a refused request changed the image"
    );
}

#[test]
fn a_read_only_disk_says_so_and_refuses_to_write() {
    const F_RO: u64 = 1 << 5;
    let (dir, _backend, mut driver) = served(1, F_RO | F_FLUSH, &["--read-only"]);
    let before = std::fs::read(dir.path().join("image.raw")).unwrap();
    assert_eq!(driver.request(0, T_OUT, 0, &[(DATA, 512, false)]).0, S_IOERR);
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
    driver.segments(&[(0, 8, 0)]);
    assert_eq!(driver.request(0, T_DISCARD, 0, &[(DATA, 16, false)]).0, S_UNSUPP);
    assert_eq!(driver.request(0, T_WRITE_ZEROES, 0, &[(DATA, 16, false)]).0, S_UNSUPP);
    assert_eq!(driver.sector(0, 1), 1);
    assert!(std::fs::read(dir.path().join("image.raw")).unwrap() == before);
}

/// What a driver can do to its ring.
type Attack = fn(&mut Driver);

/// Rings that cannot be made sense of (virtio 1.3 §2.7): that ring stands still, its neighbour goes on, and after a
/// reset it is served again.
#[test]
fn each_broken_ring_stands_still_alone_until_it_is_reset() {
    let attacks: &[(&str, Attack)] = &[
        ("available index beyond the ring", |driver| {
            driver.rings[0].available = driver.rings[0].available.wrapping_add(SIZE + 1);
        }),
        ("available index behind", |driver| {
            driver.rings[0].available = driver.rings[0].available.wrapping_sub(1)
        }),
        ("head that does not exist", |driver| driver.offer(0, SIZE)),
        ("head at the end of all numbers", |driver| driver.offer(0, u16::MAX)),
        ("next that does not exist", |driver| {
            driver.rings[0].set_descriptor(0, (HEADER, 16, NEXT, SIZE));
            driver.offer(0, 0);
        }),
        ("a descriptor that follows itself", |driver| {
            driver.rings[0].set_descriptor(0, (HEADER, 16, NEXT, 0));
            driver.offer(0, 0);
        }),
        ("a loop of two", |driver| {
            driver.rings[0].set_descriptor(0, (HEADER, 16, NEXT, 1));
            driver.rings[0].set_descriptor(1, (DATA, u32::MAX, NEXT, 0));
            driver.offer(0, 0);
        }),
        ("readable behind writable", |driver| {
            let head = driver.chain(0, &[(DATA, 512, true), (HEADER, 16, false), (STATUS, 1, true)]);
            driver.offer(0, head);
        }),
        ("indirect and next", |driver| {
            driver.rings[0].set_descriptor(0, (DATA, 32, INDIRECT | NEXT, 1));
            driver.offer(0, 0);
        }),
        ("indirect table of no entries", |driver| {
            driver.rings[0].set_descriptor(0, (DATA, 0, INDIRECT, 0));
            driver.offer(0, 0);
        }),
        ("indirect table of one and a half entries", |driver| {
            driver.rings[0].set_descriptor(0, (DATA, 24, INDIRECT, 0));
            driver.offer(0, 0);
        }),
        ("indirect table of 4 GiB", |driver| {
            driver.rings[0].set_descriptor(0, (DATA, 0xffff_fff0, INDIRECT, 0));
            driver.offer(0, 0);
        }),
        ("indirect table nowhere", |driver| {
            driver.rings[0].set_descriptor(0, (NOWHERE, 32, INDIRECT, 0));
            driver.offer(0, 0);
        }),
        ("indirect in indirect", |driver| {
            put_descriptor(&driver.memory, DATA, 0, (DATA, 32, INDIRECT, 0));
            driver.rings[0].set_descriptor(0, (DATA, 32, INDIRECT, 0));
            driver.offer(0, 0);
        }),
        ("loop in an indirect table", |driver| {
            put_descriptor(&driver.memory, DATA, 0, (HEADER, 16, NEXT, 0));
            driver.rings[0].set_descriptor(0, (DATA, 32, INDIRECT, 0));
            driver.offer(0, 0);
        }),
        ("next beyond an indirect table", |driver| {
            put_descriptor(&driver.memory, DATA, 0, (HEADER, 16, NEXT, 2));
            driver.rings[0].set_descriptor(0, (DATA, 32, INDIRECT, 0));
            driver.offer(0, 0);
        }),
    ];
    let (_dir, mut backend, mut driver) = served(2, F_INDIRECT, &[]);
    for (case, attack) in attacks {
        assert_eq!(driver.sector(0, 1), 1, "before: {case}");
        let base = driver.rings[0].available;
        attack(&mut driver);
        driver.show(0);
        assert_eq!(counted(&driver.errors[0], 5000), 1, "not noticed: {case}");
        assert_eq!(driver.sector(1, 2), 2, "the neighbour after: {case}");
        assert_eq!(driver.used(0), driver.rings[0].seen, "used something: {case}");
        assert_eq!(driver.frontend.get_vring_base(0).unwrap(), u32::from(base), "{case}");
        // The driver resets its ring.
        driver.rings[0].available = base;
        driver.show(0);
        driver.start(0, base);
        backend.assert_alive();
    }
    assert_eq!(driver.sector(0, 3), 3);
}

#[test]
fn an_indirect_table_that_was_not_negotiated_breaks_the_ring() {
    let (_dir, mut backend, mut driver) = served(2, 0, &[]);
    driver.rings[0].set_descriptor(0, (DATA, 32, INDIRECT, 0));
    driver.offer(0, 0);
    driver.show(0);
    assert_eq!(counted(&driver.errors[0], 5000), 1);
    assert_eq!(driver.sector(1, 2), 2);
    backend.assert_alive();
}

#[test]
fn one_head_offered_many_times_is_served_each_time() {
    let (_dir, mut backend, mut driver) = served(1, 0, &[]);
    driver.header(T_IN, 5, HEADER);
    let head = driver.chain(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    for _ in 0..SIZE {
        driver.offer(0, head);
    }
    driver.show(0);
    let used = driver.wait(0, SIZE);
    assert!(used.iter().all(|&element| element == (head, 513)));
    assert_eq!(driver.sector(0, 6), 6);
    backend.assert_alive();
}

/// Rings and regions that a frontend may not set up: it is hung up on, and the next one is served.
#[test]
fn a_frontend_that_breaks_the_protocol_is_hung_up_on_and_the_next_one_is_served() {
    let (_dir, mut backend, driver) = served(1, 0, &[]);
    drop(driver);
    let with = |driver: &Driver, change: fn(&mut VringConfigData)| {
        let mut addresses = driver.addresses(0);
        change(&mut addresses);
        addresses
    };
    type Offence<'a> = &'a dyn Fn(&mut Driver) -> bool;
    let offences: &[(&str, Offence<'_>)] = &[
        ("a feature that was not offered", &|d| d.frontend.set_features(1 << 60).is_err()),
        ("other features while a ring runs", &|d| {
            d.set_memory();
            d.start(0, 0);
            // QEMU says the same again for each queue pair.
            let same = F_VERSION_1 | F_PROTOCOL;
            d.frontend.set_features(same).unwrap();
            assert_eq!(d.sector(0, 5), 5);
            d.frontend.set_features(same | F_INDIRECT).is_err()
        }),
        ("a region beyond its file", &|d| {
            let mut regions = d.regions();
            regions[1].memory_size += 0x1000;
            d.frontend.set_mem_table(&regions).is_err()
        }),
        ("regions that overlap", &|d| {
            let mut regions = d.regions();
            regions[1].guest_phys_addr -= 0x1000;
            d.frontend.set_mem_table(&regions).is_err()
        }),
        ("a region that was never added", &|d| {
            let region = d.regions()[0];
            d.frontend.remove_mem_region(&region).is_err()
        }),
        ("a region twice", &|d| {
            let region = d.regions()[0];
            d.frontend.add_mem_region(&region).unwrap();
            d.frontend.add_mem_region(&region).is_err()
        }),
        ("a ring in no region", &|d| start_with(d, with(d, |a| a.desc_table_addr += 1 << 40))),
        ("a ring across two regions", &|d| start_with(d, with(d, |a| a.used_ring_addr = OWN + SEAM - 0x10))),
        ("a ring without memory", &|d| {
            d.start(0, 0);
            true
        }),
    ];
    for (offence, commit) in offences {
        let mut driver = Driver::negotiated(backend.connect(), 1, 0);
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| commit(&mut driver)));
        assert!(refused.unwrap_or(true), "accepted: {offence}");
        drop(driver);
        let mut driver = Driver::new(backend.connect(), 1, 0);
        assert_eq!(driver.sector(0, 4), 4, "the frontend after: {offence}");
    }
    // Bytes that are no message.
    for bytes in [&[0xff_u8; 64][..], &[0; 12], &[1, 0, 0, 0, 1, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]] {
        let mut stream = backend.connect();
        stream.write_all(bytes).unwrap();
        hung_up(&mut stream);
    }
    // A message that never ends, and one with half a header.
    drop(backend.connect());
    backend.connect().write_all(&[1, 0]).unwrap();
    let mut driver = Driver::new(backend.connect(), 1, 0);
    assert_eq!(driver.sector(0, 8), 8);
    backend.assert_alive();
}

fn start_with(driver: &mut Driver, addresses: VringConfigData) -> bool {
    let regions = driver.regions();
    driver.frontend.set_mem_table(&regions).unwrap();
    driver.frontend.set_vring_num(0, SIZE).unwrap();
    driver.frontend.set_vring_addr(0, &addresses).unwrap();
    driver.frontend.set_vring_enable(0, true).unwrap();
    driver.frontend.set_vring_kick(0, &lent(&driver.rings[0].kick).unwrap()).is_err()
}

fn hung_up(stream: &mut UnixStream) {
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
    let end = stream.read(&mut [0; 64]);
    assert!(
        matches!(&end, Ok(0)) || end.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
        "not hung up on: {end:?}"
    );
}
