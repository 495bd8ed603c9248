//! The real `domus-block --socket-path`, driven over vhost-user: what it does for a driver that keeps the rules.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::time::Duration;

use common::*;
use domus_driver::block::*;
use domus_driver::frontend::{F_EVENT_IDX, F_INDIRECT};
use domus_driver::ring::{INDIRECT, NEXT, WRITE, put_descriptor};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;

const SECTORS: usize = 4096;

fn served(queues: u16, features: u64, more: &[&str]) -> (tempfile::TempDir, Backend, Driver) {
    let dir = tempfile::tempdir().unwrap();
    let image = image(dir.path(), SECTORS * 512);
    let count = queues.to_string();
    let mut backend = Backend::start(dir.path(), &image, &[&["--queues", &count], more].concat());
    let driver = Driver::new(backend.connect(), queues, features);
    (dir, backend, driver)
}

#[test]
fn what_is_written_is_read_back_and_is_in_the_image() {
    let (dir, _backend, mut driver) = served(1, F_FLUSH, &[]);
    assert_eq!(driver.sector(0, 77), 77);
    // Three buffers, one of them across the seam of two regions.
    let bytes: Vec<u8> = (0..8192_u32).map(|i| (i * 7) as u8).collect();
    driver.memory.write_bytes(&bytes[..1000], DATA);
    driver.memory.write_bytes(&bytes[1000..4000], SEAM - 1234);
    driver.memory.write_bytes(&bytes[4000..], DATA + 0x8000);
    let data = [(DATA, 1000, false), (SEAM - 1234, 3000, false), (DATA + 0x8000, 4192, false)];
    assert_eq!(driver.request(0, T_OUT, 100, &data), (S_OK, 1));
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]), (S_OK, 1));
    assert_eq!(driver.request(0, T_IN, 100, &[(SEAM - 5, 8192, true)]), (S_OK, 8193));
    assert_eq!(driver.memory.read_bytes(SEAM - 5, 8192), bytes);
    let image = std::fs::read(dir.path().join("image.raw")).unwrap();
    assert_eq!(image[51200..51200 + 8192], bytes);
    assert_eq!(driver.sector(0, 99), 99);
    assert_eq!(driver.sector(0, 116), 116);
}

#[test]
fn writes_are_durable_at_once_where_the_driver_cannot_flush() {
    let (_dir, _backend, mut driver) = served(1, 0, &[]);
    driver.memory.write(0x1234_5678_u64, DATA);
    assert_eq!(driver.request(0, T_OUT, 3, &[(DATA, 512, false)]), (S_OK, 1));
    assert_eq!(driver.sector(0, 3), 0x1234_5678);
}

#[test]
fn the_serial_and_the_configuration_space_are_what_was_asked_for() {
    let (_dir, _backend, mut driver) = served(3, 0, &["--serial", "abc-123"]);
    assert_eq!(driver.request(0, T_GET_ID, 0, &[(DATA, 20, true)]), (S_OK, 21));
    assert_eq!(driver.memory.read_bytes(DATA, 20), *b"abc-123\0\0\0\0\0\0\0\0\0\0\0\0\0");
    let flags = VhostUserConfigFlags::WRITABLE;
    let (_, config) = driver.frontend.get_config(0, 60, flags, &[0; 60]).unwrap();
    assert_eq!(config[..8], (SECTORS as u64).to_le_bytes());
    assert_eq!(config[20..24], 512_u32.to_le_bytes());
    assert_eq!(config[34..36], 3_u16.to_le_bytes());
    assert_eq!(driver.frontend.get_queue_num().unwrap(), 3);
    assert!(driver.frontend.get_max_mem_slots().unwrap() >= 8);
    // A read-only field: ignored.
    driver.frontend.set_config(0, flags, &[1]).unwrap();
    assert_eq!(driver.frontend.get_config(0, 60, flags, &[0; 60]).unwrap().1, config);
}

#[test]
fn the_header_may_be_in_pieces_and_the_status_in_the_last_data_buffer() {
    let (_dir, _backend, mut driver) = served(1, 0, &[]);
    driver.header(T_IN, 9, HEADER);
    // 4 + 12 bytes of header; one buffer for 512 bytes of data and the status behind them.
    let buffers = [(HEADER, 4, false), (HEADER + 4, 12, false), (STATUS - 512, 513, true)];
    assert_eq!(driver.raw(0, &buffers), (S_OK, 513));
    assert_eq!(driver.memory.read::<u64>(STATUS - 512), 9);
}

/// The bytes of the image, and how many of them have space on the disk.
fn bytes_and_space(dir: &tempfile::TempDir) -> (Vec<u8>, u64) {
    use std::os::unix::fs::MetadataExt;
    let path = dir.path().join("image.raw");
    let space = std::fs::metadata(&path).unwrap().blocks() * 512;
    (std::fs::read(&path).unwrap(), space)
}

#[test]
fn a_discard_gives_space_back_and_what_is_around_it_stays() {
    let (dir, _backend, mut driver) = served(1, F_FLUSH | F_DISCARD, &[]);
    assert_eq!(driver.request(0, T_FLUSH, 0, &[]).0, S_OK);
    let before = bytes_and_space(&dir).1;
    driver.segments(&[(1024, 256, 0), (2048, 256, 0)]);
    assert_eq!(driver.request(0, T_DISCARD, 0, &[(DATA, 32, false)]), (S_OK, 1));
    let (bytes, after) = bytes_and_space(&dir);
    assert_eq!(before - after, 256 << 10);
    assert!(bytes[1024 * 512..1280 * 512].iter().all(|&byte| byte == 0));
    for sector in [1023, 1280, 2047, 2304] {
        assert_eq!(driver.sector(0, sector), sector);
    }
}

#[test]
fn zeroes_are_written_and_keep_their_space_unless_they_may_give_it_back() {
    // Without flush everything must be durable when it is answered.
    for features in [F_WRITE_ZEROES, F_WRITE_ZEROES | F_FLUSH] {
        let (dir, _backend, mut driver) = served(1, features, &[]);
        let flushed = std::fs::File::open(dir.path().join("image.raw")).unwrap().sync_all();
        flushed.unwrap();
        let before = bytes_and_space(&dir).1;
        driver.segments(&[(1001, 300, 0)]);
        assert_eq!(driver.request(0, T_WRITE_ZEROES, 0, &[(DATA, 16, false)]), (S_OK, 1));
        driver.segments(&[(2048, 256, 1)]);
        assert_eq!(driver.request(0, T_WRITE_ZEROES, 0, &[(DATA, 16, false)]), (S_OK, 1));
        let (bytes, after) = bytes_and_space(&dir);
        assert_eq!(before - after, 128 << 10);
        assert!(bytes[1001 * 512..1301 * 512].iter().all(|&byte| byte == 0));
        assert!(bytes[2048 * 512..2304 * 512].iter().all(|&byte| byte == 0));
        for sector in [1000, 1301, 2047, 2304] {
            assert_eq!(driver.sector(0, sector), sector);
        }
    }
}

/// `tmpfs` punches holes and has no way to zero a range: the zeros are written.
#[test]
fn zeroes_are_written_where_the_file_system_cannot_make_them() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    let image = image(dir.path(), 32 << 20);
    let mut backend = Backend::start(dir.path(), &image, &[]);
    let mut driver = Driver::new(backend.connect(), 1, F_FLUSH | F_WRITE_ZEROES);
    driver.segments(&[(3, 30_001, 0), (40_000, 5, 1)]);
    assert_eq!(driver.request(0, T_WRITE_ZEROES, 0, &[(DATA, 32, false)]), (S_OK, 1));
    let bytes = std::fs::read(&image).unwrap();
    assert!(bytes[3 * 512..30_004 * 512].iter().all(|&byte| byte == 0));
    for sector in [2, 30_004, 39_999, 40_005] {
        assert_eq!(driver.sector(0, sector), sector);
    }
    assert_eq!(driver.request(0, T_OUT, 77, &[(SEAM - 256, 512, false)]), (S_OK, 1));
}

#[test]
fn chains_in_indirect_tables_are_served() {
    let (_dir, _backend, mut driver) = served(1, F_INDIRECT, &[]);
    // Longer than the ring: 100 sectors, each in its own buffer, in a table at an odd address.
    let table = DATA - 0x2001;
    driver.header(T_IN, 200, HEADER);
    put_descriptor(&driver.memory, table, 0, (HEADER, 16, NEXT, 1));
    for i in 0..100 {
        put_descriptor(&driver.memory, table, i + 1, (DATA + u64::from(i) * 4096, 512, NEXT | WRITE, i + 2));
    }
    put_descriptor(&driver.memory, table, 101, (STATUS, 1, WRITE, 0));
    driver.memory.write(UNTOUCHED, STATUS);
    driver.rings[0].set_descriptor(5, (table, 102 * 16, INDIRECT, 0));
    driver.offer(0, 5);
    driver.show(0);
    assert_eq!(driver.wait(0, 1), [(5, 51201)]);
    assert_eq!(driver.memory.read::<u8>(STATUS), S_OK);
    for i in 0..100 {
        assert_eq!(driver.memory.read::<u64>(DATA + i * 4096), 200 + i);
    }
}

#[test]
fn queues_work_beside_each_other_and_deep() {
    let (_dir, _backend, mut driver) = served(4, 0, &[]);
    // 16 chains of 3 descriptors in flight in each of 4 queues, 50 times over.
    for round in 0..50_u64 {
        for queue in 0..4 {
            for i in 0..16_u64 {
                let slot = queue as u64 * 16 + i;
                let (header, status) = (HEADER + 32 * slot, STATUS + slot);
                driver.header(T_IN, slot * 50 + round, header);
                driver.memory.write(UNTOUCHED, status);
                let head = driver
                    .chain(queue, &[(header, 16, false), (DATA + slot * 512, 512, true), (status, 1, true)]);
                driver.offer(queue, head);
            }
            driver.show(queue);
        }
        for queue in 0..4 {
            driver.wait(queue, 16);
            for slot in queue as u64 * 16..queue as u64 * 16 + 16 {
                assert_eq!(driver.memory.read::<u8>(STATUS + slot), S_OK);
                assert_eq!(driver.memory.read::<u64>(DATA + slot * 512), slot * 50 + round);
            }
        }
    }
}

#[test]
fn with_event_idx_the_driver_is_called_only_where_it_asked() {
    let (_dir, _backend, mut driver) = served(1, F_EVENT_IDX, &[]);
    let used_event = driver.rings[0].used_event();
    let available_event = driver.rings[0].available_event();
    counted(&driver.rings[0].call, 20);
    driver.memory.write(2_u16, used_event);
    assert_eq!(driver.sector(0, 1), 1);
    assert_eq!(driver.sector(0, 2), 2);
    assert_eq!(counted(&driver.rings[0].call, 50), 0, "called for an element the driver did not wait for");
    assert_eq!(driver.sector(0, 3), 3);
    assert_eq!(counted(&driver.rings[0].call, 5000), 1, "not called for the element the driver waits for");
    // The other way: the index to kick for moves along with what was taken.
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.memory.read::<u16>(available_event), 3);
}

#[test]
fn without_event_idx_the_flag_suppresses_calls() {
    let (_dir, _backend, mut driver) = served(1, 0, &[]);
    counted(&driver.rings[0].call, 20);
    driver.memory.write(1_u16, driver.rings[0].layout().available);
    assert_eq!(driver.sector(0, 1), 1);
    assert_eq!(counted(&driver.rings[0].call, 50), 0);
    driver.memory.write(0_u16, driver.rings[0].layout().available);
    assert_eq!(driver.sector(0, 2), 2);
    assert_eq!(counted(&driver.rings[0].call, 5000), 1);
}

#[test]
fn get_vring_base_finishes_what_is_in_flight_and_the_ring_goes_on_from_there() {
    let (_dir, _backend, mut driver) = served(1, 0, &[]);
    for i in 0..20 {
        driver.header(T_IN, i, HEADER + 32 * i);
        let head = driver
            .chain(0, &[(HEADER + 32 * i, 16, false), (DATA + i * 512, 512, true), (STATUS + i, 1, true)]);
        driver.offer(0, head);
    }
    driver.show(0);
    std::thread::sleep(Duration::from_millis(20));
    let base = driver.frontend.get_vring_base(0).unwrap();
    assert_eq!(base, 20);
    assert_eq!(u32::from(driver.used(0)), base, "the ring stopped with requests in flight");
    driver.wait(0, 20);
    // Made available while nobody serves, and kicked: neither is lost.
    driver.header(T_IN, 30, HEADER);
    let head = driver.chain(0, &[(HEADER, 16, false), (DATA, 512, true), (STATUS, 1, true)]);
    driver.offer(0, head);
    driver.show(0);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(driver.used(0), 20);
    driver.start(0, base as u16);
    driver.wait(0, 1);
    assert_eq!(driver.memory.read::<u64>(DATA), 30);
    // Disabled and enabled again.
    driver.frontend.set_vring_enable(0, false).unwrap();
    driver.frontend.set_vring_enable(0, true).unwrap();
    assert_eq!(driver.sector(0, 31), 31);
}

#[test]
fn memory_by_slots_and_a_frontend_that_comes_back() {
    let (_dir, mut backend, driver) = served(2, 0, &[]);
    drop(driver);
    let mut driver = Driver::negotiated(backend.connect(), 2, 0);
    for region in driver.regions() {
        driver.frontend.add_mem_region(&region).unwrap();
    }
    driver.start(0, 0);
    driver.start(1, 0);
    assert_eq!(driver.sector(1, 5), 5);
    // A region goes and comes back under a running ring.
    let upper = driver.regions()[1];
    driver.frontend.remove_mem_region(&upper).unwrap();
    assert_eq!(driver.request(0, T_IN, 0, &[(SEAM, 512, true)]).0, S_IOERR);
    driver.frontend.add_mem_region(&upper).unwrap();
    assert_eq!(driver.request(0, T_IN, 0, &[(SEAM, 512, true)]).0, S_OK);
    driver.frontend.reset_device().unwrap();
    driver.rings[0].available = 0;
    driver.rings[0].seen = 0;
    let header = driver.rings[0].layout().available;
    driver.memory.write(0_u32, header);
    driver.memory.write(0_u32, driver.rings[0].layout().used);
    driver.start(0, 0);
    assert_eq!(driver.sector(0, 6), 6);
}

#[test]
fn an_image_that_became_shorter_gives_errors_and_nothing_worse() {
    let (dir, mut backend, mut driver) = served(1, 0, &[]);
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("image.raw")).unwrap();
    file.set_len(512 * 100).unwrap();
    assert_eq!(driver.request(0, T_IN, 99, &[(DATA, 1024, true)]).0, S_IOERR);
    assert_eq!(driver.request(0, T_IN, 100, &[(DATA, 1024, true)]).0, S_IOERR);
    assert_eq!(driver.sector(0, 99), 99);
    backend.assert_alive();
}
