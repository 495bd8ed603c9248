//! The real program between a real tap and a driver of our own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use common::wire::{self, Wire, frame, is_tcp, tcp};
use common::{Answer, Program, start};
use domus_driver::frames::{PLAIN, tcp_is_complete};
use domus_driver::frontend::{F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use domus_driver::net::{Guest, SENT, SIZE, rx_buffer};
use domus_driver::process::private_memory;
use domus_net::features;
use shared_abi::control::BackendReply;

const USUAL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | features::MRG_RXBUF;

fn nic(wanted: u64) -> (Program, Wire, Guest) {
    wire::own_network();
    let (tap, wire) = wire::tap("t0");
    let (program, answer, mut streams) = start(vec![tap]);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    (program, wire, Guest::new(streams.remove(0), wanted))
}

#[test]
fn frames_of_the_guest_appear_on_the_tap_whole_and_in_order() {
    for wanted in [USUAL, F_VERSION_1] {
        let (_program, wire, guest) = nic(wanted);
        let mut guest = guest.run();
        for (seed, length) in (0..).zip([60, 61, 500, 1514]) {
            for piece in [2000, 12, 100] {
                guest.send(PLAIN, &frame(seed, length), piece);
                assert_eq!(wire.receive(), frame(seed, length), "{length} bytes in pieces of {piece}");
            }
        }
        for round in 0..1000_u32 {
            let sent = frame(round as u8, 60);
            guest.send(PLAIN, &sent, 2000);
            assert_eq!(wire.receive(), sent);
        }
    }
}

#[test]
fn frames_for_the_guest_are_merged_from_as_many_buffers_as_they_take() {
    for wanted in [USUAL, F_VERSION_1 | features::MRG_RXBUF] {
        let (_program, wire, guest) = nic(wanted);
        let mut guest = guest.run();
        guest.offer_buffers(128, 512);
        guest.rx().kick();
        for round in 0..300_usize {
            let sent = frame(round as u8, 60 + round * 7 % 1454);
            wire.send(PLAIN, &sent);
            let (header, got) = guest.receive();
            assert_eq!(got, sent, "round {round}");
            let buffers = (12 + sent.len()).div_ceil(512);
            assert_eq!(usize::from(u16::from_le_bytes([header[10], header[11]])), buffers);
        }
    }
}

#[test]
fn a_driver_that_merges_nothing_gets_one_buffer_for_each_frame() {
    let (_program, wire, guest) = nic(F_VERSION_1);
    let mut guest = guest.run();
    guest.offer_buffers(16, 1000);
    guest.rx().kick();
    wire.send(PLAIN, &frame(1, 1200));
    wire.send(PLAIN, &frame(2, 900));
    // The first fits in no buffer.
    let (header, got) = guest.receive();
    assert_eq!((got, header), (frame(2, 900), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]));
}

#[test]
fn buffers_offered_before_the_start_are_used_without_a_kick() {
    let (_program, wire, mut guest) = nic(USUAL);
    guest.offer_buffers(4, 2000);
    let bytes = guest.put(PLAIN, &frame(3, 60));
    guest.tx().set_descriptor(0, (SENT, bytes, 0, 0));
    guest.tx().offer(0);
    let mut guest = guest.run();
    assert_eq!(wire.receive(), frame(3, 60));
    wire.send(PLAIN, &frame(4, 600));
    assert_eq!(guest.receive().1, frame(4, 600));
}

#[test]
fn frames_wait_in_the_tap_while_the_guest_has_no_buffer() {
    let (program, wire, guest) = nic(USUAL);
    let mut guest = guest.run();
    for seed in 0..50 {
        wire.send(PLAIN, &frame(seed, 100));
    }
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = program.switches();
    std::thread::sleep(std::time::Duration::from_millis(500));
    assert_eq!(program.switches(), before, "a queue without buffers polls the tap");
    guest.offer_buffers(8, 2000);
    assert!(guest.rx().wants_kick() || guest.features & F_EVENT_IDX != 0);
    guest.rx().kick();
    for seed in 0..50 {
        assert_eq!(guest.receive().1, frame(seed, 100));
        guest.rx().kick();
    }
}

#[test]
fn checksums_and_segments_are_left_open_in_both_directions() {
    let offloads = USUAL | features::CSUM | features::GUEST_CSUM | features::HOST_TSO4 | features::GUEST_TSO4;
    let (_program, wire, guest) = nic(offloads);
    let mut guest = guest.run();
    guest.offer_buffers(128, 1536);
    guest.rx().kick();
    for payload in [100, 60_000, 100, 60_000, 65_000] {
        let (header, sent) = tcp(payload);
        guest.send(header, &sent, 4096);
        let (seen, got) = wire.receive_if(is_tcp);
        assert!(got == sent, "sent {payload} bytes of payload");
        assert_eq!((seen[0], seen[1], &seen[4..6]), (header[0], header[1], &header[4..6]));

        wire.send(header, &sent);
        let (seen, got) = guest.receive();
        assert_eq!(got.len(), sent.len());
        assert!(got == sent, "received {payload} bytes of payload");
        assert_eq!((seen[0], seen[1], &seen[4..6]), (header[0], header[1], &header[4..6]));
        assert!(!tcp_is_complete(&got));
    }
}

#[test]
fn a_guest_without_offloads_gets_whole_checksums_and_small_segments() {
    let (_program, wire, guest) = nic(USUAL);
    let mut guest = guest.run();
    guest.offer_buffers(128, 2048);
    guest.rx().kick();
    let (header, sent) = tcp(30_000);
    wire.send(header, &sent);
    let mut payload = Vec::new();
    while payload.len() < 30_000 {
        let (header, got) = guest.receive();
        assert_eq!(header[..10], [0; 10], "nothing is left open");
        assert!(got.len() <= 1514 && tcp_is_complete(&got));
        payload.extend_from_slice(&got[54..]);
    }
    assert!(payload == sent[54..]);
}

#[test]
fn the_driver_is_told_address_link_and_mtu() {
    let (_program, _wire, mut guest) = nic(USUAL | features::MAC | features::MTU | features::STATUS);
    assert_eq!(guest.config(12), [0x52, 0x54, 0, 0, 0, 0, 1, 0, 1, 0, 0xdc, 5]);
}

#[test]
fn an_idle_nic_wakes_nobody_and_costs_little_memory() {
    let (program, wire, guest) = nic(USUAL);
    let mut guest = guest.run();
    guest.offer_buffers(64, 1536);
    guest.rx().kick();
    guest.send(PLAIN, &frame(0, 60), 2000);
    wire.receive();
    wire.send(PLAIN, &frame(0, 60));
    guest.receive();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let before = program.switches();
    std::thread::sleep(std::time::Duration::from_secs(10));
    assert_eq!(program.switches(), before);
    let private = private_memory(program.process.pid()).unwrap();
    println!("private memory: {private} KiB");
    assert!(private <= 4096, "{private} KiB private memory");
}

/// A driver that merges buffers and takes large segments, and a large segment for it.
fn large() -> (Program, Wire, Guest, [u8; 10], Vec<u8>) {
    let (program, wire, guest) = nic(USUAL | features::GUEST_CSUM | features::GUEST_TSO4);
    let (header, sent) = tcp(60_000);
    (program, wire, guest.run(), header, sent)
}

#[test]
fn a_frame_larger_than_all_buffers_waits_for_more_and_is_whole() {
    let (_program, wire, mut guest, header, sent) = large();
    guest.offer_buffers(10, 1536);
    guest.rx().kick();
    wire.send(header, &sent);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert!(guest.rx().try_used().is_none(), "a part of a frame was shown");
    for index in 10..60 {
        guest.offer_buffer(index, 1536);
        guest.rx().kick();
    }
    let (seen, got) = guest.receive();
    assert!(got == sent);
    assert_eq!(usize::from(u16::from_le_bytes([seen[10], seen[11]])), (12 + sent.len()).div_ceil(1536));
    wire.send(PLAIN, &frame(1, 60));
    assert_eq!(guest.receive().1, frame(1, 60));
}

#[test]
fn a_frame_that_no_ring_of_buffers_can_hold_is_dropped_whole_and_the_next_one_arrives() {
    let (program, wire, mut guest, header, sent) = large();
    guest.offer_buffers(SIZE, 100);
    guest.rx().kick();
    for seed in 0..20 {
        wire.send(header, &sent);
        wire.send(PLAIN, &frame(seed, 600));
        assert_eq!(guest.receive().1, frame(seed, 600));
    }
    drop(program);
}

#[test]
fn a_ring_that_is_stopped_gives_all_its_buffers_back_and_goes_on_where_it_was() {
    let (_program, wire, mut guest, header, sent) = large();
    guest.offer_buffers(10, 1536);
    guest.rx().kick();
    wire.send(PLAIN, &frame(1, 600));
    assert_eq!(guest.receive().1, frame(1, 600));
    // A frame in work, for which there are not enough buffers, is lost with the stop; its buffers are not.
    wire.send(header, &sent);
    std::thread::sleep(std::time::Duration::from_millis(50));
    assert_eq!(guest.restart_receive(), 1, "one buffer was used");
    wire.send(PLAIN, &frame(2, 700));
    assert_eq!(guest.receive().1, frame(2, 700));
    for round in 0..50 {
        guest.restart_receive();
        wire.send(PLAIN, &frame(round, 1000));
        assert_eq!(guest.receive().1, frame(round, 1000));
    }
}

#[test]
fn a_driver_of_before_virtio_1_has_a_header_of_ten_bytes() {
    let (_program, wire, guest) = nic(0);
    let mut guest = guest.run();
    guest.offer_buffers(4, 2000);
    guest.rx().kick();
    wire.send(PLAIN, &frame(1, 80));
    let (head, len) = guest.rx().used();
    assert_eq!((head, len), (0, 90));
    let bytes = guest.memory.read_bytes(rx_buffer(0), 90);
    assert_eq!(bytes, [&[0; 10][..], &frame(1, 80)].concat());
    guest.memory.write_bytes(&bytes, SENT);
    guest.tx().set_descriptor(0, (SENT, 90, 0, 0));
    guest.send_chain(0);
    assert_eq!(wire.receive(), frame(1, 80));
}
