//! The checks by name. Those whose name begins with `hostile-` are in [`super::hostile`].

mod blk;
mod dhcp;
mod endure;
mod machine;
mod net;
mod pci;
mod rate;

use super::{Failed, Machine, Outcome, hostile, say};

/// Runs one check.
pub fn run(machine: &Machine, name: &str) -> Outcome {
    match name {
        "info" => machine::info(machine),
        "acpi" => machine::acpi(machine),
        "clock" => machine::clock(),
        "cpu" => machine::cpu(),
        "msr" => machine::msr(machine),
        "memory" => machine::memory(machine),
        "smp" => machine::smp(machine),
        "timer" => machine::timer(),
        "uart" => machine::uart(),
        "pci" => pci::discovery(),
        "blk-id" => blk::id(),
        "blk-pattern" => blk::pattern(machine),
        "blk-verify" => blk::verify(machine),
        "blk-bounds" => blk::bounds(),
        "blk-readonly" => blk::read_only(),
        "blk-irq" => blk::interrupts(machine),
        "blk-mask" => blk::masked(),
        "blk-endure" => endure::endure(machine),
        "blk-iops" => rate::iops(machine),
        "blk-latency" => rate::latency(machine),
        "blk-bringup" => rate::bring_up(machine),
        "net-ping" => net::ping(machine),
        "net-answer" => net::answer(machine),
        "net-dhcp" => dhcp::dhcp(machine),
        _ => match name.strip_prefix("hostile-") {
            Some(kind) => hostile::run(machine, kind),
            None => {
                say!("reason no check is called {name}");
                Err(Failed)
            }
        },
    }
}
