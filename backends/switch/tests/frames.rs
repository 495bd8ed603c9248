//! Frames between guests at the ports of the real program.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Answer, OFFLOADS, Switch, USUAL, card, lost, mac};
use domus_driver::frames::{ALL, PLAIN, forbidden, frame, tcp, tcp_is_complete};
use domus_driver::frontend::F_VERSION_1;
use domus_driver::net::{Guest, rx_buffer};
use domus_driver::ring::WRITE;
use domus_net::features;
use shared_abi::control::{BackendReply, DropReason};

/// Nothing has come, and nothing is on its way: the sender's frame is used already.
fn nothing(guest: &mut Guest) {
    assert_eq!(guest.rx().try_used(), None, "a frame came that is for another");
}

#[test]
fn frames_pass_whole_and_in_order_whatever_the_drivers_negotiate() {
    for (sender, receiver) in
        [(USUAL, USUAL), (F_VERSION_1, USUAL), (USUAL, F_VERSION_1), (F_VERSION_1, F_VERSION_1)]
    {
        let switch = Switch::start();
        let (mut a, mut b) = (switch.guest(1, sender), switch.guest(2, receiver));
        for (seed, length) in (0..).zip([60, 61, 255, 256, 257, 300, 1000, 1514]) {
            for piece in [2000, 12, 100] {
                let sent = frame(mac(2), mac(1), seed, length);
                a.send(PLAIN, &sent, piece);
                assert_eq!(b.receive().1, sent, "{length} bytes in pieces of {piece}");
                let sent = frame(mac(1), mac(2), seed, length);
                b.send(PLAIN, &sent, 2000);
                assert_eq!(a.receive().1, sent);
            }
        }
    }
}

#[test]
fn a_frame_takes_as_many_buffers_as_it_needs() {
    let switch = Switch::start();
    let mut a = switch.guest(1, USUAL);
    let mut b = Guest::new(switch.plug(2), USUAL);
    b.offer_buffers(128, 512);
    let mut b = switch.run(2, b, 0);
    for round in 0..300_usize {
        let sent = frame(mac(2), mac(1), round as u8, 60 + round * 7 % 1454);
        a.send(PLAIN, &sent, 2000);
        let (header, got) = b.receive();
        assert_eq!(got, sent, "round {round}");
        let count = usize::from(u16::from_le_bytes([header[10], header[11]]));
        assert_eq!(count, (12 + sent.len()).div_ceil(512));
    }
}

#[test]
fn frames_for_all_reach_all_others_and_frames_for_one_reach_that_one() {
    let switch = Switch::start();
    let mut guests = [1, 2, 3].map(|port| switch.guest(port, USUAL));
    for (from, to) in [(0, ALL), (1, [0x33, 0x33, 0, 0, 0, 1]), (2, [2, 9, 9, 9, 9, 9])] {
        let sent = frame(to, mac(from as u8 + 1), 7, 100);
        guests[from].send(PLAIN, &sent, 2000);
        for to in (0..3).filter(|to| *to != from) {
            assert_eq!(guests[to].receive().1, sent);
        }
        nothing(&mut guests[from]);
    }
    for (from, to) in [(0, 1), (1, 2), (2, 0)] {
        let sent = frame(mac(to as u8 + 1), mac(from as u8 + 1), 9, 100);
        guests[from].send(PLAIN, &sent, 2000);
        assert_eq!(guests[to].receive().1, sent);
        nothing(&mut guests[from]);
        nothing(&mut guests[3 - from - to]);
    }
    let own = frame(mac(1), mac(1), 1, 60);
    guests[0].send(PLAIN, &own, 2000);
    guests.iter_mut().for_each(nothing);
}

#[test]
fn an_address_is_learnt_where_any_may_be_used_and_a_given_one_cannot_be_stolen() {
    let switch = Switch::start();
    let mut free = card(3);
    free.filter.any_mac = true;
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let (answer, stream) = switch.plug_card("d3", free);
    assert_eq!(answer, Answer::Reply(BackendReply::Done));
    let mut c = switch.run(3, Guest::new(stream, USUAL), 128);
    let inner = [2, 0, 0, 0, 0, 7];
    let to_inner = frame(inner, mac(1), 1, 80);
    a.send(PLAIN, &to_inner, 2000);
    assert_eq!((b.receive().1, c.receive().1), (to_inner.clone(), to_inner.clone()));
    // What is behind the third port speaks, once for itself and once in the name of the second.
    for from in [inner, mac(2)] {
        let sent = frame(mac(1), from, 2, 80);
        c.send(PLAIN, &sent, 2000);
        assert_eq!(a.receive().1, sent);
    }
    a.send(PLAIN, &to_inner, 2000);
    assert_eq!(c.receive().1, to_inner);
    nothing(&mut b);
    let to_b = frame(mac(2), mac(1), 3, 80);
    a.send(PLAIN, &to_b, 2000);
    assert_eq!(b.receive().1, to_b);
    nothing(&mut c);
}

#[test]
fn frames_in_the_name_of_another_are_lost_and_counted() {
    let switch = Switch::start();
    let mut strict = card(1);
    strict.filter.addresses = Some(vec![]);
    let (_, stream) = switch.plug_card("d1", strict);
    let (mut a, mut b) = (switch.run(1, Guest::new(stream, USUAL), 128), switch.guest(2, USUAL));
    a.send(PLAIN, &frame(mac(2), mac(9), 1, 60), 2000);
    a.send(PLAIN, &frame(mac(2), mac(1), 1, 60), 2000);
    b.send(PLAIN, &frame(mac(1), mac(9), 1, 60), 2000);
    b.send(PLAIN, &frame(mac(1), mac(2), 1, 14)[..13], 2000);
    b.send([1, 0, 0, 0, 0, 0, 0, 0, 0, 0], &frame(mac(1), mac(2), 1, 60), 2000);
    let sent = frame(mac(1), mac(2), 1, 60);
    b.send(PLAIN, &sent, 2000);
    assert_eq!(a.receive().1, sent);
    nothing(&mut b);
    let (a, b) = (switch.statistics(1), switch.statistics(2));
    let count = |drops: &[_], reason| lost(drops, reason);
    assert_eq!(count(&a.transmit.drops, DropReason::SourceMac), 1);
    assert_eq!(count(&a.transmit.drops, DropReason::SourceAddress), 1);
    assert_eq!((a.transmit.packets, a.receive.packets, a.receive.bytes), (0, 1, 60));
    for reason in [DropReason::SourceMac, DropReason::Length, DropReason::Header] {
        assert_eq!(count(&b.transmit.drops, reason), 1, "{reason:?}");
    }
    assert_eq!((b.transmit.packets, b.receive.packets), (1, 0));
}

#[test]
fn tags_and_what_bridges_routers_and_dhcp_servers_say_are_lost_unless_they_are_allowed() {
    let switch = Switch::start();
    let mut trusted = card(3);
    (trusted.filter.tags, trusted.filter.router) = (true, true);
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let (_, stream) = switch.plug_card("d3", trusted);
    let mut c = switch.run(3, Guest::new(stream, USUAL), 128);
    let mut counts = std::collections::BTreeMap::new();
    for (reason, sent) in forbidden(mac(1)) {
        a.send(PLAIN, &sent, 2000);
        *counts.entry(reason).or_insert(0) += 1;
    }
    for (reason, count) in counts {
        assert_eq!(lost(&switch.statistics(1).transmit.drops, reason), count, "{reason:?}");
    }
    nothing(&mut b);
    for (reason, sent) in forbidden(mac(3)) {
        c.send(PLAIN, &sent, 2000);
        match reason {
            DropReason::LinkControl => nothing(&mut b),
            _ => assert_eq!(b.receive().1, sent, "{reason:?}"),
        }
    }
}

#[test]
fn checksums_and_segments_stay_open_between_drivers_that_take_them() {
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, OFFLOADS), switch.guest(2, OFFLOADS));
    for payload in [100, 60_000, 1000, 65_000] {
        let (header, sent) = tcp(mac(2), mac(1), payload);
        a.send(header, &sent, 4096);
        let (seen, got) = b.receive();
        assert!(got == sent, "{payload} bytes of payload");
        assert_eq!((&seen[..2], &seen[4..10]), (&header[..2], &header[4..]));
    }
    let statistics = switch.statistics(2).receive;
    assert_eq!((statistics.open_checksums, statistics.segments), (4, 2));
}

#[test]
fn a_driver_that_takes_none_gets_whole_checksums_and_small_segments() {
    for wanted in [USUAL, F_VERSION_1, USUAL | features::GUEST_CSUM] {
        let switch = Switch::start();
        let (mut a, mut b) = (switch.guest(1, OFFLOADS), switch.guest(2, wanted));
        let (header, sent) = tcp(mac(2), mac(1), 1000);
        a.send(header, &sent, 4096);
        let (seen, got) = b.receive();
        let open = wanted & features::GUEST_CSUM != 0;
        assert_eq!((tcp_is_complete(&got), seen[0]), (!open, u8::from(open)));
        assert_eq!(got[54..], sent[54..]);

        let (header, sent) = tcp(mac(2), mac(1), 60_000);
        a.send(header, &sent, 4096);
        let mut payload = Vec::new();
        while payload.len() < 60_000 {
            let (seen, got) = b.receive();
            assert!(seen[..10] == PLAIN && got.len() <= 1514 && tcp_is_complete(&got));
            payload.extend_from_slice(&got[54..]);
        }
        assert!(payload == sent[54..]);
        // For all, some of whom take it as it is.
        let mut c = switch.guest(3, OFFLOADS);
        let (header, sent) = tcp(ALL, mac(1), 3000);
        a.send(header, &sent, 4096);
        assert!(c.receive().1 == sent);
        let pieces = [b.receive().1, b.receive().1, b.receive().1];
        assert!(pieces.iter().all(|piece| tcp_is_complete(piece)));
        assert!(pieces.map(|piece| piece[54..].to_vec()).concat() == sent[54..]);
    }
}

#[test]
fn a_receiver_without_room_holds_its_sender_back_for_a_moment_and_nobody_else() {
    let switch = Switch::start();
    let (mut a, mut c) = (switch.guest(1, USUAL), switch.guest(3, USUAL));
    let mut d = switch.guest(4, USUAL);
    let mut b = switch.run(2, Guest::new(switch.plug(2), USUAL), 1);
    let to_b = |seed| frame(mac(2), mac(1), seed, 60);
    a.send(PLAIN, &to_b(0), 2000);
    // One that has to wait is used nevertheless, and with it what comes after it.
    for seed in 1..20 {
        a.send(PLAIN, &to_b(seed), 2000);
        let sent = frame(mac(4), mac(3), seed, 60);
        c.send(PLAIN, &sent, 2000);
        assert_eq!(d.receive().1, sent);
    }
    assert_eq!(lost(&switch.statistics(2).receive.drops, DropReason::NoRoom), 19);
    assert_eq!(b.receive().1, to_b(0));
    a.send(PLAIN, &to_b(20), 2000);
    assert_eq!(b.receive().1, to_b(20));
}

#[test]
fn a_frame_that_waits_arrives_when_there_is_room() {
    let switch = Switch::start();
    let mut a = switch.guest(1, OFFLOADS);
    // Half of what the frame takes, which stays taken.
    let mut b = switch.run(2, Guest::new(switch.plug(2), OFFLOADS), 20);
    for index in 20..45 {
        let at = rx_buffer(index);
        b.rx().set_descriptor(index, (at, 1536, WRITE, 0));
    }
    let (header, sent) = tcp(mac(2), mac(1), 60_000);
    std::thread::scope(|scope| {
        scope.spawn(|| a.send(header, &sent, 4096));
        std::thread::sleep(Duration::from_micros(300));
        (20..45).for_each(|index| b.rx().offer(index));
        b.rx().kick();
    });
    if lost(&switch.statistics(2).receive.drops, DropReason::NoRoom) == 1 {
        // A busy machine: the moment was over. The buffers are there for the next one.
        a.send(header, &sent, 4096);
    }
    assert!(b.receive().1 == sent);
}

#[test]
fn a_receiver_with_a_limit_gets_what_it_may_and_the_rest_is_lost() {
    use shared_abi::control::{NicLimit, NicLimits, NicRequest, Rate};
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let limit = |per_second| {
        let rate = Rate { per_second, burst: per_second, burst_seconds: 1 };
        let receive = NicLimit { bits: None, packets: Some(rate) };
        let request = NicRequest::Limit(NicLimits { receive, ..NicLimits::default() });
        assert_eq!(switch.nic(2, request), Answer::Reply(BackendReply::Done));
    };
    // Each frame waits a little for its turn.
    limit(2000);
    let start = std::time::Instant::now();
    for seed in 0..=255 {
        let sent = frame(mac(2), mac(1), seed, 60);
        a.send(PLAIN, &sent, 2000);
        assert_eq!(b.receive().1, sent);
    }
    // 200 come at once, the others take 28 ms.
    assert!(start.elapsed() >= Duration::from_millis(27), "{:?}", start.elapsed());
    // A turn that is too far away is not waited for.
    limit(10);
    let start = std::time::Instant::now();
    (0..50).for_each(|seed| a.send(PLAIN, &frame(mac(2), mac(1), seed, 60), 2000));
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let receive = switch.statistics(2).receive;
    assert!(lost(&receive.drops, DropReason::NoRoom) >= 40 && receive.throttled > 0, "{receive:?}");
}

#[test]
fn a_cable_that_is_pulled_passes_nothing_and_limits_hold() {
    use shared_abi::control::{NicLimit, NicLimits, NicRequest, Rate};
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let done = Answer::Reply(BackendReply::Done);
    for port in [1, 2] {
        assert_eq!(switch.nic(port, NicRequest::Link { up: false }), done);
        a.send(PLAIN, &frame(mac(2), mac(1), 1, 60), 2000);
        nothing(&mut b);
        assert_eq!(switch.nic(port, NicRequest::Link { up: true }), done);
    }
    assert_eq!(lost(&switch.statistics(1).transmit.drops, DropReason::LinkDown), 1);
    assert_eq!(lost(&switch.statistics(2).receive.drops, DropReason::LinkDown), 1);
    assert_eq!(b.config(8)[6], 1);
    switch.nic(2, NicRequest::Link { up: false });
    assert_eq!(b.config(8)[6], 0);
    switch.nic(2, NicRequest::Link { up: true });

    let rate = Rate { per_second: 500, burst: 500, burst_seconds: 1 };
    let transmit = NicLimit { bits: None, packets: Some(rate) };
    assert_eq!(switch.nic(1, NicRequest::Limit(NicLimits { transmit, ..NicLimits::default() })), done);
    let start = std::time::Instant::now();
    for seed in 0..250 {
        a.send(PLAIN, &frame(mac(2), mac(1), seed, 60), 2000);
        b.receive();
    }
    let took = start.elapsed().as_secs_f64();
    // 50 come at once, the others take 400 ms.
    assert!((0.39..2.0).contains(&took), "{took} s");
    assert!(switch.statistics(1).transmit.throttled > 0);
    assert_eq!(switch.nic(1, NicRequest::Limit(NicLimits::default())), done);
    assert!(matches!(switch.nic(1, NicRequest::Announce), Answer::Failed(_)));
}
