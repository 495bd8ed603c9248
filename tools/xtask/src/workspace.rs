//! The paths of the workspace, and the binaries that the lab and the demo run.

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

/// How programs are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// For those who use them.
    Release,
    /// For the lab and the demo: optimised, quick to build again.
    Lab,
}

impl Profile {
    /// Its name, which is its folder's, too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Lab => "lab",
        }
    }
}

/// Where profile `lab` puts the binaries.
pub fn binaries() -> PathBuf {
    target().join(Profile::Lab.name())
}

/// Builds the binaries with profile `lab` and returns the folder that holds them.
pub fn build_binaries() -> Result<PathBuf> {
    build(Profile::Lab)
}

/// Builds the binaries and returns the folder that holds them.
pub fn build(profile: Profile) -> Result<PathBuf> {
    let mut cargo = command("cargo", ["build", "--profile", profile.name(), "--locked", "--bins"]);
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
    let folder = target().join(profile.name());
    for name in BINARIES {
        if !folder.join(name).is_file() {
            bail!("cargo built no {name} in {}", folder.display());
        }
    }
    Ok(folder)
}
