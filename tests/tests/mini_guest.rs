//! The mini guest in the real processes: what a well-behaved guest relies on.
//!
//! Needs a /dev/kvm, of any kind. Where there is none the harness says that these did not run; run by hand, they fail.

use std::net::Ipv4Addr;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use domus_startup::fds::Outgoing;
use domus_tests::environment::Environment;
use domus_tests::mini::machine::{Disk, Machine, Plan};
use domus_tests::mini::report::{Line, number};
use domus_tests::mini::{programs, tap};
use shared_abi::control::{RunnerEvent, RunnerReply, RunnerRequest, StopReason};

const MINUTE: Duration = Duration::from_secs(60);

fn start(plan: Plan) -> Result<Machine> {
    let environment = Environment::detect();
    println!("ground: {environment}");
    ensure!(environment != Environment::None, "not run: the mini guest needs a /dev/kvm");
    Machine::start(&programs(), plan)
}

fn image(folder: &Path, name: &str, mib: u64) -> Result<std::path::PathBuf> {
    let path = folder.join(name);
    std::fs::File::create(&path)?.set_len(mib << 20)?;
    Ok(path)
}

/// Runs the checks of a plan to the end, then expects an ordinary power-off.
fn all_hold(plan: Plan) -> Result<Machine> {
    let mut machine = start(plan)?;
    machine.done(MINUTE * 3)?;
    assert_eq!(machine.stopped(MINUTE)?, StopReason::PowerOff);
    Ok(machine)
}

#[test]
fn power_off_reset_and_triple_fault_are_told_apart() -> Result<()> {
    for (how, reason) in [
        ("poweroff", StopReason::PowerOff),
        ("reset", StopReason::Reboot),
        ("port64", StopReason::Reboot),
        ("triple", StopReason::TripleFault),
    ] {
        let mut machine = start(Plan::new(format!("mini.test=info mini.end={how}")))?;
        machine.done(MINUTE)?;
        assert_eq!(machine.stopped(MINUTE)?, reason, "mini.end={how}");
    }
    Ok(())
}

#[test]
fn acpi_clocks_timer_and_uart_are_as_promised() -> Result<()> {
    let machine = all_hold(Plan::new("mini.test=info,acpi,clock,timer,uart,memory"))?;
    ensure!(machine.values().any(|value| value.contains("reduced=true")), "ACPI is not hardware-reduced");
    ensure!(machine.values().any(|value| value.contains("kvm_clock=1")), "there is no kvm-clock");
    Ok(())
}

#[test]
fn a_kernel_without_a_pvh_note_boots_as_linux_does_and_finds_the_same_machine() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = image(folder.path(), "disk", 16)?;
    let mut seen = Vec::new();
    for (protocol, kernel) in [("Pvh", None), ("Linux", Some(mini_guest::without_pvh()))] {
        let mut plan =
            Plan::new("mini.test=info,acpi,clock,memory,smp,blk-pattern,blk-verify").disk(&image, 2);
        plan.vcpus = 2;
        if let Some(kernel) = kernel {
            plan.kernel = kernel.into();
        }
        let machine = all_hold(plan)?;
        let info: Vec<_> = machine.values().filter(|value| value.starts_with("info ")).collect();
        ensure!(info[0].ends_with(&format!("protocol={protocol}")), "{info:?}");
        seen.push(info[1..].iter().map(|line| line.to_string()).collect::<Vec<_>>());
    }
    assert_eq!(seen[0], seen[1]);
    Ok(())
}

#[test]
fn all_processors_come_up_and_work_at_the_same_time() -> Result<()> {
    for vcpus in [2, 4, 32, 255] {
        let mut plan = Plan::new("mini.test=smp,smp,acpi");
        plan.vcpus = vcpus;
        let machine = all_hold(plan)?;
        let cpus = machine.values().find_map(|value| number::<u8>(value, "cpus"));
        assert_eq!(cpus, Some(vcpus));
    }
    Ok(())
}

#[test]
fn a_guest_has_neither_nested_virtualization_nor_a_pmu() -> Result<()> {
    let machine = all_hold(Plan::new("mini.test=cpu"))?;
    for part in ["vmx", "svm", "svm_leaf", "pmu"] {
        let has = machine.values().find_map(|value| number::<u32>(value, part));
        assert_eq!(has, Some(0), "{part}");
    }
    Ok(())
}

#[test]
fn a_feature_that_is_taken_away_is_not_there() -> Result<()> {
    let mut plan = Plan::new("mini.test=cpu");
    plan.cpu.disable = vec!["x2apic".parse()?];
    for (plan, has) in [(Plan::new("mini.test=cpu"), 1), (plan, 0)] {
        let machine = all_hold(plan)?;
        let ecx = machine.values().find_map(|value| number::<u32>(value, "ecx1"));
        assert_eq!(ecx.map(|ecx| ecx >> 21 & 1), Some(has));
    }
    Ok(())
}

#[test]
fn a_register_that_is_listed_is_read_and_one_that_is_not_is_a_fault() -> Result<()> {
    // The base of FS, and TSC_ADJUST; the number of SMIs, which KVM has for whoever asks.
    for listed in ["0xc0000100", "0x3b"] {
        all_hold(Plan::new(format!("mini.test=msr mini.msr={listed}")))?;
    }
    let mut machine = start(Plan::new("mini.test=msr mini.msr=0x34"))?;
    loop {
        match machine.line(MINUTE)? {
            Some(Line::Died(how)) => break ensure!(how.starts_with("fault vector=13 "), "{how}"),
            Some(Line::Ok(_)) | None => panic!("it reads a register that is not listed"),
            Some(_) => {}
        }
    }
    Ok(())
}

#[test]
fn ram_above_4_gib_holds_what_is_written_to_it() -> Result<()> {
    let mut plan = Plan::new("mini.test=memory");
    plan.memory = 5 << 30;
    let machine = all_hold(plan)?;
    let tables = machine.values().find_map(|value| number::<u64>(value, "above_4gib_tables"));
    assert_eq!(tables, Some(2), "2 GiB of the 5 are above 4 GiB");
    Ok(())
}

#[test]
fn disks_are_found_and_pattern_checks_hold_with_every_ring_feature_and_reach_the_image() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = image(folder.path(), "disk.img", 16)?;
    let plan = Plan::new("mini.seed=7 mini.test=pci,blk-id,blk-pattern,blk-verify,blk-bounds").disk(&path, 4);
    let machine = all_hold(plan)?;
    ensure!(machine.values().any(|value| value.contains("id=mini-0")), "GET_ID gives another name");

    // INDIRECT and EVENT_IDX, the last of the four rounds, are part of its seed.
    let seed = 7 ^ 1 << 28 ^ 1 << 29;
    let disk = std::fs::File::open(&path)?;
    let mut word = [0; 8];
    for sector in [64, 65, 1000, 4159] {
        for index in [0, 63] {
            disk.read_exact_at(&mut word, sector * 512 + index * 8)?;
            assert_eq!(u64::from_le_bytes(word), mini_guest::pattern(seed, sector, index), "sector {sector}");
        }
    }

    // Another guest finds it there.
    all_hold(Plan::new("mini.seed=7 mini.test=blk-verify").disk(&path, 1))?;
    Ok(())
}

#[test]
fn one_interrupt_comes_for_each_request_and_masked_ones_wait() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = image(folder.path(), "disk.img", 16)?;
    let mut plan = Plan::new("mini.test=blk-irq,blk-mask,blk-irq").disk(&path, 2);
    plan.vcpus = 2;
    let machine = all_hold(plan)?;
    let delivered: Vec<u32> = machine.values().filter_map(|value| number(value, "interrupts")).collect();
    assert_eq!(delivered, [200; 4]);
    Ok(())
}

#[test]
fn a_read_only_disk_refuses_writes() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let image = image(folder.path(), "disk.img", 1)?;
    let mut plan = Plan::new("mini.test=blk-readonly,blk-bounds");
    plan.disks.push(Disk { image: image.clone(), read_only: true, direct: false, queues: 1 });
    all_hold(plan)?;
    ensure!(std::fs::read(image)?.iter().all(|&byte| byte == 0), "the image was written");
    Ok(())
}

#[test]
fn frames_go_both_ways_through_a_tap() -> Result<()> {
    let tap = tap::in_own_namespace(Ipv4Addr::new(10, 77, 0, 1))?;
    let mut plan = Plan::new("mini.ip=10.77.0.2 mini.peer=10.77.0.1 mini.test=pci,net-ping mini.rounds=200");
    plan.tap = Some(tap);
    all_hold(plan)?;
    Ok(())
}

#[test]
fn a_paused_guest_stands_still_and_goes_on_where_it_was() -> Result<()> {
    let mut machine = start(Plan::new("mini.test=shell"))?;
    machine.until(MINUTE, |line| *line == Line::Ready)?;
    let paused = machine.runner.ask(&RunnerRequest::Pause, Outgoing::default())?;
    assert_eq!(paused, RunnerReply::Done);
    machine.type_line("clock,timer")?;
    assert!(machine.line(Duration::from_secs(1)).is_err(), "a paused guest answers");
    let RunnerReply::Status(status) = machine.runner.ask(&RunnerRequest::Status, Outgoing::default())? else {
        panic!("no status")
    };
    assert!(status.paused && status.first_run_ns.is_some() && status.stopped.is_none(), "{status:?}");
    machine.runner.ask(&RunnerRequest::Resume, Outgoing::default())?;
    machine.until(MINUTE, |line| *line == Line::Ok("timer".into()))?;
    machine.type_line("quit")?;
    assert_eq!(machine.stopped(MINUTE)?, StopReason::PowerOff);
    Ok(())
}

#[test]
fn rates_and_latencies_are_measured_in_the_guest() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = image(folder.path(), "disk.img", 64)?;
    let plan =
        Plan::new("mini.ms=300 mini.rounds=300 mini.test=blk-bringup,blk-latency,blk-iops").disk(&path, 1);
    let machine = all_hold(plan)?;
    let rate = machine.values().find_map(|value| number::<u64>(value, "iops"));
    ensure!(rate.is_some_and(|rate| rate > 0), "no rate was measured");
    Ok(())
}

#[test]
fn the_least_memory_is_enough_for_a_guest_that_works() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut plan = Plan::new("mini.test=memory,blk-pattern").disk(&image(folder.path(), "disk.img", 16)?, 1);
    plan.memory = shared_abi::limits::MIN_MEMORY;
    all_hold(plan)?;
    Ok(())
}

#[test]
fn the_power_button_reaches_the_guest() -> Result<()> {
    // The guest has no AML interpreter, so it is told where the DSDT's `_EVT` would look (see the runner's `power`).
    let mut machine = start(Plan::new("mini.test=shell mini.buttons=0x603"))?;
    machine.until(MINUTE, |line| *line == Line::Ready)?;
    machine.runner.ask(&RunnerRequest::PowerButton, Outgoing::default())?;
    assert_eq!(machine.stopped(MINUTE)?, StopReason::PowerOff);
    Ok(())
}

#[test]
fn a_guest_whose_backend_is_killed_stands_with_that_device_and_goes_on_without_it() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let disk = |name| image(folder.path(), name, 16);
    let plan = Plan::new("mini.test=shell").disk(&disk("a.img")?, 2).disk(&disk("b.img")?, 1);
    let mut machine = start(plan)?;
    machine.type_line("blk-pattern")?;
    machine.until(MINUTE, |line| *line == Line::Ok("blk-pattern".into()))?;
    drop(machine.block.take());
    for _ in 0..2 {
        let event = machine.runner.event(MINUTE)?;
        assert!(matches!(event, Some(RunnerEvent::DeviceLost(_))), "{event:?}");
    }
    // Its registers still answer, and the rest of the machine is whole.
    machine.type_line("pci,clock,timer")?;
    machine.until(MINUTE, |line| *line == Line::Ok("timer".into()))?;
    machine.all_alive()?;
    machine.type_line("quit")?;
    assert_eq!(machine.stopped(MINUTE)?, StopReason::PowerOff);
    Ok(())
}

#[test]
fn a_sleeping_guest_is_woken_by_each_completion() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let path = image(folder.path(), "disk.img", 64)?;
    let machine = all_hold(Plan::new("mini.rounds=300 mini.sleep=1 mini.test=blk-latency").disk(&path, 1))?;
    let median = machine.values().find_map(|value| number::<u64>(value, "p50_ns"));
    // The guest's timer would wake it after 50 ms: then the interrupt did not.
    ensure!(median.is_some_and(|ns| ns < 40_000_000), "the median latency is {median:?} ns");
    Ok(())
}
