//! What a driver sets over the control queue holds at once, and after the death of the process that was told.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use common::wire::{self, Wire, frame, is_tcp, is_test, tcp};
use common::{Answer, End, Plug, Program, start_nics};
use domus_driver::frames::{PLAIN, tcp_is_complete};
use domus_driver::frontend::{F_EVENT_IDX, F_INDIRECT, F_VERSION_1};
use domus_driver::net::{COMMAND, Guest, SIZE};
use domus_driver::ring::{NEXT, WRITE};
use domus_net::features;
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyResponse, InitFlags, MarkFlags, MaskFlags, Response,
};
use shared_abi::control::{BackendReply, DropReason, NetCard, NicRequest, NicStatistics};
use shared_abi::limits::NIC_STATE_LEN;
use shared_abi::steering::{Rules, WORDS};

const ALL: u64 = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT | features::OFFERED | features::CONTROL;

const OK: u8 = 0;
const ERR: u8 = 1;

fn nic(wanted: u64, change: impl Fn(&mut NetCard) + 'static) -> (Program, Wire, Guest) {
    wire::own_network();
    let (tap, wire) = wire::tap("t0");
    let (program, answer, mut streams) = start_nics(vec![Plug::with(End::Tap(vec![tap]), change)]);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    let mut guest = Guest::with_queues(streams.remove(0), wanted, 3).run();
    guest.offer_buffers(64, 2000);
    guest.rx().kick();
    (program, wire, guest)
}

/// A frame to this address.
fn to(address: [u8; 6], seed: u8) -> Vec<u8> {
    let mut frame = frame(seed, 100);
    frame[..6].copy_from_slice(&address);
    frame
}

const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 0];
const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 9, 9];
const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 9];

/// Which of frames to its own address, another, a group and all reach the guest.
fn reach(wire: &Wire, guest: &mut Guest) -> Vec<u8> {
    for (seed, address) in (0..).zip([OWN, OTHER, GROUP, [0xff; 6]]) {
        wire.send(PLAIN, &to(address, seed));
    }
    // The last one always comes: it has the address that is sent to whatever is set.
    wire.send(PLAIN, &to(OWN, 99));
    let seeds = std::iter::from_fn(|| Some(guest.receive().1[11]));
    seeds.take_while(|seed| *seed != 99).collect()
}

fn lost(statistics: &NicStatistics, reason: DropReason) -> u64 {
    let drops = statistics.receive.drops.iter().find(|drops| drops.reason == reason);
    drops.map_or(0, |drops| drops.packets)
}

#[test]
fn the_driver_gets_the_frames_that_it_asks_for() {
    let (program, wire, mut guest) = nic(ALL, |_| {});
    assert_eq!(reach(&wire, &mut guest), [0, 1, 2, 3], "a driver that has said nothing");
    let table = |unicast: &[[u8; 6]], multicast: &[[u8; 6]]| {
        let entries = |table: &[[u8; 6]]| [&(table.len() as u32).to_le_bytes()[..], &table.concat()].concat();
        [&[1, 0][..], &entries(unicast), &entries(multicast)].concat()
    };
    let steps: [(Vec<u8>, &[u8]); 13] = [
        (vec![0, 0, 0], &[0, 3]),
        (vec![0, 1, 1], &[0, 2, 3]),
        (vec![0, 5, 1], &[0, 2]),
        (vec![0, 3, 1], &[0]),
        (vec![0, 1, 0], &[0]),
        (vec![0, 3, 0], &[0]),
        (vec![0, 5, 0], &[0, 3]),
        (table(&[OTHER], &[]), &[0, 1, 3]),
        (table(&[], &[GROUP, [1; 6]]), &[0, 2, 3]),
        (table(&[[2; 6]; 65], &[[1; 6]; 65]), &[0, 1, 2, 3]),
        (table(&[], &[]), &[0, 3]),
        (vec![0, 2, 1], &[0, 1, 3]),
        (vec![0, 0, 1], &[0, 1, 2, 3]),
    ];
    for (step, (command, expected)) in steps.into_iter().enumerate() {
        assert_eq!(guest.command(&command), OK, "step {step}");
        assert_eq!(reach(&wire, &mut guest), expected, "step {step}");
    }
    let statistics = program.statistics();
    assert!(statistics.promiscuous);
    assert_eq!(lost(&statistics, DropReason::Unwanted), 21);
}

#[test]
fn tagged_frames_come_from_the_vlans_that_the_driver_has_named() {
    let (_program, wire, mut guest) = nic(ALL, |_| {});
    let tagged = |vlan: u16, seed: u8| {
        let mut frame = to(OWN, seed);
        frame.splice(12..12, [&[0x81, 0][..], &vlan.to_be_bytes()].concat());
        frame
    };
    let comes = |guest: &mut Guest| {
        [5, 4095].iter().for_each(|vlan| wire.send(PLAIN, &tagged(*vlan, *vlan as u8)));
        wire.send(PLAIN, &to(OWN, 99));
        let seeds = std::iter::from_fn(|| Some(guest.receive().1[11]));
        seeds.take_while(|seed| *seed != 99).collect::<Vec<_>>()
    };
    assert_eq!(comes(&mut guest), [5, 255]);
    assert_eq!(guest.command(&[0, 0, 0]), OK);
    assert_eq!(comes(&mut guest), [0; 0]);
    assert_eq!(guest.command(&[2, 0, 0xff, 0x0f]), OK);
    assert_eq!(comes(&mut guest), [255]);
    assert_eq!(guest.command(&[2, 0, 5, 0]), OK);
    assert_eq!(guest.command(&[2, 1, 0xff, 0x0f]), OK);
    assert_eq!(comes(&mut guest), [5]);
}

#[test]
fn a_malformed_command_is_answered_with_an_error_and_changes_nothing() {
    let (_program, wire, mut guest) = nic(ALL, |_| {});
    let long = vec![1; 20_000];
    let wild = [&[1, 0][..], &[0xff; 4], &[0; 4]].concat();
    let cases: [&[u8]; 15] = [
        &[0],
        &[0, 0],
        &[0, 0, 2],
        &[0, 0, 0, 0],
        &[0, 6, 1],
        &[0xff, 0xff, 0xff],
        &[1, 0],
        &wild,
        &[1, 1, 1, 2, 3, 4, 5, 6],
        &[2, 0, 0, 0x10],
        &[3, 0, 0],
        &[4, 0, 1, 0],
        &[4, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0],
        &[5, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff],
        &long,
    ];
    for command in cases {
        assert_eq!(guest.command(command), ERR, "{:?}", &command[..command.len().min(16)]);
        assert_eq!(reach(&wire, &mut guest), [0, 1, 2, 3]);
    }
}

#[test]
fn chains_that_are_no_commands_are_given_back() {
    let (_program, wire, mut guest) = nic(ALL, |_| {});
    let command = COMMAND;
    guest.memory.write_bytes(&[0, 0, 0], command);
    // No place for an answer, an answer nowhere, a command nowhere, one that is longer than the memory, nothing at all.
    let cases: [&[(u64, u32, u16, u16)]; 5] = [
        &[(command, 3, 0, 0)],
        &[(command, 3, NEXT, 11), (1 << 50, 1, WRITE, 0)],
        &[(1 << 50, 3, NEXT, 11), (command + 64, 1, WRITE, 0)],
        &[(command, u32::MAX, NEXT, 11), (command + 64, 1, WRITE, 0)],
        &[(command + 64, 1, WRITE, 0)],
    ];
    for (case, chain) in cases.into_iter().enumerate() {
        let ring = &mut guest.rings[2];
        for (index, descriptor) in (10..).zip(chain) {
            ring.set_descriptor(index, *descriptor);
        }
        ring.offer(10);
        ring.kick();
        assert_eq!(ring.used().0, 10, "case {case}");
    }
    assert_eq!(guest.command(&[0, 0, 1]), OK);
    assert_eq!(reach(&wire, &mut guest), [0, 1, 2, 3]);
    // A ring that makes no sense stands still; the others go on.
    guest.rings[2].offer(SIZE);
    guest.rings[2].kick();
    assert_eq!(reach(&wire, &mut guest), [0, 1, 2, 3]);
}

#[test]
fn an_address_is_chosen_where_that_is_allowed_and_frames_are_received_by_it() {
    let set = [&[1, 1][..], &OTHER].concat();
    let (_program, wire, mut guest) = nic(ALL, |_| {});
    assert_eq!((guest.command(&set), guest.command(&[0, 0, 0])), (OK, OK));
    wire.send(PLAIN, &to(OWN, 1));
    wire.send(PLAIN, &to(OTHER, 2));
    assert_eq!(guest.receive().1[11], 2);
    assert_eq!(guest.config(6), OTHER);
    let (_program, _wire, mut guest) = nic(ALL, |card| card.filter.any_mac = false);
    assert_eq!(guest.command(&set), ERR);
    assert_eq!(guest.command(&[&[1, 1][..], &OWN].concat()), OK);
    assert_eq!(guest.config(6), OWN);
}

#[test]
fn offloads_are_switched_while_the_nic_runs() {
    let switch = features::GUEST_CSUM | features::GUEST_TSO4;
    let (_program, wire, mut guest) = nic(ALL | features::CTRL_GUEST_OFFLOADS, |_| {});
    let (header, sent) = tcp(1000);
    let complete = |guest: &mut Guest| {
        wire.send(header, &sent);
        let (_, got) = guest.receive();
        assert!(is_tcp(&got));
        tcp_is_complete(&got)
    };
    assert!(!complete(&mut guest));
    assert_eq!(guest.command(&[5, 0, 0, 0, 0, 0, 0, 0, 0, 0]), OK);
    assert!(complete(&mut guest));
    assert_eq!(guest.command(&[&[5, 0][..], &switch.to_le_bytes()].concat()), OK);
    assert!(!complete(&mut guest));
}

#[test]
fn a_driver_is_asked_to_announce_itself_until_it_has() {
    let (program, _wire, mut guest) = nic(ALL, |_| {});
    assert_eq!(guest.config(8)[6..], [1, 0]);
    program.order(NicRequest::Announce);
    assert_eq!(guest.config(8)[6..], [3, 0]);
    assert_eq!(guest.command(&[3, 0]), OK);
    assert_eq!(guest.config(8)[6..], [1, 0]);
    let (program, _wire, _guest) = nic(ALL & !features::GUEST_ANNOUNCE, |_| {});
    assert!(matches!(program.ask(NicRequest::Announce), Answer::Failed(_)));
}

/// A tap that this process has, too, and the NIC's state: what the next process is given.
struct Kept {
    taps: Vec<OwnedFd>,
    state: File,
}

impl Kept {
    fn plug(&self) -> Plug {
        let taps = self.taps.iter().map(|tap| tap.as_fd().try_clone_to_owned().unwrap()).collect();
        Plug { state: self.state.try_clone().unwrap(), ..Plug::new(End::Tap(taps)) }
    }
}

#[test]
fn all_that_a_driver_has_set_is_there_after_its_backend_was_killed() {
    wire::own_network();
    let (tap, wire) = wire::tap("t0");
    let kept = Kept { taps: vec![tap], state: Plug::new(End::Stream(None)).state };
    let (mut program, _, mut streams) = start_nics(vec![kept.plug()]);
    let wanted = ALL | features::CTRL_GUEST_OFFLOADS;
    let mut guest = Guest::with_queues(streams.remove(0), wanted, 3).run();
    guest.offer_buffers(64, 2000);
    guest.rx().kick();
    for command in [&[0, 0, 0][..], &[0, 5, 1], &[2, 0, 7, 0], &[&[1, 1][..], &OTHER].concat()] {
        assert_eq!(guest.command(command), OK);
    }
    assert_eq!(guest.command(&[5, 0, 1 << 1, 0, 0, 0, 0, 0, 0, 0]), OK);
    program.order(NicRequest::Announce);
    for round in 0..5 {
        drop(program);
        let (next, _, mut streams) = start_nics(vec![kept.plug()]);
        program = next;
        guest.go_on(streams.remove(0));
        assert_eq!(guest.config(8), [0x52, 0x54, 0, 0, 9, 9, 3, 0], "round {round}");
        // The address, no broadcast frames, and checksums left open are as they were.
        wire.send(PLAIN, &to([0xff; 6], 1));
        wire.send(PLAIN, &to(OWN, 2));
        wire.send(PLAIN, &to(OTHER, 3));
        assert_eq!(guest.receive().1[11], 3);
        let (header, mut sent) = tcp(100);
        sent[..6].copy_from_slice(&OTHER);
        wire.send(header, &sent);
        let (_, got) = guest.receive();
        assert!(is_tcp(&got) && !tcp_is_complete(&got));
        guest.send(PLAIN, &frame(9, 60), 2000);
        assert_eq!(wire.receive(), frame(9, 60));
    }
    // A driver that begins anew finds nothing of the one before.
    drop(guest);
    drop(program);
    let (_program, _, mut streams) = start_nics(vec![kept.plug()]);
    let mut guest = Guest::resetting(streams.remove(0), wanted, 3).run();
    assert_eq!(guest.config(8), [0x52, 0x54, 0, 0, 0, 0, 1, 0]);
    guest.offer_buffers(64, 2000);
    guest.rx().kick();
    assert_eq!(reach(&wire, &mut guest), [0, 1, 2, 3]);
}

/// Looks at whoever reads the file, before the read is done: the line of `/proc/PID/status` that tells of its filter.
fn filter_of_the_reader(file: &std::path::Path) -> std::thread::JoinHandle<String> {
    let flags = InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_CLOEXEC;
    let watch = Fanotify::init(flags, EventFFlags::O_RDONLY).unwrap();
    watch
        .mark(MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_ACCESS_PERM, nix::fcntl::AT_FDCWD, Some(file))
        .unwrap();
    std::thread::spawn(move || {
        let event = watch.read_events().unwrap().remove(0);
        let status = std::fs::read_to_string(format!("/proc/{}/status", event.pid())).unwrap();
        watch.write_response(FanotifyResponse::new(event.fd().unwrap(), Response::FAN_ALLOW)).unwrap();
        drop(event);
        // Whoever reads later waits for nobody.
        drop(watch);
        status.lines().find(|line| line.starts_with("Seccomp:")).unwrap().to_owned()
    })
}

#[test]
fn what_another_process_has_kept_is_read_behind_the_seal() {
    wire::own_network();
    let (tap, _wire) = wire::tap("t0");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state");
    std::fs::write(&path, [0; NIC_STATE_LEN as usize]).unwrap();
    // First: what is opened before anybody watches is read unwatched.
    let filter = filter_of_the_reader(&path);
    let state = File::options().read(true).write(true).open(&path).unwrap();
    let (_program, answer, _streams) = start_nics(vec![Plug { state, ..Plug::new(End::Tap(vec![tap])) }]);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    assert_eq!(filter.join().unwrap(), "Seccomp:\t2");
}

#[test]
fn a_state_of_nonsense_is_the_state_of_a_new_nic() {
    wire::own_network();
    let (tap, wire) = wire::tap("t0");
    let kept = Kept { taps: vec![tap], state: Plug::new(End::Stream(None)).state };
    for seed in 0..4_u8 {
        let bytes: Vec<u8> = (0..16_384_u32).map(|at| (at.wrapping_mul(97) >> 3) as u8 ^ seed).collect();
        kept.state.write_all_at(&bytes, 0).unwrap();
        let (_program, answer, mut streams) = start_nics(vec![kept.plug()]);
        assert_eq!(answer, Answer::Reply(BackendReply::Ready));
        let mut guest = Guest::with_queues(streams.remove(0), ALL, 3).run();
        guest.offer_buffers(64, 2000);
        guest.rx().kick();
        assert_eq!(reach(&wire, &mut guest), [0, 1, 2, 3]);
        assert_eq!(guest.command(&[0, 0, 0]), OK);
        assert_eq!(reach(&wire, &mut guest), [0, 3]);
    }
}

/// IPv4 datagrams of one flow for each seed.
fn flow(seed: u8) -> Vec<u8> {
    let (_, mut frame) = tcp(200);
    (frame[35], frame[29]) = (seed, seed);
    frame
}

/// Which receive queues the flows come on, of a guest whose buffers are offered on all.
fn queues_of(wire: &Wire, guest: &mut Guest, pairs: usize) -> Vec<usize> {
    let mut queues = Vec::new();
    for seed in 0..32 {
        wire.send(PLAIN, &flow(seed));
        let until = std::time::Instant::now() + Duration::from_secs(5);
        let came = loop {
            let used = (0..pairs).find_map(|pair| Some((pair, guest.rings[2 * pair].try_used()?.0)));
            if let Some((pair, head)) = used {
                guest.rings[2 * pair].offer(head);
                guest.rings[2 * pair].kick();
                break pair;
            }
            assert!(std::time::Instant::now() < until, "flow {seed} does not come on any queue");
        };
        queues.push(came);
    }
    queues.sort_unstable();
    queues.dedup();
    queues
}

#[test]
fn frames_come_on_the_queue_pairs_in_use_and_go_on_all_of_them() {
    wire::own_network();
    let (taps, wire) = wire::taps("t0", 4);
    let kept = Kept { taps, state: Plug::new(End::Stream(None)).state };
    let (program, answer, mut streams) = start_nics(vec![kept.plug()]);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    let mut guest = Guest::with_queues(streams.remove(0), ALL | features::MQ, 9).run();
    assert_eq!(guest.config(10)[8..], [4, 0]);
    (0..4).for_each(|pair| guest.offer_to(pair, 60));
    assert_eq!(queues_of(&wire, &mut guest, 4), [0]);
    for (pairs, expected) in
        [(4, &[0, 1, 2, 3][..]), (2, &[0, 1]), (3, &[0, 1, 2]), (1, &[0]), (4, &[0, 1, 2, 3])]
    {
        assert_eq!(guest.command(&[4, 0, pairs, 0]), OK);
        assert_eq!(queues_of(&wire, &mut guest, 4), expected, "{pairs} pairs");
        assert_eq!(program.statistics().pairs, u16::from(pairs));
    }
    assert_eq!((guest.command(&[4, 0, 0, 0]), guest.command(&[4, 0, 5, 0])), (ERR, ERR));
    // The kernel learns from what is sent where a flow is to come; so all transmitters work.
    for pair in 0..4 {
        guest.send_on(pair, &frame(pair as u8, 60));
        assert_eq!(wire.receive_if(is_test).1, frame(pair as u8, 60));
    }
    // The next process has the same pairs.
    drop(program);
    let (_program, _, mut streams) = start_nics(vec![kept.plug()]);
    guest.go_on(streams.remove(0));
    assert_eq!(queues_of(&wire, &mut guest, 4), [0, 1, 2, 3]);
}

#[test]
fn a_driver_that_knows_of_one_pair_has_its_control_queue_behind_that() {
    wire::own_network();
    let (taps, wire) = wire::taps("t0", 4);
    let (program, _, mut streams) = start_nics(vec![Plug::new(End::Tap(taps))]);
    let mut guest = Guest::with_queues(streams.remove(0), ALL, 3).run();
    guest.offer_buffers(64, 2000);
    guest.rx().kick();
    assert_eq!(guest.command(&[0, 0, 0]), OK);
    assert_eq!(reach(&wire, &mut guest), [0, 3]);
    assert_eq!(program.statistics().pairs, 1);
    // It is stopped and started like any other.
    let base = vhost::VhostBackend::get_vring_base(&guest.frontend, 2).unwrap();
    assert_eq!(base, 1);
    vhost::VhostBackend::set_vring_base(&guest.frontend, 2, 1).unwrap();
    guest.start(2);
    assert_eq!(guest.command(&[0, 0, 1]), OK);
    assert_eq!(reach(&wire, &mut guest), [0, 1, 2, 3]);
}

#[test]
fn a_frontend_that_runs_two_control_queues_gets_both_back() {
    wire::own_network();
    let (taps, wire) = wire::taps("t0", 4);
    let (_program, _, mut streams) = start_nics(vec![Plug::new(End::Tap(taps))]);
    // Without MQ queue 2 is the control queue; that of drivers with MQ runs, too.
    let mut guest = Guest::with_queues(streams.remove(0), ALL, 9).run();
    guest.offer_buffers(64, 2000);
    guest.rx().kick();
    assert_eq!(guest.command_on(2, &[0, 0, 0]), OK);
    for _ in 0..3 {
        for index in [2, 8] {
            let base = vhost::VhostBackend::get_vring_base(&guest.frontend, index).unwrap();
            vhost::VhostBackend::set_vring_base(&guest.frontend, index, base as u16).unwrap();
        }
        [2, 8].into_iter().for_each(|index| guest.start(index));
        assert_eq!(guest.command_on(2, &[0, 0, 0]), OK);
        assert_eq!(reach(&wire, &mut guest), [0, 3]);
    }
}

/// A memory file in the place of the table that the kernel reads: what is in it now.
fn rules_in(table: &File) -> Vec<u32> {
    let mut bytes = vec![0; WORDS * 4];
    table.read_exact_at(&mut bytes, 0).unwrap();
    let (words, _) = bytes.as_chunks::<4>();
    words.iter().map(|word| u32::from_ne_bytes(*word)).collect()
}

#[test]
fn the_taps_table_is_what_the_driver_has_said_and_even_before_that() {
    wire::own_network();
    let (taps, _wire) = wire::taps("t0", 3);
    let table = domus_startup::memfd::sealed("table", WORDS as u64 * 4).unwrap();
    let kept = Kept { taps, state: Plug::new(End::Stream(None)).state };
    let plug = || {
        let mut plug = kept.plug();
        let End::Tap(taps) = plug.end else { unreachable!() };
        plug.end = End::Steered(taps, table.try_clone().unwrap().into());
        plug
    };
    let (program, _, mut streams) = start_nics(vec![plug()]);
    let wanted = ALL | features::MQ | features::RSS;
    let mut guest = Guest::with_queues(streams.remove(0), wanted, 7).run();
    // Its key's length, its table's, and the kinds of hash.
    assert_eq!(guest.config(24)[17..], [40, 128, 0, 0x3f, 0, 0, 0]);
    assert!(rules_in(&table) == Rules::even(1).words().unwrap());
    assert_eq!(guest.command(&[4, 0, 3, 0]), OK);
    assert!(rules_in(&table) == Rules::even(3).words().unwrap());
    let rules = Rules { hash_types: 0x12, key: [7; 40], table: vec![2, 0, 1, 2], unclassified: 1 };
    let words = |words: &[u16]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let mut command = vec![4, 1, 0x12, 0, 0, 0];
    command.extend(words(&[3, 1, 2, 0, 1, 2, 2]));
    command.push(40);
    command.extend([7; 40]);
    assert_eq!(guest.command(&command), OK);
    assert!(rules_in(&table) == rules.words().unwrap());
    assert_eq!(program.statistics().pairs, 3);
    // A pair that there is not.
    let wrong = [&command[..10], &words(&[3]), &command[12..]].concat();
    assert_eq!(guest.command(&wrong), ERR);
    assert!(rules_in(&table) == rules.words().unwrap());
    drop(program);
    table.write_all_at(&vec![0; WORDS * 4], 0).unwrap();
    let (_program, _, mut streams) = start_nics(vec![plug()]);
    guest.go_on(streams.remove(0));
    assert!(rules_in(&table) == rules.words().unwrap());
}

#[test]
fn commands_are_obeyed_by_rings_without_event_indices() {
    let plain = F_VERSION_1 | features::CONTROL | features::MRG_RXBUF;
    let (_program, wire, mut guest) = nic(plain, |_| {});
    for _ in 0..100 {
        assert_eq!((guest.command(&[0, 0, 0]), guest.command(&[0, 0, 2])), (OK, ERR));
    }
    assert_eq!(reach(&wire, &mut guest), [0, 3]);
}

#[test]
fn a_backend_killed_under_traffic_on_all_pairs_is_replaced_and_no_buffer_is_lost() {
    wire::own_network();
    let (taps, _full) = wire::taps("t0", 2);
    let kept = Kept { taps, state: Plug::new(End::Stream(None)).state };
    let (mut program, _, mut streams) = start_nics(vec![kept.plug()]);
    let mut guest = Guest::with_queues(streams.remove(0), ALL | features::MQ, 5).run();
    assert_eq!(guest.command(&[4, 0, 2, 0]), OK);
    (0..2).for_each(|pair| guest.offer_to(pair, 100));
    let feeder = wire::Feeder::start("t0");
    for round in 0..8 {
        let until = std::time::Instant::now() + Duration::from_millis(100);
        let mut came = 0;
        while std::time::Instant::now() < until {
            for pair in 0..2 {
                while let Some((head, _)) = guest.rings[2 * pair].try_used() {
                    came += 1;
                    guest.rings[2 * pair].offer(head);
                    guest.rings[2 * pair].kick();
                }
            }
        }
        assert!(came > 100, "{came} frames in round {round}");
        program.process.kill().unwrap();
        let (next, _, mut streams) = start_nics(vec![kept.plug()]);
        program = next;
        guest.go_on(streams.remove(0));
    }
    drop(feeder);
    // Frames go the other way, too, on both. The wire that was there is full of what was fed.
    let wire = Wire::new("t0");
    for pair in 0..2 {
        guest.send_on(pair, &frame(pair as u8, 60));
        assert_eq!(wire.receive_if(|seen| seen == frame(pair as u8, 60)).1, frame(pair as u8, 60));
    }
    assert_eq!(program.statistics().pairs, 2);
}
