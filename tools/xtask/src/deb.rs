//! The Debian package: programs, units, man pages, completions and schemas, put together by cargo-deb.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command::{command, read, run, run_quiet};
use crate::manual;
use crate::packages::{Consent, install_cargo_tool};
use crate::workspace::{self, Profile};

/// Shells, and what a file of completions for `domus` is called there. `xl` completes as it does.
const SHELLS: [(&str, &str); 3] = [("bash", "domus"), ("zsh", "_domus"), ("fish", "domus.fish")];

/// Builds the programs and the package, and says where it is.
pub fn deb(consent: Consent, profile: Profile) -> Result<()> {
    install_cargo_tool(consent, "deb")?;
    let bin = workspace::build(profile)?;
    println!("{}", pack(&bin, profile)?.display());
    Ok(())
}

/// Makes the package of the programs in `bin`, where `profile` has put them.
pub fn pack(bin: &Path, profile: Profile) -> Result<PathBuf> {
    // Where the package's list of files has it, wherever cargo builds.
    let made = workspace::root().join("target/package");
    if made.exists() {
        fs::remove_dir_all(&made)?;
    }
    documents(bin, &made).context("the man pages and completions")?;
    let package = made.join("domus.deb");
    let mut cargo = command("cargo", ["deb", "--no-build", "--package", "domus", "--locked"]);
    cargo.args(["--profile", profile.name(), "--output"]).arg(&package);
    run_quiet(cargo.current_dir(workspace::root()))?;
    if !package.is_file() {
        bail!("cargo deb made no {}", package.display());
    }
    Ok(package)
}

/// Man pages and completions for shells: what `domus` tells of itself, completed by [`manual`].
fn documents(bin: &Path, made: &Path) -> Result<()> {
    let domus = bin.join("domus").display().to_string();
    let man = made.join("man");
    fs::create_dir_all(&man)?;
    run(command(&domus, ["manual"]).arg(&man))?;
    manual::complete(&man)?;
    for (shell, file) in SHELLS {
        let folder = made.join(shell);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(file), read(&mut command(&domus, ["completions", shell]))?)?;
    }
    Ok(())
}
