//! The nested lab's machine: a Debian under QEMU's TCG, whose emulated SVM gives it a real /dev/kvm.
//!
//! QEMU before 10.2 can lose an interrupt at an SVM exit, and before 8.1 can translate half-patched code with two CPUs.
//! So the machine has one CPU, `nested=0`, and a heartbeat: this process sends a byte every 100 ms to a second UART,
//! which wakes the machine, and the machine echoes it. No echo for [`SILENCE`] counts as a failure of the machine, not
//! of the tests. Every run has a hard limit, and an error names the step that was under way.
//!
//! Folder `lab` of the run is `/lab` in the machine (virtiofs). The machine runs `lab/step.sh` and writes its exit
//! status to `lab/status`.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::images::{Images, KernelId};
use domus_driver::process::{Running, poll_until, tied};

/// So long without an echo, and the machine counts as hung.
pub const SILENCE: Duration = Duration::from_secs(60);

const HEARTBEAT: Duration = Duration::from_millis(100);

const VIRTIOFSD: &str = "/usr/lib/qemu/virtiofsd";

/// A line of the machine that begins so names the step that is under way.
pub const STEP: &str = "STEP ";

/// Where the machine's console goes.
pub enum Serial<'a> {
    /// Each line to this function.
    Lines(&'a mut dyn FnMut(&str)),
    /// This process' terminal, both ways.
    Terminal,
}

/// What a run needs.
#[derive(Clone, Debug)]
pub struct LabVm<'a> {
    /// Kernel and root file system.
    pub images: &'a Images,
    /// An empty folder of this run's own.
    pub folder: PathBuf,
    /// RAM, MiB; only what is touched is used.
    pub memory_mib: u32,
    /// A second copy of the Debian image as `/dev/nvme1n1`, writes dropped at the end.
    pub second_disk: bool,
    /// systemd is the machine's first process, not a script of the lab's own.
    pub systemd: bool,
    /// One instruction is one nanosecond of the machine's time: figures that repeat, whatever else the host does.
    pub counted: bool,
    /// After this long everything is killed.
    pub limit: Duration,
}

/// Why a run gave no answer.
#[derive(Clone, Debug)]
pub enum Failure {
    /// The lab's machine itself hung or did not come up. This says nothing about the programs in it.
    Machine(String),
    /// What ran in it did not end in time.
    Limit(String),
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Machine(what) => write!(f, "the lab's own machine failed: {what}"),
            Self::Limit(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}

impl LabVm<'_> {
    /// The folder that is `/lab` inside.
    pub fn share(&self) -> PathBuf {
        self.folder.join("lab")
    }

    /// Makes an empty run folder.
    pub fn prepare(&self) -> Result<()> {
        if self.folder.exists() {
            fs::remove_dir_all(&self.folder)
                .with_context(|| format!("cannot empty {}", self.folder.display()))?;
        }
        fs::create_dir_all(self.share()).with_context(|| format!("cannot make {}", self.share().display()))
    }

    /// Puts `file` into the share under `name`: a hard link where that is possible, so nothing is copied.
    pub fn place(&self, file: &Path, name: &str) -> Result<()> {
        let target = self.share().join(name);
        if let Some(folder) = target.parent() {
            fs::create_dir_all(folder)?;
        }
        if fs::hard_link(file, &target).is_err() {
            fs::copy(file, &target)
                .with_context(|| format!("cannot copy {} into the lab", file.display()))?;
        }
        Ok(())
    }

    /// Boots the machine, lets it run `step` (a shell script, from `/lab`), and returns that script's exit status.
    pub fn run(&self, step: &str, serial: Serial<'_>) -> Result<i32> {
        fs::write(self.share().join("step.sh"), step)?;
        let sockets = SocketFolder::new()?;
        let virtiofs = sockets.0.join("virtiofs");
        let heartbeat = sockets.0.join("heartbeat");

        let mut virtiofsd = tied(VIRTIOFSD);
        virtiofsd.arg(format!("--socket-path={}", virtiofs.display()));
        virtiofsd.args(["-o", &format!("source={}", self.share().display()), "-o", "cache=auto"]);
        let log = fs::File::create(self.folder.join("virtiofsd.log"))?;
        virtiofsd.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let mut virtiofsd = Running::start("virtiofsd", &mut virtiofsd).context("cannot start virtiofsd")?;
        if !poll_until(Duration::from_secs(10), || virtiofs.exists()) {
            bail!("virtiofsd made no socket; see {}", self.folder.join("virtiofsd.log").display());
        }

        let terminal = matches!(serial, Serial::Terminal);
        let mut qemu = self.qemu(&virtiofs, &heartbeat, terminal)?;
        let log = fs::File::create(self.folder.join("qemu.log"))?;
        if terminal {
            qemu.stderr(log);
        } else {
            qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
        }
        let mut qemu = Running::start("QEMU", &mut qemu).context("cannot start qemu-system-x86_64")?;
        if !poll_until(Duration::from_secs(10), || heartbeat.exists()) {
            bail!("QEMU did not start; see {}", self.folder.join("qemu.log").display());
        }
        let pulse = Pulse::start(&heartbeat)?;
        let watched = self.watch(&mut qemu, &pulse, serial);
        drop(qemu);
        let _ = virtiofsd.wait(Duration::from_secs(2));
        watched?;
        let status = fs::read_to_string(self.share().join("status")).unwrap_or_default();
        match status.trim().parse() {
            Ok(status) => Ok(status),
            Err(_) => Err(Failure::Machine("it ended without a status".into()).into()),
        }
    }

    fn qemu(&self, virtiofs: &Path, heartbeat: &Path, terminal: bool) -> Result<std::process::Command> {
        let kernel = self.images.kernel(KernelId::LAB)?;
        let memory = self.memory_mib;
        let root = self.images.debian.display();
        let mut qemu = tied("qemu-system-x86_64");
        if self.counted {
            qemu.args(["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=off,align=off"]);
        } else {
            qemu.args(["-accel", "tcg"]);
        }
        qemu.args(["-cpu", "EPYC,+svm,+npt", "-M", "q35,memory-backend=ram", "-smp", "1"]);
        qemu.args([
            "-m",
            &memory.to_string(),
            "-nodefaults",
            "-no-user-config",
            "-display",
            "none",
            "-no-reboot",
        ]);
        qemu.args(["-object", &format!("memory-backend-memfd,id=ram,size={memory}M,share=on")]);
        qemu.args(["-drive", &format!("file={root},format=raw,if=none,id=root,snapshot=on")]);
        qemu.args(["-device", "nvme,drive=root,serial=root"]);
        if self.second_disk {
            qemu.args(["-drive", &format!("file={root},format=raw,if=none,id=second,snapshot=on")]);
            qemu.args(["-device", "nvme,drive=second,serial=second"]);
        }
        qemu.args(["-chardev", &format!("socket,id=fs,path={}", virtiofs.display())]);
        qemu.args(["-device", "vhost-user-fs-pci,chardev=fs,tag=lab"]);
        // signal=off: Ctrl-C belongs to the guest when the terminal is wired through.
        qemu.args(["-chardev", if terminal { "stdio,id=console,signal=off" } else { "stdio,id=console" }]);
        qemu.args(["-serial", "chardev:console"]);
        qemu.args([
            "-chardev",
            &format!("socket,id=heartbeat,path={},server=on,wait=off", heartbeat.display()),
        ]);
        qemu.args(["-serial", "chardev:heartbeat"]);
        qemu.arg("-kernel").arg(&kernel.vmlinuz);
        let first = match self.systemd {
            // The image's fstab is that of a guest, and its getty would take the console.
            true => "rw fstab=no systemd.wants=domus-lab.service systemd.mask=serial-getty@ttyS0.service",
            false => "init=/usr/lib/domus-lab/outer-init",
        };
        qemu.args([
            "-append",
            &format!(
                "root=/dev/nvme0n1 {first} console=ttyS0 quiet 8250.nr_uarts=2 mitigations=off nokaslr tsc=reliable \
                 no_timer_check audit=0 panic=-1"
            ),
        ]);
        Ok(qemu)
    }

    /// Until QEMU ends, the limit is over, or the heart stops.
    fn watch(&self, qemu: &mut Running, pulse: &Pulse, mut serial: Serial<'_>) -> Result<()> {
        let start = Instant::now();
        let mut step = "booting the lab's machine".to_owned();
        let (sender, lines) = mpsc::channel();
        if let Some(stdout) = qemu.child().stdout.take() {
            let mut transcript = fs::File::create(self.folder.join("console.log"))?;
            std::thread::spawn(move || {
                for line in BufReader::new(stdout).split(b'\n').map_while(Result::ok) {
                    let line = String::from_utf8_lossy(&line).trim_end_matches('\r').to_owned();
                    let _ = writeln!(transcript, "{line}");
                    if sender.send(line).is_err() {
                        return;
                    }
                }
            });
        } else {
            // The terminal is QEMU's: there are no lines to read.
            std::mem::forget(sender);
        }
        loop {
            match lines.recv_timeout(Duration::from_millis(200)) {
                Ok(line) => {
                    if let Some(name) = line.strip_prefix(STEP) {
                        step = name.to_owned();
                    }
                    if let Serial::Lines(take) = &mut serial {
                        take(&line);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    qemu.wait(Duration::from_secs(10))?;
                    return Ok(());
                }
            }
            if matches!(serial, Serial::Terminal) && qemu.ended()?.is_some() {
                return Ok(());
            }
            if start.elapsed() > self.limit {
                let limit = self.limit.as_secs();
                return Err(Failure::Limit(format!("not done after {limit} s; under way: {step}")).into());
            }
            if pulse.silence() > SILENCE {
                let seconds = SILENCE.as_secs();
                return Err(
                    Failure::Machine(format!("no heartbeat for {seconds} s; under way: {step}")).into()
                );
            }
        }
    }
}

/// Sockets have short paths, and the run's folder may have a long one.
struct SocketFolder(PathBuf);

impl SocketFolder {
    fn new() -> Result<Self> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("domus-lab-{}-{count}", std::process::id()));
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for SocketFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Writes the heartbeat and remembers when it was last echoed.
struct Pulse {
    last: Arc<Mutex<Instant>>,
}

impl Pulse {
    fn start(socket: &Path) -> Result<Self> {
        let mut writer = UnixStream::connect(socket).context("cannot connect to the heartbeat's UART")?;
        let mut reader = writer.try_clone()?;
        let last = Arc::new(Mutex::new(Instant::now()));
        let heard = Arc::clone(&last);
        // Both threads end when QEMU closes its end.
        std::thread::spawn(move || {
            // A machine that does not read yet must not block this thread for ever: the socket buffers hours of beats.
            while writer.write_all(b".").is_ok() {
                std::thread::sleep(HEARTBEAT);
            }
        });
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while reader.read(&mut bytes).is_ok_and(|count| count > 0) {
                *heard.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
            }
        });
        Ok(Self { last })
    }

    fn silence(&self) -> Duration {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}
