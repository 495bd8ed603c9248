//! The hostile guest: nonsense to everything a guest can reach. `mini.seed` makes a run repeatable, `mini.rounds` long.
//!
//! None of this may harm anybody else, so after each attack the devices must still be what they were: every virtio
//! device resets, and block and network devices do their work ([`recovered`]). The guest never lets a device write
//! into the guest's own image: that would only end the test.

mod config;
mod machine;
mod msix;
mod queues;
mod race;
mod registers;
mod rings;
mod storm;

use super::net::Net;
use super::ring::Queue;
use super::rng::Rng;
use super::virtio::{self, Virtio};
use super::{Failed, Machine, Outcome, arena, blk, clock, ensure, say, sys};

pub use race::scribble;
pub use storm::rage;

/// All attacks, by name, gentlest first.
const ALL: &[&str] = &[
    "common", "device", "notify", "config", "bars", "msix", "queues", "rings", "race", "resets", "ports",
    "mmio", "storm",
];

/// Runs one attack, or with `all` each in turn.
pub fn run(machine: &Machine, kind: &str) -> Outcome {
    if kind == "all" {
        return ALL.iter().try_for_each(|kind| run(machine, kind));
    }
    let mut rng = Rng::new(machine.seed());
    say!("value hostile attack={kind} seed={}", machine.seed());
    match kind {
        "common" => registers::common(&mut rng, machine.rounds(3000))?,
        "device" => registers::device(&mut rng, machine.rounds(1000))?,
        "notify" => registers::notify(&mut rng, machine.rounds(1000))?,
        "config" => config::scribble(machine, &mut rng, machine.rounds(3000))?,
        "bars" => config::bars(&mut rng)?,
        "msix" => msix::tables(&mut rng, machine.rounds(1000))?,
        "queues" => queues::addresses(&mut rng, machine.rounds(60))?,
        "rings" => rings::all(&mut rng, machine.rounds(60))?,
        "resets" => queues::resets(&mut rng, machine.rounds(60))?,
        "ports" => machine::ports(machine, &mut rng, machine.rounds(3000))?,
        "race" => race::race(machine, &mut rng, machine.rounds(60))?,
        "storm" => storm::storm(machine)?,
        "mmio" => machine::mmio(machine, &mut rng, machine.rounds(1000))?,
        _ => {
            say!("reason no attack is called {kind}");
            return Err(Failed);
        }
    }
    recovered(machine.seed())?;
    say!("value hostile recovered={kind}");
    Ok(())
}

/// One of the virtio functions, found and reset.
fn victim(rng: &mut Rng) -> Result<Virtio, Failed> {
    let count = virtio::functions(0).count() as u64;
    ensure!(count > 0, "there is no virtio device to attack");
    let function = virtio::functions(0).nth(rng.below(count) as usize).ok_or(Failed)?;
    let v = Virtio::from_pci(function)?;
    v.reset()?;
    Ok(v)
}

/// Every virtio device resets; disks read and write; network devices send.
pub fn recovered(seed: u64) -> Outcome {
    for kind in [1, 2] {
        for nth in 0..virtio::functions(kind).count() {
            if kind == 2 {
                blk::works(nth, seed)?;
            } else if nth == 0 {
                sends()?;
            }
        }
    }
    virtio::functions(0).try_for_each(|function| Virtio::from_pci(function)?.reset())
}

fn sends() -> Outcome {
    let mark = arena::mark();
    let mut net = Net::open()?;
    let mut frame = [0u8; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&net.mac);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    net.send(&frame)?;
    let deadline = clock::deadline(blk::PATIENCE_MS);
    while net.tx.pop()?.is_none() {
        ensure!(sys::tsc() < deadline, "a frame sent after the reset was not taken");
        core::hint::spin_loop();
    }
    net.close()?;
    arena::rewind(mark);
    Ok(())
}

/// An address that a device may write `len` bytes to without hitting the guest's image or what the arena holds.
fn wild(rng: &mut Rng, len: u64) -> u64 {
    loop {
        let at = rng.edge();
        let (low, high) = (0x1f_0000, arena::mark());
        if at >= high || at.saturating_add(len) <= low {
            return at;
        }
    }
}

/// Brings the victim to FEATURES_OK and sets queue 0 up, without DRIVER_OK.
fn armed(v: &Virtio, features: u64) -> Result<Queue, Failed> {
    let taken = v.negotiate(features)?;
    v.queue(0, 16, taken, 1.min(v.msix.count - 1))
}
