//! `cargo xtask bench`: figures to read; no figure fails a run. All lines of `--json` have one shape, for every
//! benchmark.

pub mod block;
pub mod density;
pub mod net;
pub mod start;

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::command::{command, run};
use crate::packages::{Consent, Need, install_packages};
use crate::workspace;

/// Builds `domus-bench` and these packages as they are shipped; returns the folder with their programs, and its path.
fn program(consent: Consent, need: Need, packages: &[&str]) -> Result<(PathBuf, PathBuf)> {
    install_packages(consent, &[need])?;
    let mut cargo =
        command("cargo", ["build", "--release", "--locked", "--bins", "--package", "domus-bench"]);
    for package in packages {
        cargo.args(["--package", package]);
    }
    run(cargo.current_dir(workspace::root())).context("what is measured does not build")?;
    let bin = workspace::target().join("release");
    let program = bin.join("domus-bench");
    if !program.is_file() {
        bail!("cargo built no {}", program.display());
    }
    Ok((bin, program))
}
