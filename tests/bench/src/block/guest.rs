//! The same disk inside a guest: the mini guest asks by its own virtio-pci driver, and looks for completions without
//! waiting for interrupts.
//!
//! vCPU and runner are on the client's CPU, the backend on its own, as without a guest.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use domus_tests::mini::child::Child;
use domus_tests::mini::machine::{Disk, Machine, Plan};
use domus_tests::mini::report::{Line, number};

use super::cases::{Access, Case, Storage};
use super::measure::{Sample, WARM_UP};
use crate::cpu::{Clock, Places, pin};

/// A guest that says nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// Single requests whose latency is measured.
const SINGLE: u32 = 20_000;

/// Measures `domus-block` once, from a new guest.
pub fn run(case: &Case, bin: &Path, file: &Path, places: Places, time: Duration) -> Result<Sample> {
    let write = u8::from(case.access == Access::RandomWrite);
    let mut plan = Plan::new(format!(
        "mini.test=shell mini.depth={} mini.write={write} mini.ms={} mini.rounds={SINGLE}",
        case.depth,
        time.as_millis()
    ));
    plan.quiet = true;
    plan.disks.push(Disk {
        image: file.into(),
        read_only: false,
        direct: case.storage == Storage::Direct,
        queues: 1,
    });
    let mut machine = Machine::start(bin, plan)?;
    let backend = machine.block.as_mut().map(Child::process).context("the guest has a disk")?.pid();
    let runner = machine.runner.process().pid();
    pin(backend, places.backend)?;
    machine.until(PATIENCE, |line| *line == Line::Ready)?;
    check(&mut machine, "blk-latency", WARM_UP)?;
    let clock = Clock::start(backend, runner)?;
    check(&mut machine, "blk-iops", time)?;
    let used = clock.stop()?;
    let value = |name: &str| machine.values().filter_map(|value| number::<u64>(value, name)).last();
    let requests = value("requests").context("the guest has told no number of requests")?;
    let sample = Sample {
        iops: value("iops").context("the guest has told no rate")? as f64,
        p50_us: value("p50_ns").context("the guest has told no latency")? as f64 / 1e3,
        p99_us: value("p99_ns").context("the guest has told no latency")? as f64 / 1e3,
        cpu_us: used.process.as_secs_f64() * 1e6 / requests as f64,
        others: used.others,
    };
    machine.type_line("quit")?;
    machine.stopped(PATIENCE)?;
    Ok(sample)
}

/// Lets the guest do one of its checks, which takes about `time`.
fn check(machine: &mut Machine, name: &str, time: Duration) -> Result<()> {
    machine.type_line(name)?;
    machine.until(PATIENCE + time, |line| *line == Line::Ok(name.into())).map(drop)
}
