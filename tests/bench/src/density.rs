//! Many small guests on one host, each with a disk, a NIC and a console: how fast they come, and what they cost while
//! idle.
//!
//! The guests are real, under a real dom0, driven by the real command, in a network namespace of their own. At the end,
//! and on Ctrl-C, dom0 takes them all down.
//!
//! | printed | is |
//! |---|---|
//! | create rate | domains a second, and by core, from the first `domus create` to the last that has come back |
//! | list | `domus list --json` of all of them: the command's whole life, a median |
//! | dom0 | its private memory and its CPU time while all are idle |
//! | private memory | of each process of a domain, a median over domains: what is its own and not the guest's RAM |
//! | wake-ups | of all threads of the backends (not the runners', whose guest may have a timer) while all are idle |

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use domus_tests::lab::bench::private_kib;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

use crate::{cpu, host, median};

/// Times many small guests and weighs them. Needs root and /dev/kvm.
#[derive(Debug, Args)]
pub struct Options {
    /// How many.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=1000))]
    domains: u32,
    /// How long they are looked at while idle, in seconds.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

/// How many `domus create` run at a time: as many as an operator's script may.
const AT_ONCE: usize = 4;

/// How often the list is asked for.
const LISTS: usize = 11;

/// The processes of one domain, as their programs are called.
const PROGRAMS: [&str; 4] = ["domu-runner", "domus-block", "domus-net", "domus-console"];

/// Measures, and prints what came out.
pub fn run(options: &Options, bin: &Path, folder: &Path) -> Result<()> {
    ensure!(Path::new("/dev/kvm").exists(), "there is no /dev/kvm");
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run this as root")?;
    for args in [&["link", "add", "br0", "type", "bridge"][..], &["link", "set", "br0", "up"]] {
        ensure!(Command::new("ip").args(args).status()?.success(), "ip {args:?} failed");
    }
    let site = Site { bin: bin.into(), folder: folder.into() };
    site.write(options.domains)?;
    let mut service = site.service()?;
    let measured = site.measure(options, &service);
    let _ = kill(Pid::from_raw(service.0.id() as i32), Signal::SIGINT);
    let ended = service.0.wait();
    let figures = measured?;
    ensure!(ended?.success(), "dom0 did not end well");
    if options.json {
        println!("{}", serde_json::to_string(&figures)?);
    } else {
        host::describe().iter().for_each(|line| println!("{line}"));
        figures.iter().for_each(|(name, value)| println!("{name:<44} {value:>10.2}"));
    }
    Ok(())
}

/// Where it happens.
struct Site {
    bin: PathBuf,
    folder: PathBuf,
}

/// dom0, which ends with this.
struct Service(Child);

impl Drop for Service {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGINT);
            let _ = self.0.wait();
        }
    }
}

type Figures = BTreeMap<String, f64>;

impl Site {
    fn run_dir(&self) -> PathBuf {
        self.folder.join("run")
    }

    /// The guests' configs, images and kernel.
    fn write(&self, domains: u32) -> Result<()> {
        fs::write(self.folder.join("mini.elf"), mini_guest::IMAGE)?;
        for n in 0..domains {
            fs::File::create(self.folder.join(format!("d{n}.img")))?.set_len(16 << 20)?;
            let text = serde_json::json!({
                "name": format!("d{n}"),
                "memory": "16MiB",
                "boot": { "kernel": "mini.elf", "cmdline": "console=ttyS0 mini.test=shell" },
                "disks": [ { "id": "root", "path": format!("d{n}.img") } ],
                "nets": [ { "id": "eth0", "bridge": "br0" } ],
            });
            fs::write(self.folder.join(format!("d{n}.json")), text.to_string())?;
        }
        Ok(())
    }

    fn service(&self) -> Result<Service> {
        // It is ended by a signal that this program keeps for a thread of its own, and a child would inherit that.
        let mut signals = SigSet::empty();
        signals.add(Signal::SIGINT);
        signals.thread_unblock()?;
        let child = Command::new(self.bin.join("dom0"))
            .arg("--run-dir")
            .arg(self.run_dir())
            .arg("--config-dir")
            .arg(self.folder.join("etc"))
            .args(["--grace", "0"])
            .stderr(fs::File::create(self.folder.join("dom0.log"))?)
            .spawn()
            .context("cannot start dom0");
        signals.thread_block()?;
        let child = child?;
        let mut service = Service(child);
        let begin = Instant::now();
        while !self.run_dir().join("dom0.sock").exists() {
            ensure!(service.0.try_wait()?.is_none(), "dom0 has ended: {}", self.said());
            ensure!(begin.elapsed() < Duration::from_secs(30), "dom0 does not serve");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(service)
    }

    /// dom0's log.
    fn said(&self) -> String {
        fs::read_to_string(self.folder.join("dom0.log")).unwrap_or_default()
    }

    fn domus(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.bin.join("domus"));
        command
            .arg("--run-dir")
            .arg(self.run_dir())
            .args(args)
            .current_dir(&self.folder)
            .stdin(Stdio::null());
        command
    }

    fn measure(&self, options: &Options, service: &Service) -> Result<Figures> {
        let mut figures = Figures::new();
        let cores = std::thread::available_parallelism()?.get() as f64;
        let seconds = self.create_all(options.domains)?;
        let rate = f64::from(options.domains) / seconds;
        figures.insert("domains".into(), options.domains.into());
        figures.insert("create rate, domains/s".into(), rate);
        figures.insert("create rate, domains/s and core".into(), rate / cores);

        // What a start leaves to do is done.
        std::thread::sleep(Duration::from_secs(3));
        let dom0 = service.0.id();
        let backends = self.processes()?;
        let (cpu, woken, begin) = (cpu::of_process(dom0)?, wakeups(&backends), Instant::now());
        std::thread::sleep(Duration::from_secs(options.seconds));
        let (idle, woken) = (begin.elapsed().as_secs_f64(), wakeups(&backends).saturating_sub(woken));
        figures.insert(
            "dom0, % of a core while idle".into(),
            (cpu::of_process(dom0)? - cpu).as_secs_f64() / idle * 100.0,
        );
        figures.insert("backends' wake-ups/s, of all domains".into(), woken as f64 / idle);

        let mut lists = Vec::new();
        for _ in 0..LISTS {
            let begin = Instant::now();
            let out = self.domus(&["list", "--json"]).output()?;
            lists.push(begin.elapsed().as_secs_f64() * 1e3);
            let listed: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout)?;
            ensure!(listed.len() == options.domains as usize + 1, "{} domains are listed", listed.len());
            let running = listed.iter().filter(|domain| domain["state"] == "running").count();
            ensure!(running == listed.len(), "{running} of {} domains run: {}", listed.len(), self.said());
        }
        figures.insert("domus list --json, ms".into(), median(lists));
        figures.insert("dom0, private MiB".into(), private_kib(dom0)? as f64 / 1024.0);

        let mut all = 0.0;
        for program in PROGRAMS {
            let weights = backends.iter().filter(|(name, _)| name == program);
            let weights: Vec<f64> =
                weights.map(|(_, pid)| Ok(private_kib(*pid)? as f64)).collect::<Result<_>>()?;
            let weight = median(weights) / 1024.0;
            figures.insert(format!("private MiB, {program}"), weight);
            all += weight;
        }
        figures.insert("private MiB, all of a domain".into(), all);
        Ok(figures)
    }

    /// Creates all domains; returns how long that took, in seconds.
    fn create_all(&self, domains: u32) -> Result<f64> {
        let next = AtomicU32::new(0);
        let begin = Instant::now();
        let worker = || -> Result<()> {
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= domains {
                    return Ok(());
                }
                let out = self.domus(&["create", &format!("d{n}.json")]).output()?;
                if !out.status.success() {
                    bail!("d{n}: {}", String::from_utf8_lossy(&out.stderr).trim());
                }
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..AT_ONCE).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(done) => done,
                Err(_) => bail!("a thread panicked"),
            })
        })?;
        Ok(begin.elapsed().as_secs_f64())
    }

    /// Name and pid of every process of a domain.
    fn processes(&self) -> Result<Vec<(String, u32)>> {
        let marker = self.run_dir().join("domains").display().to_string();
        let mut found = Vec::new();
        for process in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
            let mut words = line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
            let program = words.next().unwrap_or_default().rsplit('/').next().unwrap_or_default().to_owned();
            if words.any(|word| word.starts_with(&marker)) && PROGRAMS.contains(&program.as_str()) {
                found.push((program, pid));
            }
        }
        Ok(found)
    }
}

/// How often the backends' threads have gone to sleep of their own will so far.
fn wakeups(processes: &[(String, u32)]) -> u64 {
    let backends = processes.iter().filter(|(program, _)| program != "domu-runner");
    let threads =
        backends.flat_map(|(_, pid)| fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten());
    let count = |status: String| {
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        line.trim().parse::<u64>().ok()
    };
    threads.flatten().filter_map(|thread| count(fs::read_to_string(thread.path().join("status")).ok()?)).sum()
}
