//! The checks by name. Those that end in `hostile-…` are in [`super::hostile`].

mod machine;

use super::{Failed, Machine, Outcome, say};

/// Runs one check.
pub fn run(machine: &Machine, name: &str) -> Outcome {
    match name {
        "info" => machine::info(machine),
        "acpi" => machine::acpi(machine),
        "clock" => machine::clock(),
        "memory" => machine::memory(machine),
        "smp" => machine::smp(machine),
        "timer" => machine::timer(),
        _ => {
            say!("reason no check has this name");
            Err(Failed)
        }
    }
}
