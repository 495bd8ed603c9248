//! Ports that come and go, and guests and frontends that lie: the others go on.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Answer, OFFLOADS, Switch, USUAL, card, lost, mac};
use domus_driver::PATIENCE;
use domus_driver::event::lent;
use domus_driver::frames::{ALL, PLAIN, frame, tcp};
use domus_driver::frontend::F_VERSION_1;
use domus_driver::net::{Guest, SENT};
use domus_driver::process::private_memory;
use domus_driver::ring::{NEXT, WRITE};
use domus_net::features;
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use shared_abi::control::{BackendReply, DropReason, NicLimits, NicRequest, SwitchEvent, SwitchRequest};
use vhost::vhost_user::Frontend;
use vhost::{VhostBackend, VhostUserMemoryRegionInfo};
use vmm_sys_util::eventfd::EventFd;

const DONE: Answer = Answer::Reply(BackendReply::Done);

fn pass(from: &mut Guest, to: &mut Guest, addresses: [u8; 2], seed: u8) {
    let sent = frame(mac(addresses[1]), mac(addresses[0]), seed, 200);
    from.send(PLAIN, &sent, 2000);
    assert_eq!(to.receive().1, sent);
}

/// How much of files in memory the program maps.
fn mapped(switch: &Switch, name: &str) -> usize {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", switch.process.pid())).unwrap();
    maps.lines().filter(|line| line.contains(&format!("memfd:{name} "))).count()
}

fn failed(switch: &Switch, port: u8) -> String {
    match switch.link.receive::<Answer>().unwrap().0 {
        Answer::Event(SwitchEvent::PortFailed { domain, nic, why }) => {
            assert_eq!((domain.as_str(), nic.as_str()), (&*format!("d{port}"), "eth0"));
            why
        }
        other => panic!("{other:?}"),
    }
}

/// Takes what `a` has sent back, and what `b` has got; returns how much `a` has sent.
fn take_all(a: &mut Guest, b: &mut Guest) -> u16 {
    let mut sent = 0;
    while a.tx().try_used().is_some() {
        sent += 1;
    }
    while let Some((head, _)) = b.rx().try_used() {
        b.rx().offer(head);
    }
    sent
}

/// Frames on their way when the switch is killed.
const FLOOD: u16 = 200;

#[test]
fn guests_go_on_when_the_switch_was_killed_under_traffic_and_another_takes_over() {
    let mut switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, OFFLOADS), switch.guest(2, OFFLOADS));
    for round in 0..5 {
        for seed in 0..20 {
            pass(&mut a, &mut b, [1, 2], seed);
            pass(&mut b, &mut a, [2, 1], seed);
        }
        // Frames are on their way when it dies.
        for index in 0..FLOOD {
            a.tx().set_descriptor(200, (SENT, 12 + 200, 0, 0));
            a.tx().offer(200);
            if index % 30 == 0 {
                a.tx().kick();
            }
        }
        std::thread::sleep(Duration::from_micros(round * 50));
        switch.process.kill().unwrap();
        let mut used = take_all(&mut a, &mut b);
        switch = Switch::start();
        for (port, guest) in [(1, &mut a), (2, &mut b)] {
            guest.go_on(switch.plug(port));
            switch.settle(port, guest);
        }
        // What was not sent before is sent now.
        let until = Instant::now() + PATIENCE;
        while used < FLOOD {
            assert!(Instant::now() < until, "{used} of {FLOOD} frames are given back");
            used += take_all(&mut a, &mut b);
        }
        assert_eq!(used, FLOOD);
    }
    let (header, sent) = tcp(mac(2), mac(1), 60_000);
    a.send(header, &sent, 4096);
    assert!(b.receive().1 == sent);
}

#[test]
fn orders_are_obeyed_while_frames_come_one_soon_after_the_other() {
    let switch = Switch::start();
    let (mut a, b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let bytes = a.put(PLAIN, &frame(mac(2), mac(1), 1, 60));
    a.tx().set_descriptor(0, (SENT, bytes, 0, 0));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                a.tx().offer(0);
                a.tx().kick();
                while a.tx().try_used().is_none() {
                    std::hint::spin_loop();
                }
            }
        });
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(300) {
            assert_eq!(switch.nic(1, NicRequest::Limit(NicLimits::default())), DONE);
            let base = b.frontend.get_vring_base(0).unwrap();
            b.frontend.set_vring_base(0, base as u16).unwrap();
            b.frontend.set_vring_kick(0, &lent(&b.rings[0].kick).unwrap()).unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
}

#[test]
fn a_port_that_is_unplugged_leaves_no_memory_behind_and_its_address_is_free() {
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    assert_eq!(mapped(&switch, "guest"), 2);
    let unplug = |port: u8| SwitchRequest::Unplug {
        domain: format!("d{port}").parse().unwrap(),
        nic: "eth0".parse().unwrap(),
    };
    assert_eq!(switch.ask(&unplug(2)), DONE);
    assert_eq!(mapped(&switch, "guest"), 1);
    assert_eq!(switch.ask(&unplug(2)), DONE);
    a.send(PLAIN, &frame(mac(2), mac(1), 1, 60), 2000);
    assert!(matches!(switch.nic(2, NicRequest::Statistics), Answer::Failed(why) if why.contains("d2 eth0")));

    let same = |port: u8| {
        let mut other = card(port);
        other.mac = card(1).mac;
        other
    };
    let (answer, _) = switch.plug_card("d3", same(3));
    assert!(
        matches!(answer, Answer::Failed(why) if why.contains("52:54:00:00:00:01") && why.contains("d1 eth0"))
    );
    let mut pairs = card(4);
    pairs.pairs = 2;
    assert!(matches!(switch.plug_card("d4", pairs).0, Answer::Failed(why) if why.contains("2 queue pairs")));

    // The same NIC once more: the port before it is gone.
    b.go_on(switch.plug(2));
    switch.settle(2, &mut b);
    pass(&mut a, &mut b, [1, 2], 3);
    a.go_on(switch.plug(1));
    switch.settle(1, &mut a);
    pass(&mut b, &mut a, [2, 1], 4);
    assert_eq!(mapped(&switch, "guest"), 2);
    // A frontend that hangs up is no failure.
    drop(a.frontend);
    let until = Instant::now() + PATIENCE;
    while mapped(&switch, "guest") != 1 {
        assert!(Instant::now() < until);
        std::thread::sleep(Duration::from_millis(5));
    }
    assert!(matches!(switch.nic(1, NicRequest::Statistics), Answer::Reply(_)));
}

#[test]
fn there_are_so_many_ports_and_no_more() {
    let switch = Switch::start();
    let mut streams: Vec<_> = (0..domus_switch::MAX_PORTS as u8).map(|port| switch.plug(port)).collect();
    let (answer, _) = switch.plug_card("d200", card(200));
    assert!(matches!(answer, Answer::Failed(why) if why.contains("64")));
    // One that is there already is plugged again nevertheless.
    streams.push(switch.plug(63));
    let mut guest = Guest::new(streams.pop().unwrap(), USUAL);
    assert_eq!(guest.config(12)[..6], mac(63));
}

#[test]
fn a_frontend_that_breaks_the_protocol_loses_its_port_alone() {
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let mut nonsense = switch.plug(3);
    nonsense.set_read_timeout(Some(PATIENCE)).unwrap();
    nonsense.write_all(&[0xff; 64]).unwrap();
    let why = failed(&switch, 3);
    assert!(why.contains("vhost-user"), "{why}");
    let read = nonsense.read(&mut [0; 1]);
    assert!(
        !matches!(&read, Err(error) if error.kind() == ErrorKind::WouldBlock),
        "the frontend is not hung up on"
    );

    // Memory that could become shorter under the switch.
    let file = memfd_create("short", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&file, 1 << 20).unwrap();
    let frontend = Frontend::from_stream(switch.plug(4), 2);
    frontend.set_owner().unwrap();
    let region = VhostUserMemoryRegionInfo {
        guest_phys_addr: 0,
        memory_size: 1 << 20,
        userspace_addr: 0x7000_0000_0000,
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    frontend.set_mem_table(&[region]).unwrap();
    let why = failed(&switch, 4);
    assert!(why.contains("F_SEAL_SHRINK"), "{why}");
    assert_eq!(mapped(&switch, "short"), 0);

    // Huge pages, of which there need be none when they are touched.
    let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING | MFdFlags::MFD_HUGETLB;
    let file = memfd_create("huge", flags).unwrap();
    nix::unistd::ftruncate(&file, 2 << 20).unwrap();
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW)).unwrap();
    let frontend = Frontend::from_stream(switch.plug(4), 2);
    frontend.set_owner().unwrap();
    let region = VhostUserMemoryRegionInfo { memory_size: 2 << 20, mmap_handle: file.as_raw_fd(), ..region };
    frontend.set_mem_table(&[region]).unwrap();
    let why = failed(&switch, 4);
    assert!(why.contains("tmpfs"), "{why}");
    assert_eq!(mapped(&switch, "huge"), 0);

    // Many files: they are this process's, and not many.
    let file = domus_startup::memfd::sealed("many", 1 << 20).unwrap();
    let frontend = Frontend::from_stream(switch.plug(5), 2);
    frontend.set_owner().unwrap();
    let region = |n: u64| VhostUserMemoryRegionInfo {
        guest_phys_addr: n << 20,
        memory_size: 1 << 20,
        userspace_addr: 0x7000_0000_0000 + (n << 20),
        mmap_offset: 0,
        mmap_handle: file.as_raw_fd(),
    };
    frontend.set_mem_table(&(0..8).map(region).collect::<Vec<_>>()).unwrap();
    let why = failed(&switch, 5);
    assert!(why.contains("more than 4"), "{why}");

    for seed in 0..20 {
        pass(&mut a, &mut b, [1, 2], seed);
    }
    // Both ports can be plugged again.
    let mut c = switch.guest(3, USUAL);
    pass(&mut a, &mut c, [1, 3], 1);
}

#[test]
fn a_descriptor_that_is_no_eventfd_is_refused_and_costs_its_port_alone() {
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let (reader, writer) = nix::unistd::pipe().unwrap();
    let others: [(&str, OwnedFd); 4] = [
        ("a socket", UnixStream::pair().unwrap().0.into()),
        ("a pipe to write to", writer),
        ("a pipe to read from", reader),
        ("a file", memfd_create("file", MFdFlags::MFD_CLOEXEC).unwrap()),
    ];
    for (what, other) in others {
        let other = lent(&other).unwrap();
        let says: [(&str, Says); 3] = [
            ("call", |frontend, fd| frontend.set_vring_call(0, fd)),
            ("kick", |frontend, fd| frontend.set_vring_kick(0, fd)),
            ("error", |frontend, fd| frontend.set_vring_err(0, fd)),
        ];
        for (name, says) in says {
            let frontend = Frontend::from_stream(switch.plug(3), 2);
            frontend.set_owner().unwrap();
            says(&frontend, &other).unwrap();
            let why = failed(&switch, 3);
            assert!(why.contains(name) && why.contains("no eventfd"), "{what} as {name}: {why}");
        }
        pass(&mut a, &mut b, [1, 2], 1);
    }
}

/// A message with an eventfd.
type Says = fn(&Frontend, &EventFd) -> vhost::Result<()>;

#[test]
fn a_call_eventfd_that_its_frontend_fills_and_lets_block_stops_nobody() {
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    let mut liar = switch.guest(3, F_VERSION_1);
    for queue in [0, 1] {
        let call = &liar.rings[queue].call;
        nix::unistd::write(call, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        fcntl(call, FcntlArg::F_SETFL(OFlag::O_RDWR)).unwrap();
    }
    // It has not asked not to be called, so it is for each of these.
    for seed in 0..5 {
        let sent = frame(mac(3), mac(1), seed, 100);
        a.send(PLAIN, &sent, 2000);
        assert_eq!(liar.receive().1, sent);
        pass(&mut a, &mut b, [1, 2], seed);
        let bytes = liar.put(PLAIN, &frame(mac(2), mac(3), seed, 100));
        liar.tx().set_descriptor(0, (SENT, bytes, 0, 0));
        liar.tx().offer(0);
        liar.tx().kick();
        b.receive();
    }
    // Its connection's thread signals as it starts a ring again.
    let base = liar.frontend.get_vring_base(1).unwrap();
    liar.frontend.set_vring_base(1, base as u16).unwrap();
    liar.start(1);
    switch.settle(3, &mut liar);
    pass(&mut b, &mut a, [2, 1], 1);
}

/// What a guest may do to its rings.
type Lie = fn(&mut Guest);

#[test]
fn a_guest_that_lies_in_its_rings_harms_itself_alone() {
    let lies: [(&str, Lie); 9] = [
        ("more chains than the ring has", |guest| guest.tx().break_available_index()),
        ("more buffers than the ring has", |guest| guest.rx().break_available_index()),
        ("a chain that never ends", |guest| {
            guest.tx().set_descriptor(9, (SENT, 100, NEXT, 9));
            guest.tx().offer(9);
        }),
        ("a descriptor that does not exist", |guest| guest.tx().offer(5000)),
        ("a frame outside the memory", |guest| {
            guest.tx().set_descriptor(9, (1 << 40, 100, 0, 0));
            guest.tx().offer(9);
        }),
        ("the end of a frame outside the memory", |guest| {
            guest.tx().set_descriptor(9, (SENT, 400, NEXT, 10));
            guest.tx().set_descriptor(10, (u64::MAX - 8, 100, 0, 0));
            guest.tx().offer(9);
        }),
        ("a frame to be written", |guest| {
            guest.tx().set_descriptor(9, (SENT, 100, WRITE, 0));
            guest.tx().offer(9);
        }),
        ("buffers outside the memory", |guest| {
            for index in 130..140 {
                guest.rx().set_descriptor(index, (1 << 50, 1536, WRITE, 0));
                guest.rx().offer(index);
            }
        }),
        ("buffers to be read, and of no length", |guest| {
            guest.rx().set_descriptor(130, (SENT, 1536, 0, 0));
            guest.rx().set_descriptor(131, (SENT, 0, WRITE, 0));
            guest.rx().offer(130);
            guest.rx().offer(131);
        }),
    ];
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL));
    for (seed, (name, lie)) in (0..).zip(lies) {
        for buffers in [0, 3] {
            let mut liar = switch.run(3, Guest::new(switch.plug(3), USUAL), buffers);
            lie(&mut liar);
            liar.tx().kick();
            for round in 0..30 {
                a.send(PLAIN, &frame(mac(3), mac(1), round, 1000), 2000);
                pass(&mut a, &mut b, [1, 2], seed);
                let all = frame(ALL, mac(2), round, 300);
                b.send(PLAIN, &all, 2000);
                assert_eq!(a.receive().1, all, "{name}");
            }
            // It may come back.
            let mut honest = switch.guest(3, USUAL);
            pass(&mut a, &mut honest, [1, 3], seed);
            pass(&mut honest, &mut b, [3, 2], seed);
        }
    }
}

/// Processor time used so far, in clock ticks of 10 ms.
fn ticks(switch: &Switch) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", switch.process.pid())).unwrap();
    let fields: Vec<_> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

#[test]
fn a_frame_that_is_taken_back_while_it_waits_costs_nothing() {
    let switch = Switch::start();
    let mut liar = switch.guest(1, USUAL);
    let _full = switch.run(2, Guest::new(switch.plug(2), USUAL), 0);
    let waiting = frame(mac(2), mac(1), 1, 60);
    let bytes = liar.put(PLAIN, &waiting);
    liar.tx().set_descriptor(0, (SENT, bytes, 0, 0));
    liar.tx().offer(0);
    liar.tx().kick();
    // Whether it is popped before this or not, and whether it waits or not.
    liar.tx().break_available_index();
    std::thread::sleep(Duration::from_millis(100));
    let before = ticks(&switch);
    std::thread::sleep(Duration::from_millis(500));
    assert!(ticks(&switch) - before <= 1, "{} ticks", ticks(&switch) - before);
}

#[test]
fn a_header_that_does_not_fit_its_packet_reaches_nobody_who_cannot_take_it() {
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, OFFLOADS), switch.guest(2, USUAL));
    let (header, sent) = tcp(mac(2), mac(1), 60_000);
    for (at, value) in [(6, 20), (8, 6), (4, 1)] {
        let mut header = header;
        header[at] = value;
        if at == 4 {
            header[5] = 0;
        }
        a.send(header, &sent, 4096);
    }
    pass(&mut a, &mut b, [1, 2], 1);
    // A checksum elsewhere than in TCP is refused of any sender, and so many pieces by this receiver.
    assert_eq!(lost(&switch.statistics(1).transmit.drops, DropReason::Header), 2);
    assert_eq!(lost(&switch.statistics(2).receive.drops, DropReason::Header), 1);
}

#[test]
fn a_switch_that_rests_wakes_nobody_and_is_sealed() {
    let switch = Switch::start();
    let (mut a, mut b) = (switch.guest(1, USUAL), switch.guest(2, USUAL | features::GUEST_CSUM));
    for seed in 0..50 {
        pass(&mut a, &mut b, [1, 2], seed);
    }
    std::thread::sleep(Duration::from_millis(200));
    let before = switch.switches();
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!(switch.switches(), before);
    let status = std::fs::read_to_string(format!("/proc/{}/status", switch.process.pid())).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    let private = private_memory(switch.process.pid()).unwrap();
    println!("private memory: {private} KiB");
    assert!(private <= 4096, "{private} KiB private memory");
}
