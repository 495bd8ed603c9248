//! The real program, started over its control socket as dom0 does it, with kernels of a few bytes on the real KVM.

#![expect(clippy::unwrap_used, reason = "a test's steps may fail as the test may")]

mod kernel;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use domus_driver::control;
use domus_driver::process::Running;
use domus_startup::fds::Outgoing;
use domus_startup::{Link, LinkError, memfd};
use kernel::Then;
use nix::fcntl::{FcntlArg, fcntl};
use shared_abi::DomId;
use shared_abi::control::{
    Device, DeviceConfig, DeviceFeatures, DeviceSpec, FdIndex, FromChild, Identity, RunnerEvent, RunnerReply,
    RunnerRequest, RunnerStart, RunnerStatus, StartPart, StopReason, Unpacked,
};
use tempfile::TempDir;

type Answer = FromChild<RunnerReply, RunnerEvent>;

/// No step of any of these tests takes so long on any machine.
const LONGEST: Duration = Duration::from_secs(60);

/// A runner and its controller.
struct Runner {
    process: Running,
    link: Link,
    serial: UnixStream,
    folder: TempDir,
}

/// The uid of the domain: another one for root, else one's own.
fn uid() -> u32 {
    if nix::unistd::geteuid().is_root() { 65_534 } else { nix::unistd::geteuid().as_raw() }
}

fn device(socket: FdIndex) -> Device {
    let spec = DeviceSpec {
        id: "d0".parse().unwrap(),
        slot: None,
        virtio_type: 2,
        pci_class: 0x01_8000,
        queues: 1,
        queue_size: 256,
        config: DeviceConfig::FromBackend(60),
        features: DeviceFeatures::default(),
    };
    Device { spec, socket }
}

fn open_kvm() -> OwnedFd {
    let kvm = File::options().read(true).write(true).open("/dev/kvm");
    kvm.expect("these tests need a usable /dev/kvm").into()
}

impl Runner {
    fn start(kernel: &[u8], vcpus: u8, memory: u64) -> (Self, Answer) {
        let runner = Self::launch(kernel, vcpus, memory, None);
        let answer = runner.receive();
        (runner, answer)
    }

    /// Starts it and does not wait. With a frontend's socket there is a device.
    fn launch(kernel: &[u8], vcpus: u8, memory: u64, backend: Option<UnixStream>) -> Self {
        Self::launch_with(kernel, vcpus, memory, backend, |_| None)
    }

    /// The same, with a file for what the kernel unpacks to.
    fn launch_with(
        kernel: &[u8],
        vcpus: u8,
        memory: u64,
        backend: Option<UnixStream>,
        unpacked: impl FnOnce(&mut Outgoing) -> Option<Unpacked>,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut program = Command::new(env!("CARGO_BIN_EXE_domu-runner"));
        let path = folder.path().join("runner.sock");
        let (process, link) = control::start("domu-runner", &mut program, &path).unwrap();
        let (serial, guest) = UnixStream::pair().unwrap();
        serial.set_read_timeout(Some(LONGEST)).unwrap();
        let mut image = tempfile::tempfile().unwrap();
        image.write_all(kernel).unwrap();
        let mut fds = Outgoing::default();
        let start = RunnerStart {
            identity: Identity { domain: "test".parse().unwrap(), domid: DomId(1), uid: uid() },
            kvm: fds.add(open_kvm()),
            vcpus,
            cpu: Default::default(),
            memory,
            kernel: fds.add(image),
            initrd: None,
            cmdline: String::new(),
            cmdline_yields: false,
            unpacked: unpacked(&mut fds),
            serial: Some(fds.add(guest)),
            devices: backend.into_iter().map(|socket| device(fds.add(socket))).collect(),
        };
        control::send(&link, &RunnerRequest::Start(Box::new(start)), fds).unwrap();
        Self { process, link, serial, folder }
    }

    fn ready(kernel: &[u8], vcpus: u8) -> Self {
        let (runner, answer) = Self::start(kernel, vcpus, 64 << 20);
        assert_eq!(answer, Answer::Reply(RunnerReply::Ready));
        runner
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("runner.sock")
    }

    fn receive(&self) -> Answer {
        self.link.receive().unwrap().0
    }

    fn ask(&self, request: RunnerRequest) -> RunnerReply {
        self.link.send_request(&request, &[]).unwrap();
        match self.receive() {
            Answer::Reply(reply) => reply,
            other => panic!("{request:?} was answered with {other:?}"),
        }
    }

    fn status(&self) -> RunnerStatus {
        match self.ask(RunnerRequest::Status) {
            RunnerReply::Status(status) => status,
            other => panic!("status is {other:?}"),
        }
    }

    /// Lets the guest run to its end: what it printed, and why it stopped. Until it is ended the process stays.
    fn run(mut self) -> (String, StopReason) {
        self.link.send_request(&RunnerRequest::Resume, &[]).unwrap();
        let reason = loop {
            match self.receive() {
                Answer::Event(RunnerEvent::Stopped(reason)) => break reason,
                Answer::Reply(RunnerReply::Done) => {}
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(self.status().stopped, Some(reason.clone()));
        // It stays, whatever its threads do last.
        std::thread::sleep(Duration::from_millis(50));
        assert!(self.process.ended().unwrap().is_none());
        self.process.kill().unwrap();
        let mut printed = Vec::new();
        self.serial.read_to_end(&mut printed).unwrap();
        (String::from_utf8_lossy(&printed).into_owned(), reason)
    }

    /// A line of `/proc/PID/status`.
    fn proc_status(&self, key: &str) -> String {
        let text = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid())).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap_or_else(|| panic!("no {key} in {text}")).trim().to_owned()
    }
}

#[test]
fn a_kernel_without_a_pvh_note_is_started_as_linux_is() {
    let runner = Runner::ready(&kernel::without_note(kernel::elf("long mode\n", Then::PowerOff)), 2);
    assert_eq!(runner.run(), ("long mode\n".into(), StopReason::PowerOff));
}

#[test]
fn the_ways_to_stop_are_told_apart() {
    for (then, expected) in [
        (Then::PowerOff, StopReason::PowerOff),
        (Then::ResetRegister, StopReason::Reboot),
        (Then::KeyboardReset, StopReason::Reboot),
        (Then::TripleFault, StopReason::TripleFault),
    ] {
        let (printed, reason) = Runner::ready(&kernel::elf("hello\n", then), 1).run();
        // An interpreter of ring 0 (KVM_PVM) cannot take a fault without an IDT: it says that it cannot go on.
        let interpreted = then == Then::TripleFault
            && !["kvm_amd", "kvm_intel"].iter().any(|module| Path::new("/sys/module").join(module).exists())
            && matches!(reason, StopReason::VcpuFailed(_));
        assert!(reason == expected || interpreted, "{then:?}: {reason:?}");
        assert_eq!(printed, "hello\n");
    }
}

#[test]
fn a_string_instruction_prints_each_of_its_bytes() {
    let (printed, reason) = Runner::ready(&kernel::elf("abcde", Then::Echo), 1).run();
    assert_eq!(printed, String::from_utf8_lossy(b"abcde\xb0a\xee\xb0b"));
    assert_eq!(reason, StopReason::PowerOff);
}

#[test]
fn a_guest_pauses_resumes_and_outlives_its_controller() {
    let mut runner = Runner::ready(&kernel::elf("x", Then::Spin), 2);
    assert_eq!((runner.status().paused, runner.status().first_run_ns), (true, None));
    assert_eq!(runner.ask(RunnerRequest::Resume), RunnerReply::Done);
    let mut byte = [0];
    runner.serial.read_exact(&mut byte).unwrap();
    for _ in 0..20 {
        assert_eq!(runner.ask(RunnerRequest::Pause), RunnerReply::Done);
        assert!(runner.status().paused);
        assert_eq!(runner.ask(RunnerRequest::Resume), RunnerReply::Done);
        assert!(!runner.status().paused);
    }
    assert_eq!(runner.ask(RunnerRequest::PowerButton), RunnerReply::Done);
    runner.link = control::dial(&runner.path()).unwrap();
    runner.link.hello().unwrap();
    runner.link.welcome().unwrap();
    let status = runner.status();
    assert_eq!((status.paused, status.stopped), (false, None));
    assert!(status.first_run_ns.is_some());
}

#[test]
fn a_runner_holds_nothing_but_its_guest() {
    let runner = Runner::ready(&kernel::elf("x", Then::Spin), 2);
    runner.ask(RunnerRequest::Resume);
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(runner.proc_status(set), "0000000000000000", "{set}");
    }
    assert_eq!(runner.proc_status("NoNewPrivs"), "1");
    assert_eq!(runner.proc_status("Seccomp"), "2");
    let own = uid().to_string();
    assert_eq!(runner.proc_status("Uid").split_whitespace().collect::<Vec<_>>(), [own.as_str(); 4]);
    let proc = PathBuf::from(format!("/proc/{}", runner.process.pid()));
    assert_eq!(std::fs::read_dir(proc.join("root")).unwrap().count(), 0, "the root is empty");
    for namespace in ["mnt", "net", "ipc", "uts", "cgroup"] {
        let of = |who: &Path| std::fs::read_link(who.join("ns").join(namespace)).unwrap();
        assert_ne!(of(&proc), of(Path::new("/proc/self")), "{namespace}");
    }
    let rollup = std::fs::read_to_string(proc.join("smaps_rollup")).unwrap();
    let kib = |key: &str| -> u64 {
        let line = rollup.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    };
    // Guest RAM is shared memory; the rest is the runner's own.
    assert!(kib("Pss_Anon:") < 4096, "{rollup}");
}

#[test]
fn every_thread_of_a_runner_has_a_filter_of_its_own_beside_the_processs() {
    let runner = Runner::ready(&kernel::elf("x", Then::Spin), 2);
    let tasks = std::fs::read_dir(format!("/proc/{}/task", runner.process.pid())).unwrap();
    let mut filters = BTreeMap::new();
    for task in tasks.map(|task| task.unwrap().path()) {
        let name = std::fs::read_to_string(task.join("comm")).unwrap();
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let count = status.lines().find_map(|line| line.strip_prefix("Seccomp_filters:")).unwrap();
        filters.insert(name.trim().to_owned(), count.trim().to_owned());
    }
    let names = ["backend-watch", "domu-runner", "end", "serial", "vcpu0", "vcpu1"];
    assert_eq!(filters, names.map(|name| (name.to_owned(), "2".to_owned())).into());
}

#[test]
fn a_guests_memory_is_in_no_core_of_its_runner_and_is_not_executable() {
    let runner = Runner::ready(&kernel::elf("x", Then::Spin), 1);
    let smaps = std::fs::read_to_string(format!("/proc/{}/smaps", runner.process.pid())).unwrap();
    let ram = smaps.split_once("/memfd:guest-ram").unwrap().1;
    let flags = ram.lines().find_map(|line| line.strip_prefix("VmFlags:")).unwrap();
    assert!(flags.split_whitespace().any(|flag| flag == "dd"), "{flags}");
    let fds = std::fs::read_dir(format!("/proc/{}/fd", runner.process.pid())).unwrap();
    let is_ram = |path: &PathBuf| {
        std::fs::read_link(path).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:guest-ram"))
    };
    let file = File::open(fds.map(|fd| fd.unwrap().path()).find(is_ram).unwrap()).unwrap();
    let seals = nix::fcntl::fcntl(&file, nix::fcntl::FcntlArg::F_GET_SEALS).unwrap();
    // F_SEAL_EXEC, and those of the size, where the kernel has the first.
    assert!([0x27, 0x7].contains(&(seals & 0x27)), "{seals:#x}");
}

#[test]
fn a_backend_is_spoken_to_behind_the_seal() {
    let (mut backend, frontend) = UnixStream::pair().unwrap();
    backend.set_read_timeout(Some(LONGEST)).unwrap();
    let runner = Runner::launch(&kernel::elf("x", Then::Spin), 1, 64 << 20, Some(frontend));
    let mut header = [0; 12];
    backend.read_exact(&mut header).unwrap();
    assert_eq!(header[0], 1, "GET_FEATURES");
    assert_eq!(
        (runner.proc_status("Seccomp"), runner.proc_status("CapEff")),
        ("2".into(), "0000000000000000".into())
    );
    // Nonsense is all that it gets.
    backend.write_all(&[0xff; 64]).unwrap();
    loop {
        match runner.receive() {
            Answer::Event(RunnerEvent::DeviceLost(_)) => {}
            Answer::Reply(RunnerReply::Refused { what: StartPart::Other, why }) => {
                break assert!(why.contains("GET_FEATURES"), "{why}");
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A bzImage around a kernel that is packed with gzip.
fn bzimage(vmlinux: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(vmlinux).unwrap();
    let payload = writer.finish().unwrap();
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    file.extend(payload);
    file
}

#[test]
fn what_a_kernel_unpacks_to_is_sealed_before_a_backend_is_heard_and_starts_the_next_guest() {
    let vmlinuz = bzimage(&kernel::elf("packed\n", Then::PowerOff));
    let kept = memfd::open("kernel").unwrap();
    let seals = || fcntl(&kept, FcntlArg::F_GET_SEALS).unwrap();
    let ours = kept.try_clone().unwrap();
    let (backend, frontend) = UnixStream::pair().unwrap();
    let keep = |fds: &mut Outgoing| Some(Unpacked::Keep(fds.add(ours)));
    let runner = Runner::launch_with(&vmlinuz, 1, 64 << 20, Some(frontend), keep);
    // The first thing that it says to a backend, which says nothing.
    let mut first = [0];
    (&backend).read_exact(&mut first).unwrap();
    assert_eq!(seals() & 0xf, 0xf, "{:#x}", seals());
    drop((backend, runner));

    let ours = kept.try_clone().unwrap();
    let keep = |fds: &mut Outgoing| Some(Unpacked::Kept(fds.add(ours)));
    let mut broken = vmlinuz;
    broken[1024..].fill(0);
    let runner = Runner::launch_with(&broken, 1, 64 << 20, None, keep);
    assert_eq!(runner.receive(), Answer::Reply(RunnerReply::Ready));
    assert_eq!(runner.run(), ("packed\n".into(), StopReason::PowerOff));
}

#[test]
fn a_guest_that_cannot_be_started_is_refused_in_one_line() {
    let good = kernel::elf("x", Then::Spin);
    // Neither by PVH nor as Linux: a virtual address.
    let mut no_entry = kernel::without_note(good.clone());
    no_entry[28..32].fill(0xff);
    let cases: [(&[u8], u8, u64, StartPart, &str); 7] = [
        (b"", 1, 64 << 20, StartPart::Kernel, "truncated"),
        (b"GIF89a", 1, 64 << 20, StartPart::Kernel, "neither an ELF vmlinux nor an x86 bzImage"),
        (&good[..good.len() - 1], 1, 64 << 20, StartPart::Kernel, "truncated"),
        (&no_entry, 1, 64 << 20, StartPart::Kernel, "PVH entry point"),
        (&good, 0, 64 << 20, StartPart::Other, "0 vCPUs"),
        (&good, 1, 1 << 50, StartPart::Other, "this host has"),
        (&good, 1, (64 << 20) + 1, StartPart::Other, "whole MiB"),
    ];
    for (kernel, vcpus, memory, fault, part) in cases {
        let (mut runner, answer) = Runner::start(kernel, vcpus, memory);
        match answer {
            Answer::Reply(RunnerReply::Refused { what, why }) => {
                assert!(what == fault && why.contains(part) && !why.contains('\n'), "{what:?}: {why}");
            }
            other => panic!("{part}: {other:?}"),
        }
        assert_eq!(runner.process.end().unwrap().code(), Some(1));
        assert!(matches!(runner.link.receive::<Answer>(), Err(LinkError::Closed)));
    }
}
