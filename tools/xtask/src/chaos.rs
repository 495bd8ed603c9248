//! `cargo xtask chaos`: anything but a guest's own runner is killed, at random, while three guests verify their data.

use std::path::Path;

use anyhow::{Result, bail};
use domus_tests::environment::Environment;

use crate::command::{command, run};
use crate::workspace;

/// The test that does it.
pub const BINARY: &str = "package(domus) & binary(chaos)";

/// Kills for so many seconds; the same seed kills the same at the same moments, as far as the machine lets it.
pub fn chaos(programs: &Path, seconds: u32, seed: Option<u64>) -> Result<()> {
    if Environment::detect() == Environment::None {
        bail!(
            "cannot run here: there is no /dev/kvm, and the chaos wants guests that do their work at full speed"
        );
    }
    let mut nextest =
        command("cargo", ["nextest", "run", "--locked", "--no-capture", "-p", "domus", "-E", BINARY]);
    nextest.env("DOMUS_BIN", programs).env("DOMUS_CHAOS_SECONDS", seconds.to_string());
    if let Some(seed) = seed {
        nextest.env("DOMUS_CHAOS_SEED", seed.to_string());
    }
    run(nextest.current_dir(workspace::root()))
}
