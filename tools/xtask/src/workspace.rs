//! Where things are, and the binaries the lab and the demo run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{command, run};

/// The workspace's top folder.
pub fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.ancestors().nth(2).map_or_else(|| manifest.to_path_buf(), Path::to_path_buf)
}

/// Cargo's target folder.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// Where the lab's images are kept, by the hash of their recipes.
pub fn images() -> PathBuf {
    target().join("lab/images")
}

/// Every program the lab runs.
pub const BINARIES: &[&str] = &[
    "dom0",
    "domus",
    "domu-runner",
    "domus-block",
    "domus-net",
    "domus-switch",
    "domus-console",
    "domus-lab",
];

/// Where profile `lab` puts the binaries.
pub fn binaries() -> PathBuf {
    target().join("lab")
}

/// Builds the binaries with profile `lab` and returns the folder that holds them.
pub fn build_binaries() -> Result<PathBuf> {
    let mut cargo = command("cargo", ["build", "--profile", "lab", "--locked", "--bins"]);
    for package in [
        "dom0",
        "domus",
        "domu-runner",
        "domus-block",
        "domus-net",
        "domus-switch",
        "domus-console",
        "domus-tests",
    ] {
        cargo.args(["--package", package]);
    }
    run(cargo.current_dir(root())).context("the binaries of Domus do not build")?;
    let folder = binaries();
    for name in BINARIES {
        if !folder.join(name).is_file() {
            bail!("cargo built no {name} in {}", folder.display());
        }
    }
    Ok(folder)
}
