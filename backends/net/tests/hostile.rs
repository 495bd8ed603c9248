//! Drivers and frontends that break the rules harm nobody but themselves.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::wire::{self, Wire, frame, is_test, tcp};
use common::{Answer, Program, start};
use domus_driver::frames::PLAIN;
use domus_driver::frontend::{F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use domus_driver::net::{Guest, MEMORY, SIZE, rx_buffer};
use domus_driver::ring::{NEXT, WRITE, put_descriptor};
use domus_net::features;
use shared_abi::control::BackendReply;

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | features::OFFERED;

fn nic(wanted: u64) -> (Program, Wire, Guest) {
    wire::own_network();
    let (tap, wire) = wire::tap("t0");
    let (program, answer, mut streams) = start(vec![tap]);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    (program, wire, Guest::new(streams.remove(0), wanted))
}

/// A frame sent now is the next one of ours that the wire sees, and one received arrives.
fn works(wire: &Wire, guest: &mut Guest, seed: u8) {
    guest.send(PLAIN, &frame(seed, 60), 2000);
    assert_eq!(wire.receive(), frame(seed, 60), "something else was sent before frame {seed}");
    wire.send(PLAIN, &frame(seed, 300));
    assert_eq!(guest.receive().1, frame(seed, 300));
}

/// No thread is busy.
fn is_quiet(program: &Program) {
    std::thread::sleep(Duration::from_millis(100));
    let before = program.switches();
    std::thread::sleep(Duration::from_millis(300));
    let after = program.switches();
    assert!(after - before <= 1, "{} context switches in 300 ms", after - before);
}

#[test]
fn a_frame_with_a_broken_header_is_not_sent_and_the_next_one_is() {
    let (program, wire, guest) = nic(ALL);
    let mut guest = guest.run();
    guest.offer_buffers(32, 2000);
    guest.rx().kick();
    let (good, segment) = tcp(20_000);
    let with = |at: usize, value: u8| {
        let mut header = good;
        header[at] = value;
        header
    };
    let long = vec![0xff; 65_555];
    let cases: [([u8; 10], &[u8]); 16] = [
        (PLAIN, &[]),
        (PLAIN, &[0xff; 13]),
        (PLAIN, &long),
        (with(7, 0xff), &segment),
        (with(9, 0xff), &segment),
        (with(0, 0), &segment),
        (with(1, 3), &segment),
        (with(1, 5), &segment),
        (with(1, 0x80), &segment),
        (with(1, 0xff), &segment),
        ([1, 1, 54, 0, 0, 0, 34, 0, 16, 0], &segment),
        ([1, 1, 54, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], &segment),
        // Segments with ECN, and of datagrams, which nobody has asked for.
        (with(1, 0x85), &segment),
        ([1, 5, 42, 0, 0xa8, 5, 34, 0, 6, 0], &segment),
        // Passes our rules; the kernel finds that these are no TCP segments.
        ([1, 1, 0xff, 0xff, 1, 0, 0, 0, 0, 0], &[0xff; 600]),
        ([1, 4, 54, 0, 1, 0, 34, 0, 16, 0], &[0xff; 600]),
    ];
    for (seed, (header, bytes)) in (0..).zip(cases) {
        guest.send(header, bytes, 4096);
        works(&wire, &mut guest, seed);
    }
    is_quiet(&program);
}

#[test]
fn chains_of_wild_addresses_and_lengths_are_given_back_unsent() {
    let (program, wire, guest) = nic(ALL);
    let mut guest = guest.run();
    guest.offer_buffers(32, 2000);
    guest.rx().kick();
    let table = 0x1f0_0000;
    let wild: [&[(u64, u32, u16, u16)]; 9] = [
        &[(0, 0, 0, 0)],
        &[(0, 11, 0, 0)],
        &[(MEMORY, 80, 0, 0)],
        &[(MEMORY - 40, 80, 0, 0)],
        &[(u64::MAX, 80, 0, 0)],
        &[(u64::MAX - 11, 12, NEXT, 201), (0x1000, 60, 0, 0)],
        &[(0x1000, 12, NEXT, 201), (0, u32::MAX, NEXT, 202), (0, u32::MAX, 0, 0)],
        &[(0x1000, 12, NEXT, 201), (0x1000, 60, NEXT, 202), (1 << 40, 1, 0, 0)],
        &[(0x1000, 4096, WRITE, 0)],
    ];
    for (seed, chain) in (0..).zip(wild) {
        for (at, descriptor) in (200..).zip(chain) {
            guest.tx().set_descriptor(at, *descriptor);
        }
        guest.send_chain(200);
        works(&wire, &mut guest, seed);
    }
    // As many pieces as an indirect table has: more than one writev takes, all of one byte.
    for at in 0..1024_u64 {
        let next = if at == 1023 { 0 } else { NEXT };
        let descriptor = (0x10_0000 + at, 1, next, at as u16 + 1);
        put_descriptor(&guest.memory, table, at as u16, descriptor);
    }
    guest.memory.write_bytes(&[0; 1024], 0x10_0000);
    guest.tx().set_descriptor(200, (table, 1024 * 16, 4, 0));
    guest.send_chain(200);
    guest.send(PLAIN, &frame(77, 60), 2000);
    assert_eq!(wire.receive_if(is_test).1, frame(77, 60));
    is_quiet(&program);
}

#[test]
fn receive_buffers_that_cannot_be_written_come_back_empty() {
    let (program, wire, guest) = nic(ALL);
    let mut guest = guest.run();
    let bad = [
        (0, 0, WRITE, 0),
        (0x1000, 11, WRITE, 0),
        (0x1000, 2000, 0, 0),
        (MEMORY - 1, 2000, WRITE, 0),
        (u64::MAX - 5, u32::MAX, WRITE, 0),
        (1 << 50, 2000, WRITE, 0),
    ];
    for (head, descriptor) in (0..).zip(bad) {
        guest.rx().set_descriptor(head, descriptor);
        guest.rx().offer(head);
    }
    guest.rx().kick();
    for head in 0..bad.len() as u16 {
        assert_eq!(guest.rx().used(), (head, 0));
    }
    // A good one, a bad one, a good one: the frame takes two, and so is dropped; the next one fits in one.
    for (head, descriptor) in [
        (10, (rx_buffer(10), 600, WRITE, 0)),
        (11, (1 << 50, 600, WRITE, 0)),
        (12, (rx_buffer(12), 600, WRITE, 0)),
    ] {
        guest.rx().set_descriptor(head, descriptor);
        guest.rx().offer(head);
    }
    guest.rx().kick();
    wire.send(PLAIN, &frame(1, 1000));
    wire.send(PLAIN, &frame(2, 500));
    assert_eq!(guest.receive().1, frame(2, 500));
    assert_eq!(guest.rx().used(), (11, 0));
    wire.send(PLAIN, &frame(3, 500));
    assert_eq!(guest.receive().1, frame(3, 500));
    is_quiet(&program);
}

#[test]
fn a_broken_ring_stands_still_until_it_is_started_again_and_the_other_goes_on() {
    for what in 0..5 {
        let (program, wire, guest) = nic(ALL);
        let mut guest = guest.run();
        guest.offer_buffers(32, 2000);
        guest.rx().kick();
        works(&wire, &mut guest, 0);
        match what {
            0 => guest.tx().break_available_index(),
            1 => {
                guest.tx().offer(SIZE);
            }
            2 => {
                guest.tx().set_descriptor(5, (0x1000, 12, NEXT, 6));
                guest.tx().set_descriptor(6, (0x1000, 60, NEXT, 5));
                guest.tx().offer(5);
            }
            3 => {
                guest.tx().set_descriptor(5, (0x1000, 12, NEXT, SIZE));
                guest.tx().offer(5);
            }
            _ => {
                guest.tx().set_descriptor(5, (MEMORY - 16, 16 * 1024, 4, 0));
                guest.tx().offer(5);
            }
        }
        guest.tx().kick();
        guest.tx().kick();
        for seed in 0..5 {
            wire.send(PLAIN, &frame(seed, 300));
            assert_eq!(guest.receive().1, frame(seed, 300), "case {what}");
        }
        is_quiet(&program);
    }
}

#[test]
fn a_kick_descriptor_that_is_none_costs_no_processor_time() {
    let (program, _wire, mut guest) = nic(ALL);
    let (reader, writer) = nix::unistd::pipe().unwrap();
    drop(writer);
    guest.tx().kick = reader.into();
    let guest = guest.run();
    is_quiet(&program);
    drop(guest);
}

#[test]
fn descriptors_that_are_no_tap_are_refused_by_name() {
    let (program, answer, _streams) = start(vec![std::fs::File::open("/dev/null").unwrap().into()]);
    match answer {
        Answer::Failed(text) => assert!(text.contains("eth0") && text.contains("tap"), "{text}"),
        other => panic!("{other:?}"),
    }
    drop(program);
}
