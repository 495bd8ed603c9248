//! The mini guest as an enemy: it harms nobody but itself.
//!
//! Each attack has a neighbour, another domain that works all the while. Afterwards the attacker's own devices still
//! work (the guest checks that itself), every process of both domains is alive, none has been made to grow, to talk
//! or to spin, and the neighbour has lost nothing.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use domus_tests::environment::Environment;
use domus_tests::mini::machine::{Machine, Plan};
use domus_tests::mini::report::Line;
use domus_tests::mini::{programs, tap};
use shared_abi::control::StopReason;

const MINUTE: Duration = Duration::from_secs(60);

/// Seeds of an attack: `DOMUS_SEEDS` many, two by default.
fn seeds() -> impl Iterator<Item = u64> {
    1..=std::env::var("DOMUS_SEEDS").ok().and_then(|count| count.parse().ok()).unwrap_or(2)
}

fn attack(name: &str) -> Result<()> {
    attack_with(name, 1, || Ok(None))
}

fn attack_with(name: &str, vcpus: u8, tap: impl Fn() -> Result<Option<OwnedFd>>) -> Result<()> {
    let environment = Environment::detect();
    println!("ground: {environment}");
    ensure!(environment != Environment::None, "not run: the mini guest needs a /dev/kvm");
    let folder = tempfile::tempdir()?;
    let image = |name: &str| -> Result<PathBuf> {
        let path = folder.path().join(name);
        std::fs::File::create(&path)?.set_len(16 << 20)?;
        Ok(path)
    };

    let mut plan = Plan::new("mini.test=shell mini.seed=11").disk(&image("neighbour.img")?, 1);
    plan.domain = ("neighbour", 2);
    let mut neighbour = Machine::start(&programs(), plan)?;
    neighbour.type_line("blk-pattern")?;
    neighbour.until(MINUTE, |line| *line == Line::Ok("blk-pattern".into()))?;

    for seed in seeds() {
        let line = format!("mini.seed={seed} mini.test=hostile-{name},blk-pattern mini.end=halt");
        let mut plan = Plan::new(line).disk(&image("first.img")?, 2).disk(&image("second.img")?, 1);
        plan.vcpus = vcpus;
        plan.tap = tap()?;
        let mut machine = Machine::start(&programs(), plan)?;
        let before = machine.resource_usages()?;
        machine.done(MINUTE * 3).with_context(|| format!("attack {name}, seed {seed}"))?;
        machine.all_alive()?;
        let after = machine.resource_usages()?;
        std::thread::sleep(Duration::from_millis(500));
        let later = machine.resource_usages()?;
        for ((before, after), later) in before.iter().zip(&after).zip(&later) {
            before.check(after)?;
            after.check_idle(later)?;
        }
    }

    neighbour.type_line("blk-verify,blk-irq")?;
    neighbour.until(MINUTE, |line| *line == Line::Ok("blk-irq".into()))?;
    neighbour.all_alive()?;
    neighbour.type_line("quit")?;
    assert_eq!(neighbour.stopped(MINUTE)?, StopReason::PowerOff);
    Ok(())
}

#[test]
fn nonsense_in_the_common_configuration_harms_nobody() -> Result<()> {
    attack("common")
}

#[test]
fn nonsense_in_the_device_configuration_harms_nobody() -> Result<()> {
    attack("device")
}

#[test]
fn notifications_out_of_turn_harm_nobody() -> Result<()> {
    attack("notify")
}

#[test]
fn nonsense_in_pci_configuration_space_harms_nobody() -> Result<()> {
    attack("config")
}

#[test]
fn bars_moved_over_everything_harm_nobody() -> Result<()> {
    attack("bars")
}

#[test]
fn nonsense_in_msi_x_tables_harms_nobody() -> Result<()> {
    attack("msix")
}

#[test]
fn impossible_queues_harm_nobody() -> Result<()> {
    attack("queues")
}

#[test]
fn rings_that_lie_harm_nobody() -> Result<()> {
    attack("rings")
}

#[test]
fn rings_that_change_while_they_are_read_harm_nobody() -> Result<()> {
    attack_with("race", 2, || Ok(None))
}

#[test]
fn reset_storms_harm_nobody_and_end_all_dma() -> Result<()> {
    attack("resets")
}

#[test]
fn nonsense_to_io_ports_harms_nobody() -> Result<()> {
    attack("ports")
}

#[test]
fn nonsense_in_the_mmio_hole_harms_nobody() -> Result<()> {
    attack("mmio")
}

#[test]
fn processors_that_undo_each_others_work_harm_nobody() -> Result<()> {
    attack_with("storm", 2, || Ok(None))?;
    attack_with("storm", 4, || Ok(None))
}

#[test]
fn all_attacks_in_turn_on_disks_and_a_nic_harm_nobody() -> Result<()> {
    attack_with("all", 2, || tap::in_own_namespace(Ipv4Addr::new(10, 77, 0, 1)).map(Some))
}
