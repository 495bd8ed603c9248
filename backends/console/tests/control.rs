//! Starts the real program the way dom0 does, and is guest, clients and controller at once.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use common::Client;
use domus_driver::process::{Running, longest_file, private_memory};
use domus_driver::{PATIENCE, control};
use domus_startup::Link;
use domus_startup::fds::Outgoing;
use shared_abi::console::{ClientFrame, Mode, Refusal, ServerFrame};
use shared_abi::control::{BackendEvent, BackendReply, ConsoleRequest, ConsoleStart, FromChild, Identity};
use shared_abi::ids::DomId;

type Answer = FromChild<BackendReply, BackendEvent>;

struct Console {
    process: Running,
    link: Link,
    guest: UnixStream,
    path: PathBuf,
    _dir: tempfile::TempDir,
}

fn uid() -> u32 {
    let own = nix::unistd::geteuid();
    if own.is_root() { 1_900_000_003 } else { own.as_raw() }
}

fn start(history: u32, log: Option<OwnedFd>) -> (Console, Answer) {
    let dir = tempfile::tempdir().unwrap();
    let mut program = Command::new(env!("CARGO_BIN_EXE_domus-console"));
    let control = dir.path().join("console-control.sock");
    let (process, link) = control::start("domus-console", &mut program, &control).unwrap();
    let path = dir.path().join("console.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (guest, serial) = UnixStream::pair().unwrap();
    guest.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut fds = Outgoing::default();
    let request = ConsoleRequest::Start(ConsoleStart {
        identity: Identity { domain: "t".parse().unwrap(), domid: DomId(1), uid: uid() },
        serial: fds.add(serial),
        listener: fds.add(listener),
        history,
        log: log.map(|log| fds.add(log)),
    });
    control::send(&link, &request, fds).unwrap();
    let (answer, _) = link.receive::<Answer>().unwrap();
    (Console { process, link, guest, path, _dir: dir }, answer)
}

fn ready(history: u32) -> Console {
    let (console, answer) = start(history, None);
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    console
}

#[test]
fn a_console_attached_late_sees_the_boot_and_one_client_answers() {
    let log = tempfile::NamedTempFile::new().unwrap();
    let append = std::fs::OpenOptions::new().append(true).open(log.path()).unwrap();
    let (mut console, answer) = start(64 << 10, Some(append.into()));
    assert_eq!(answer, Answer::Reply(BackendReply::Ready));
    console.guest.write_all(b"Linux version 6\n").unwrap();
    let mut writer = Client::attach(&console.path, Mode::Write);
    // The guest's bytes may still be on their way when the client attaches: then they come as output.
    assert!(matches!(writer.next(), Some(ServerFrame::Welcome { writer: true, .. })));
    assert_eq!(writer.output(16), b"Linux version 6\n");
    let mut reader = Client::attach(&console.path, Mode::Write);
    assert_eq!(reader.next(), Some(ServerFrame::Welcome { writer: false, history: 16 }));
    assert_eq!(reader.output(16), b"Linux version 6\n");

    reader.input(b"dropped");
    writer.input(b"root\n");
    let mut typed = [0; 5];
    console.guest.read_exact(&mut typed).unwrap();
    assert_eq!(&typed, b"root\n");
    reader.send(&ClientFrame::Attach { mode: Mode::Take });
    assert_eq!(writer.next(), Some(ServerFrame::Writer { you: false }));
    assert_eq!(reader.next(), Some(ServerFrame::Writer { you: true }));
    reader.input(b"ls\n");
    console.guest.read_exact(&mut typed[..3]).unwrap();
    assert_eq!(&typed[..3], b"ls\n");
    // It is written by a thread of its own.
    let written = || {
        control::send(&console.link, &ConsoleRequest::Ping, Outgoing::default()).unwrap();
        console.link.receive::<Answer>().unwrap().0
    };
    let done = Answer::Reply(BackendReply::Console { trouble: None, unwritten: 0 });
    while written() != done {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    assert_eq!(std::fs::read(log.path()).unwrap(), b"Linux version 6\n");
    // The log's limit, and its last line.
    let longest = longest_file(console.process.pid()).unwrap();
    assert_eq!(longest, Some(domus_console::log::MAX_FILE));

    // Nonsense on the control socket is refused and ends nothing.
    console.link.send(&"no request", &[]).unwrap();
    assert!(matches!(console.link.receive::<Answer>().unwrap().0, Answer::Failed(_)));

    console.guest.write_all(b"bye").unwrap();
    console.guest.shutdown(std::net::Shutdown::Both).unwrap();
    for client in [&mut reader, &mut writer] {
        assert_eq!(client.output(3), b"bye");
        assert_eq!(client.next(), Some(ServerFrame::End));
        assert_eq!(client.next(), None);
    }
    let mut late = Client::attach(&console.path, Mode::Read);
    assert_eq!(late.next(), Some(ServerFrame::Welcome { writer: false, history: 19 }));
    assert_eq!(late.output(19), b"Linux version 6\nbye");
    assert_eq!(late.next(), Some(ServerFrame::End));
    assert!(console.process.ended().unwrap().is_none());
}

#[test]
fn a_client_that_never_reads_stops_neither_the_guest_nor_the_others() {
    let console = ready(64 << 10);
    let mut stuck = Client::attach(&console.path, Mode::Read);
    assert!(matches!(stuck.next(), Some(ServerFrame::Welcome { .. })));
    let mut reader = Client::attach(&console.path, Mode::Read);
    assert!(matches!(reader.next(), Some(ServerFrame::Welcome { .. })));
    let mut guest = console.guest.try_clone().unwrap();
    let total = 8 << 20;
    let printing = std::thread::spawn(move || {
        for line in 0..total / 16 {
            guest.write_all(format!("{line:15}\n").as_bytes()).unwrap();
        }
    });
    let (mut seen, mut lost) = (0, 0);
    while seen + lost < total {
        match reader.next().unwrap() {
            ServerFrame::Output(bytes) => seen += bytes.len(),
            ServerFrame::Lost { bytes } => lost += bytes as usize,
            other => panic!("{other:?}"),
        }
    }
    printing.join().unwrap();
    console.guest.shutdown(std::net::Shutdown::Both).unwrap();
    let (mut seen, mut lost) = (0, 0);
    loop {
        match stuck.next().unwrap() {
            ServerFrame::Output(bytes) => seen += bytes.len(),
            ServerFrame::Lost { bytes } => lost += bytes as usize,
            ServerFrame::End => break,
            other => panic!("{other:?}"),
        }
    }
    assert!(lost > 0);
    assert_eq!(seen + lost, total);
}

#[test]
fn a_guest_that_takes_no_input_stops_only_its_writer_and_gets_all_of_it_later() {
    let mut console = ready(4096);
    let mut writer = Client::attach(&console.path, Mode::Write);
    assert!(matches!(writer.next(), Some(ServerFrame::Welcome { writer: true, .. })));
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|i| i as u8).collect();
    let expected = bytes.clone();
    // The client goes as soon as it has written everything: none of it may be lost.
    let typing = std::thread::spawn(move || writer.input(&bytes));
    std::thread::sleep(Duration::from_millis(100));
    console.guest.write_all(b"still here").unwrap();
    let mut reader = Client::attach(&console.path, Mode::Read);
    assert!(matches!(reader.next(), Some(ServerFrame::Welcome { .. })));
    assert_eq!(reader.output(10), b"still here");
    let mut taken = vec![0; expected.len()];
    console.guest.read_exact(&mut taken).unwrap();
    assert!(taken == expected);
    typing.join().unwrap();
}

#[test]
fn one_client_too_many_is_told_so() {
    let console = ready(4096);
    let mut clients: Vec<_> = (0..domus_console::console::MAX_CLIENTS)
        .map(|_| {
            let mut client = Client::attach(&console.path, Mode::Read);
            assert!(matches!(client.next(), Some(ServerFrame::Welcome { .. })));
            client
        })
        .collect();
    // Not by `Client`, whose first write could meet a socket that is closed already.
    let mut refused = UnixStream::connect(&console.path).unwrap();
    let mut bytes = Vec::new();
    refused.read_to_end(&mut bytes).unwrap();
    let mut decoder = shared_abi::console::Decoder::default();
    let frame = decoder.next::<ServerFrame>(&mut &bytes[..]).unwrap();
    assert_eq!(frame, Some(ServerFrame::Refused(Refusal::TooManyClients)));
    clients.clear();
    let mut next = Client::attach(&console.path, Mode::Read);
    assert!(matches!(next.next(), Some(ServerFrame::Welcome { .. })));
}

#[test]
fn a_history_outside_its_bounds_is_refused_with_the_bounds() {
    let (mut console, answer) = start(4095, None);
    match answer {
        Answer::Failed(text) => assert!(text.contains("4095") && text.contains("4096"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(console.process.end().unwrap().code(), Some(1));
}

#[test]
fn a_sealed_console_has_no_privilege_and_little_memory() {
    let console = ready(1 << 20);
    let proc = PathBuf::from(format!("/proc/{}", console.process.pid()));
    let status = std::fs::read_to_string(proc.join("status")).unwrap();
    for line in ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} is not in {status}");
    }
    if let Ok(private) = private_memory(console.process.pid()) {
        assert!(private <= 4096, "{private} KiB private memory");
        println!("private memory: {private} KiB");
    }
    let switches = || {
        let mut counts = Vec::new();
        for task in std::fs::read_dir(proc.join("task")).unwrap() {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            counts.extend(status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned));
        }
        counts
    };
    let reader = Client::attach(&console.path, Mode::Read);
    std::thread::sleep(Duration::from_millis(200));
    let before = switches();
    std::thread::sleep(Duration::from_secs(1));
    assert_eq!(switches(), before, "an idle console wakes up");
    drop(reader);
}
