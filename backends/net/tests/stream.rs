//! A NIC on a stream, with a peer of the test's own at its other end.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use common::wire::frame;
use common::{Answer, End, Plug, Program, start_nics};
use domus_driver::PATIENCE;
use domus_driver::frames::PLAIN;
use domus_driver::frontend::{F_EVENT_IDX, F_VERSION_1};
use domus_driver::net::{Guest, SENT};
use domus_net::features;
use shared_abi::control::{BackendEvent, BackendReply, DropReason};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | features::ALWAYS;

fn pair() -> (UnixStream, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours.set_write_timeout(Some(PATIENCE)).unwrap();
    (ours, theirs)
}

fn nic(socket: Option<UnixStream>) -> (Program, Guest) {
    let (program, answer, mut streams) =
        start_nics(vec![Plug::with(End::Stream(socket), |card| card.mtu = 65_520)]);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    let mut guest = Guest::new(streams.remove(0), ALL).run();
    guest.offer_buffers(200, 2000);
    guest.rx().kick();
    (program, guest)
}

fn encode(frame: &[u8]) -> Vec<u8> {
    [&(frame.len() as u32).to_be_bytes()[..], frame].concat()
}

fn decode(mut stream: &UnixStream) -> Vec<u8> {
    let mut length = [0; 4];
    stream.read_exact(&mut length).unwrap();
    let mut frame = vec![0; u32::from_be_bytes(length) as usize];
    stream.read_exact(&mut frame).unwrap();
    frame
}

fn works(mut peer: &UnixStream, guest: &mut Guest, seed: u8) {
    for length in [60, 1514, 65_534] {
        guest.send(PLAIN, &frame(seed, length), 4096);
        assert!(decode(peer) == frame(seed, length), "{length} bytes sent");
        peer.write_all(&encode(&frame(seed, length))).unwrap();
        let (header, got) = guest.receive();
        assert!(got == frame(seed, length), "{length} bytes received");
        assert_eq!(header[..10], PLAIN);
        guest.rx().kick();
    }
}

fn lost_connection(program: &Program) -> String {
    match program.link.receive::<Answer>().unwrap().0 {
        Answer::Event(BackendEvent::ConnectionLost { device, why }) => {
            assert_eq!(device.as_str(), "eth0");
            why
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn frames_up_to_64_kib_go_both_ways_and_no_offload_is_offered() {
    let (peer, theirs) = pair();
    let (_program, mut guest) = nic(Some(theirs));
    assert_eq!(guest.offered() & (features::OFFLOADS | features::DATAGRAMS | features::MQ), 0);
    (0..5).for_each(|seed| works(&peer, &mut guest, seed));
}

#[test]
fn frames_that_come_in_pieces_are_whole_and_those_that_come_together_apart() {
    let (mut peer, theirs) = pair();
    let (_program, mut guest) = nic(Some(theirs));
    for byte in encode(&frame(1, 70)) {
        peer.write_all(&[byte]).unwrap();
    }
    assert_eq!(guest.receive().1, frame(1, 70));
    let (first, rest) = (encode(&frame(2, 3000)), encode(&frame(3, 100)));
    let both = [first, rest].concat();
    peer.write_all(&both[..2999]).unwrap();
    std::thread::sleep(Duration::from_millis(30));
    assert!(guest.rx().try_used().is_none(), "a part of a frame was shown");
    peer.write_all(&both[2999..]).unwrap();
    assert_eq!(guest.receive().1, frame(2, 3000));
    assert_eq!(guest.receive().1, frame(3, 100));
}

#[test]
fn frames_wait_in_the_ring_while_the_peer_does_not_read_and_none_is_cut() {
    let (peer, theirs) = pair();
    let (program, mut guest) = nic(Some(theirs));
    let length = 60_000;
    let bytes = guest.put(PLAIN, &frame(5, length));
    for index in 0..50 {
        guest.tx().set_descriptor(index, (SENT, bytes, 0, 0));
        guest.tx().offer(index);
    }
    guest.tx().kick();
    std::thread::sleep(Duration::from_millis(100));
    let before = program.switches();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(program.switches(), before, "a full socket is polled");
    for _ in 0..50 {
        assert!(decode(&peer) == frame(5, length));
    }
    for index in 0..50 {
        assert_eq!(guest.tx().used(), (index, 0));
    }
    works(&peer, &mut guest, 6);
}

#[test]
fn a_peer_that_is_gone_is_reported_once_and_the_next_one_is_taken() {
    let (peer, theirs) = pair();
    let (program, mut guest) = nic(Some(theirs));
    works(&peer, &mut guest, 1);
    drop(peer);
    lost_connection(&program);
    let drops = |program: &Program| {
        let drops = program.statistics().transmit.drops;
        drops.iter().find(|drops| drops.reason == DropReason::LinkDown).map_or(0, |drops| drops.packets)
    };
    guest.send(PLAIN, &frame(2, 60), 2000);
    guest.send(PLAIN, &frame(2, 60), 2000);
    assert_eq!(drops(&program), 2);
    assert!(!program.statistics().link_up);
    std::thread::sleep(Duration::from_millis(100));
    let before = program.switches();
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(program.switches(), before);
    for seed in 3..6 {
        let (peer, theirs) = pair();
        assert_eq!(program.reconnect(theirs), Answer::Reply(BackendReply::Done));
        assert!(program.statistics().link_up);
        works(&peer, &mut guest, seed);
        drop(peer);
        lost_connection(&program);
    }
}

#[test]
fn a_peer_that_announces_a_frame_that_cannot_be_is_hung_up_on() {
    for length in [0_u32, 70_000, u32::MAX] {
        let (mut peer, theirs) = pair();
        let (program, mut guest) = nic(Some(theirs));
        peer.write_all(&encode(&frame(1, 60))).unwrap();
        peer.write_all(&length.to_be_bytes()).unwrap();
        assert_eq!(guest.receive().1, frame(1, 60));
        assert!(lost_connection(&program).contains(&length.to_string()));
        assert_eq!(peer.read(&mut [0; 4]).unwrap(), 0);
    }
}

#[test]
fn a_nic_whose_peer_comes_later_loses_frames_until_then() {
    let (program, mut guest) = nic(None);
    guest.send(PLAIN, &frame(1, 60), 2000);
    assert!(!program.statistics().link_up);
    let (peer, theirs) = pair();
    assert_eq!(program.reconnect(theirs), Answer::Reply(BackendReply::Done));
    works(&peer, &mut guest, 2);
}

#[test]
fn a_peer_that_floods_is_not_ahead_of_orders() {
    let (mut peer, theirs) = pair();
    let (program, mut guest) = nic(Some(theirs));
    let flood = encode(&frame(1, 60)).repeat(1000);
    let feeder = std::thread::spawn(move || while peer.write_all(&flood).is_ok() {});
    let until = Instant::now() + Duration::from_secs(1);
    while Instant::now() < until {
        while let Some((head, _)) = guest.rx().try_used() {
            guest.rx().offer(head);
            guest.rx().kick();
        }
    }
    assert!(program.statistics().receive.packets > 100);
    drop(program);
    feeder.join().unwrap();
}
