//! The program by itself, as a virtio-console device, with a driver and a frontend of our own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::{Client, PATIENCE};
use shared_abi::console::{Mode, ServerFrame};
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const MEMORY: u64 = 4 << 20;
const SIZE: u16 = 16;
const EVENT_IDX: u64 = 1 << 29;
const VERSION_1: u64 = 1 << 32;
const WRITE: u16 = 2;

struct Ring {
    memory: GuestMemoryMmap,
    base: u64,
    available: u16,
    used: u16,
    kick: EventFd,
    call: EventFd,
}

impl Ring {
    fn new(memory: &GuestMemoryMmap, base: u64) -> Self {
        let eventfd = || EventFd::new(EFD_NONBLOCK).unwrap();
        Self { memory: memory.clone(), base, available: 0, used: 0, kick: eventfd(), call: eventfd() }
    }

    fn at(&self, offset: u64) -> GuestAddress {
        GuestAddress(self.base + offset)
    }

    /// Offers one buffer as descriptor `head`, and kicks.
    fn offer(&mut self, head: u16, addr: u64, len: u32, flags: u16) {
        let at = u64::from(head) * 16;
        self.memory.write_obj(addr, self.at(at)).unwrap();
        self.memory.write_obj(len, self.at(at + 8)).unwrap();
        self.memory.write_obj(flags, self.at(at + 12)).unwrap();
        self.memory.write_obj(head, self.at(0x1004 + u64::from(self.available % SIZE) * 2)).unwrap();
        self.available = self.available.wrapping_add(1);
        self.memory.store(self.available, self.at(0x1002), Ordering::SeqCst).unwrap();
        self.kick.write(1).unwrap();
    }

    fn used(&mut self) -> (u16, u32) {
        let until = Instant::now() + PATIENCE;
        while self.memory.load::<u16>(self.at(0x2002), Ordering::Acquire).unwrap() == self.used {
            while self.call.read().is_err() {
                assert!(Instant::now() < until, "the driver was not called");
                std::thread::sleep(Duration::from_micros(100));
            }
        }
        let at = 0x2004 + u64::from(self.used % SIZE) * 8;
        let head: u32 = self.memory.read_obj(self.at(at)).unwrap();
        self.used = self.used.wrapping_add(1);
        self.memory.store(self.used, self.at(0x1004 + u64::from(SIZE) * 2), Ordering::SeqCst).unwrap();
        (head as u16, self.memory.read_obj(self.at(at + 4)).unwrap())
    }
}

struct Guest {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    rx: Ring,
    tx: Ring,
}

impl Guest {
    fn new(stream: UnixStream, wanted: u64) -> Self {
        let fd = nix::sys::memfd::memfd_create("guest", nix::sys::memfd::MFdFlags::MFD_CLOEXEC).unwrap();
        let file = File::from(fd);
        file.set_len(MEMORY).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let range = (GuestAddress(0), MEMORY as usize, Some(offset));
        let memory = GuestMemoryMmap::from_ranges_with_files([range]).unwrap();
        let mut frontend = Frontend::from_stream(stream, 2);
        frontend.set_owner().unwrap();
        let protocol = 1 << 30;
        let features = frontend.get_features().unwrap() & (wanted | protocol);
        assert_eq!(features, wanted | protocol);
        frontend.set_features(features).unwrap();
        let offered = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(offered & VhostUserProtocolFeatures::CONFIG).unwrap();
        // The frontend's own addresses are names: nobody uses them as pointers.
        let base = 0x7000_0000_0000;
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: base,
            mmap_offset: 0,
            mmap_handle: file.as_raw_fd(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let (rx, tx) = (Ring::new(&memory, 0x1_0000), Ring::new(&memory, 0x2_0000));
        for (index, ring) in [&rx, &tx].into_iter().enumerate() {
            frontend.set_vring_num(index, SIZE).unwrap();
            let config = VringConfigData {
                queue_max_size: SIZE,
                queue_size: SIZE,
                flags: 0,
                desc_table_addr: base + ring.base,
                used_ring_addr: base + ring.base + 0x2000,
                avail_ring_addr: base + ring.base + 0x1000,
                log_addr: None,
            };
            frontend.set_vring_addr(index, &config).unwrap();
            frontend.set_vring_base(index, 0).unwrap();
            frontend.set_vring_call(index, &ring.call).unwrap();
            frontend.set_vring_kick(index, &ring.kick).unwrap();
            frontend.set_vring_enable(index, true).unwrap();
        }
        Self { frontend, memory, rx, tx }
    }

    fn print(&mut self, text: &[u8]) {
        self.memory.write_slice(text, GuestAddress(0x10_0000)).unwrap();
        self.tx.offer(0, 0x10_0000, text.len() as u32, 0);
        assert_eq!(self.tx.used(), (0, 0));
    }

    fn typed(&mut self, count: usize) -> Vec<u8> {
        let mut typed = Vec::new();
        while typed.len() < count {
            self.rx.offer(3, 0x20_0000, 10, WRITE);
            let (head, len) = self.rx.used();
            let mut part = vec![0; len as usize];
            self.memory.read_slice(&mut part, GuestAddress(0x20_0000)).unwrap();
            assert!(head == 3 && (1..=10).contains(&len));
            typed.extend(part);
        }
        typed
    }
}

struct Program {
    child: Child,
    console: PathBuf,
    _dir: tempfile::TempDir,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn start() -> (Program, UnixStream) {
    let dir = tempfile::tempdir().unwrap();
    let (path, console) = (dir.path().join("vhost-user.sock"), dir.path().join("console.sock"));
    let mut command = Command::new(env!("CARGO_BIN_EXE_domus-console"));
    let child =
        command.arg("--socket-path").arg(&path).arg("--console-socket").arg(&console).spawn().unwrap();
    let program = Program { child, console, _dir: dir };
    (program, connect(&path))
}

fn connect(path: &Path) -> UnixStream {
    let until = Instant::now() + PATIENCE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > until => panic!("{}: {error}", path.display()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

#[test]
fn a_guest_prints_through_its_ring_and_reads_what_is_typed() {
    for wanted in [VERSION_1 | EVENT_IDX, VERSION_1] {
        let (mut program, stream) = start();
        let mut guest = Guest::new(stream, wanted);
        guest.print(b"Linux version 6\n");
        let mut client = Client::attach(&program.console, Mode::Write);
        assert!(matches!(client.next(), Some(ServerFrame::Welcome { writer: true, .. })));
        assert_eq!(client.output(16), b"Linux version 6\n");
        client.input(b"root\n");
        assert_eq!(guest.typed(5), b"root\n");
        // More than the driver has room for waits, in order.
        let long: Vec<u8> = (0..3000_u32).map(|at| at as u8).collect();
        client.input(&long);
        assert_eq!(guest.typed(3000), long);
        for line in 0..200 {
            let line = format!("line {line:10}\n").into_bytes();
            guest.print(&line);
            assert_eq!(client.output(line.len()), line);
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).unwrap();
        for line in
            ["CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"]
        {
            assert!(status.contains(line), "{line} is not in {status}");
        }
        for task in std::fs::read_dir(format!("/proc/{}/task", program.child.id())).unwrap() {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            assert!(
                status.contains("CapEff:\t0000000000000000") && status.contains("Seccomp:\t2"),
                "{status}"
            );
        }
        drop(guest);
        assert!(program.child.wait().unwrap().success(), "the program ends with its frontend");
    }
}

#[test]
fn chains_of_wild_addresses_are_given_back_empty_and_the_console_goes_on() {
    let (program, stream) = start();
    let mut guest = Guest::new(stream, VERSION_1 | EVENT_IDX);
    let mut client = Client::attach(&program.console, Mode::Write);
    assert!(matches!(client.next(), Some(ServerFrame::Welcome { writer: true, .. })));
    for (addr, len) in [(MEMORY, 10), (MEMORY - 5, 10), (u64::MAX - 5, 10), (0, u32::MAX), (0x1000, 0)] {
        guest.tx.offer(1, addr, len, 0);
        assert_eq!(guest.tx.used().0, 1);
        guest.rx.offer(2, addr, len, WRITE);
        assert_eq!(guest.rx.used(), (2, 0), "{addr:#x} {len}");
    }
    guest.print(b"alive");
    let mut output = Vec::new();
    while !output.ends_with(b"alive") {
        match client.next().unwrap() {
            ServerFrame::Output(bytes) => output.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    client.input(b"yes");
    assert_eq!(guest.typed(3), b"yes");
    // A ring that makes no sense stands still; the other goes on, and nobody spins.
    guest.rx.memory.store(1000_u16, guest.rx.at(0x1002), Ordering::SeqCst).unwrap();
    guest.rx.kick.write(1).unwrap();
    guest.print(b"still");
    assert_eq!(client.output(5), b"still");
    let stat = || std::fs::read_to_string(format!("/proc/{}/stat", program.child.id())).unwrap();
    let ticks = |stat: &str| stat.split(' ').skip(13).take(2).map(|n| n.parse::<u64>().unwrap()).sum::<u64>();
    let before = ticks(&stat());
    std::thread::sleep(Duration::from_millis(300));
    assert!(ticks(&stat()) - before <= 1);
    let _ = &guest.frontend;
}

#[test]
fn capabilities_are_printed_and_a_missing_console_socket_is_named() {
    let run = |args: &[&str]| Command::new(env!("CARGO_BIN_EXE_domus-console")).args(args).output().unwrap();
    let output = run(&["--print-capabilities"]);
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), r#"{"type":"console","features":[]}"#);
    let output = run(&["--socket-path", "/nonexistent/x"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--console-socket"));
}
