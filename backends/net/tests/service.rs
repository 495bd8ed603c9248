//! Link, limits, counters and the filter of a NIC, set at the start and while it is served.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::{Duration, Instant};

use common::wire::{self, Wire, frame, is_tcp, is_test, tcp};
use common::{Answer, End, Plug, Program, start_nics};
use domus_driver::frames::{PLAIN, forbidden};
use domus_driver::frontend::{F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use domus_driver::net::Guest;
use domus_net::features;
use shared_abi::control::{
    BackendReply, DropReason, Drops, NetCard, NicFilter, NicLimit, NicLimits, NicRequest, Rate,
    TrafficStatistics,
};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | features::OFFERED;

fn nic(wanted: u64, change: impl Fn(&mut NetCard) + 'static) -> (Program, Wire, Guest) {
    wire::own_network();
    let (tap, wire) = wire::tap("t0");
    let (program, answer, mut streams) = start_nics(vec![Plug::with(End::Tap(vec![tap]), change)]);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    let mut guest = Guest::new(streams.remove(0), wanted).run();
    guest.offer_buffers(128, 2000);
    guest.rx().kick();
    (program, wire, guest)
}

fn lost(traffic: &TrafficStatistics, reason: DropReason) -> u64 {
    traffic.drops.iter().find(|drops| drops.reason == reason).map_or(0, |drops| drops.packets)
}

#[test]
fn frames_are_lost_while_the_cable_is_pulled_and_pass_when_it_is_plugged_in() {
    let (program, wire, mut guest) = nic(ALL, |card| card.link_up = false);
    for (round, up) in [false, true, false, true].into_iter().enumerate() {
        let seed = round as u8;
        if round > 0 {
            program.order(NicRequest::Link { up });
        }
        assert_eq!(guest.config(8)[6], u8::from(up));
        assert_eq!(program.statistics().link_up, up);
        guest.send(PLAIN, &frame(seed, 60), 2000);
        wire.send(PLAIN, &frame(seed, 60));
        if up {
            assert_eq!(wire.receive(), frame(seed, 60));
            assert_eq!(guest.receive().1, frame(seed, 60));
        } else {
            std::thread::sleep(Duration::from_millis(50));
            assert!(guest.rx().try_used().is_none());
        }
    }
    let statistics = program.statistics();
    assert_eq!((lost(&statistics.receive, DropReason::LinkDown), statistics.receive.packets), (2, 2));
    assert_eq!((lost(&statistics.transmit, DropReason::LinkDown), statistics.transmit.packets), (2, 2));
    std::thread::sleep(Duration::from_millis(100));
    let before = program.switches();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(program.switches(), before);
}

#[test]
fn a_pulled_cable_fills_nothing_up_even_without_buffers() {
    wire::own_network();
    let (tap, wire) = wire::tap("t0");
    let (program, _, mut streams) =
        start_nics(vec![Plug::with(End::Tap(vec![tap]), |card| card.link_up = false)]);
    let mut guest = Guest::new(streams.remove(0), ALL).run();
    (0..200).for_each(|seed| wire.send(PLAIN, &frame(seed, 60)));
    let until = Instant::now() + domus_driver::PATIENCE;
    while lost(&program.statistics().receive, DropReason::LinkDown) < 200 {
        assert!(Instant::now() < until, "the tap is not emptied");
        std::thread::sleep(Duration::from_millis(5));
    }
    program.order(NicRequest::Link { up: true });
    guest.offer_buffers(8, 2000);
    guest.rx().kick();
    wire.send(PLAIN, &frame(7, 60));
    assert_eq!(guest.receive().1, frame(7, 60));
}

fn a_second(per_second: u64) -> Option<Rate> {
    Some(Rate { per_second, burst: per_second, burst_seconds: 1 })
}

/// Frames of `length` bytes that pass in a second, from the guest or to it.
fn rate(program: &Program, wire: &Wire, guest: &mut Guest, transmit: bool, length: usize) -> u64 {
    let passed = |program: &Program| {
        let statistics = program.statistics();
        if transmit { statistics.transmit.packets } else { statistics.receive.packets }
    };
    // What may come at once has come after this.
    let (start, mut before) = (Instant::now(), None);
    loop {
        if transmit {
            guest.send(PLAIN, &frame(1, length), 4096);
        } else {
            wire.send(PLAIN, &frame(1, length));
            while let Some((head, _)) = guest.rx().try_used() {
                guest.rx().offer(head);
                guest.rx().kick();
            }
            std::thread::sleep(Duration::from_micros(100));
        }
        match before {
            None if start.elapsed() > Duration::from_millis(500) => {
                before = Some((Instant::now(), passed(program)));
            }
            Some((since, before)) if since.elapsed() > Duration::from_secs(1) => {
                let time = since.elapsed().as_secs_f64();
                return ((passed(program) - before) as f64 / time) as u64;
            }
            _ => {}
        }
    }
}

#[test]
fn limits_hold_in_both_directions_and_change_at_once() {
    let transmit = NicLimits {
        transmit: NicLimit { bits: None, packets: a_second(200) },
        receive: NicLimit { bits: None, packets: a_second(300) },
    };
    let (program, wire, mut guest) = nic(ALL, move |card| card.limits = transmit);
    let within = |rate: u64, wanted: u64| {
        assert!(rate.abs_diff(wanted) <= wanted / 10, "{rate} frames in a second, not {wanted}");
    };
    within(rate(&program, &wire, &mut guest, true, 60), 200);
    within(rate(&program, &wire, &mut guest, false, 60), 300);
    let bits = NicLimit { bits: a_second(8 * 1000 * 400), packets: None };
    program.order(NicRequest::Limit(NicLimits { receive: bits, transmit: bits }));
    within(rate(&program, &wire, &mut guest, true, 1000), 400);
    within(rate(&program, &wire, &mut guest, false, 1000), 400);
    let statistics = program.statistics();
    assert!(statistics.receive.throttled > 0 && statistics.transmit.throttled > 0);
    program.order(NicRequest::Limit(NicLimits::default()));
    let free = rate(&program, &wire, &mut guest, true, 1000);
    assert!(free > 1000, "{free} frames in a second without a limit");
}

#[test]
fn what_a_nic_has_done_is_counted() {
    let offloads = ALL & !features::GUEST_TSO6;
    let (program, wire, mut guest) = nic(offloads, |_| {});
    let (header, segment) = tcp(10_000);
    guest.send(PLAIN, &frame(1, 60), 2000);
    guest.send(header, &segment, 4096);
    guest.send(PLAIN, &frame(1, 14)[..13], 2000);
    guest.send([0, 1, 0, 0, 0, 0, 0, 0, 0, 0], &frame(1, 60), 2000);
    wire.receive_if(is_tcp);
    wire.send(PLAIN, &frame(2, 200));
    guest.receive();
    wire.send(header, &segment);
    guest.receive();
    let statistics = program.statistics();
    let sizes = |of: &[usize]| {
        let mut sizes = vec![0; of.iter().max().unwrap() + 1];
        of.iter().for_each(|entry| sizes[*entry] += 1);
        sizes
    };
    let drops = |reason, packets| Drops { reason, packets };
    let big = segment.len() as u64;
    let traffic = TrafficStatistics {
        packets: 2,
        bytes: 60 + big,
        open_checksums: 1,
        segments: 1,
        segment_bytes: big,
        throttled: 0,
        sizes: sizes(&[6, 14]),
        drops: vec![drops(DropReason::Length, 1), drops(DropReason::Header, 1)],
    };
    assert_eq!(statistics.transmit, traffic);
    let traffic = TrafficStatistics { bytes: 200 + big, sizes: sizes(&[8, 14]), drops: vec![], ..traffic };
    assert_eq!(statistics.receive, traffic);
    assert_eq!((statistics.pairs, statistics.promiscuous, statistics.link_up), (1, true, true));
}

#[test]
fn a_frame_from_another_address_is_not_sent_and_counted() {
    let (program, wire, mut guest) = nic(ALL, |card| card.filter.any_mac = false);
    // The NIC's address ends with 0.
    for length in [60, 1514] {
        guest.send(PLAIN, &frame(1, length), 2000);
        guest.send(PLAIN, &frame(0, length), 2000);
        assert_eq!(wire.receive_if(is_test).1, frame(0, length));
    }
    let statistics = program.statistics();
    assert_eq!((lost(&statistics.transmit, DropReason::SourceMac), statistics.transmit.packets), (2, 2));
}

#[test]
fn tags_and_what_bridges_routers_and_dhcp_servers_say_do_not_leave_unless_they_are_allowed() {
    const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0];
    let (program, wire, mut guest) = nic(ALL, |card| card.filter.any_mac = false);
    let mut counts = std::collections::BTreeMap::new();
    for (reason, sent) in forbidden(OWN) {
        guest.send(PLAIN, &sent, 2000);
        *counts.entry(reason).or_insert(0) += 1;
    }
    guest.send(PLAIN, &frame(0, 60), 2000);
    assert_eq!(wire.receive(), frame(0, 60));
    let transmit = program.statistics().transmit;
    for (reason, count) in counts {
        assert_eq!(lost(&transmit, reason), count, "{reason:?}");
    }
    assert_eq!(transmit.packets, 1);
}

#[test]
fn what_is_allowed_leaves() {
    let (program, _wire, mut guest) = nic(ALL, |card| card.filter = NicFilter::open());
    let all = forbidden([0x52, 0x54, 0, 0, 0, 0]);
    for (_, sent) in &all {
        guest.send(PLAIN, sent, 2000);
    }
    let transmit = program.statistics().transmit;
    assert_eq!((transmit.packets, transmit.drops), (all.len() as u64, vec![]));
}

#[test]
fn a_nic_that_is_not_here_is_said_to_be_so() {
    let (program, _wire, _guest) = nic(ALL, |_| {});
    let request = shared_abi::control::NetRequest::Nic {
        nic: "eth7".parse().unwrap(),
        request: NicRequest::Statistics,
    };
    program.link.send_request(&request, &[]).unwrap();
    match program.link.receive::<Answer>().unwrap().0 {
        Answer::Failed(text) => assert!(text.contains("eth7"), "{text}"),
        other => panic!("{other:?}"),
    }
    let (ours, _theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    assert!(matches!(program.reconnect(ours), Answer::Failed(text) if text.contains("tap")));
}
