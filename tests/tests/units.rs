//! The systemd units of the package, as systemd itself judges them. Needs no running systemd.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The units of the package whose names begin so.
fn units(beginning: &str) -> Result<Vec<PathBuf>> {
    let folder = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tools/packaging/systemd"));
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(beginning)) {
            found.push(path);
        }
    }
    Ok(found)
}

fn analyze(arguments: &[&str], unit: &PathBuf) -> Result<(bool, String)> {
    let output = Command::new("systemd-analyze").args(arguments).arg(unit).output();
    let output = output.context("cannot start systemd-analyze: install systemd")?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&said).into_owned()))
}

#[test]
fn the_units_of_a_domains_processes_are_exposed_by_two_at_most() -> Result<()> {
    let children: Vec<PathBuf> =
        units("domus-")?.into_iter().filter(|path| path.to_string_lossy().contains("@.")).collect();
    ensure!(children.len() == 5, "{children:?}");
    for unit in children {
        // Tenths: 2.0.
        let (within, said) = analyze(&["security", "--offline=yes", "--no-pager", "--threshold=20"], &unit)?;
        ensure!(within, "{}: {}", unit.display(), said.lines().last().unwrap_or_default());
    }
    Ok(())
}

#[test]
fn no_unit_has_a_setting_that_systemd_does_not_know() -> Result<()> {
    for unit in units("d")? {
        let (_, said) = analyze(&["verify", "--man=no", "--recursive-errors=no"], &unit)?;
        // The programs may not be installed here; a setting that is wrong is another matter.
        for word in ["Unknown", "Failed to parse", "Invalid", "ignoring"] {
            ensure!(!said.contains(word), "{}: {said}", unit.display());
        }
    }
    Ok(())
}
