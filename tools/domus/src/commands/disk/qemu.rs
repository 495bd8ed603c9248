//! Snapshots inside a qcow2 image, which imago does not work on: `qemu-img` does, with the caller's rights.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, bail};
use dom0::host::locks::Lock;
use shared_abi::control::ImageFormat;

use super::files::{Image, Said};
use crate::output::print;

/// The caller has looked.
const QCOW2: Said = Said { format: Some(ImageFormat::Qcow2), raw: "" };

/// Takes (`-c`), goes back to (`-a`) or deletes (`-d`) a snapshot.
///
/// # Errors
/// One line for the user.
pub fn change(file: &Path, action: &str, name: &str) -> anyhow::Result<()> {
    // Only to see that nobody uses it: qemu-img locks it itself.
    drop(Image::open(file, QCOW2, Lock::Write)?);
    snapshot(file, &[action, name]).map(drop)
}

/// Prints the snapshots.
///
/// # Errors
/// One line for the user.
pub fn list(file: &Path, json: bool) -> anyhow::Result<()> {
    drop(Image::open(file, QCOW2, Lock::Read)?);
    if !json {
        let output = snapshot(file, &["-l"])?;
        return print(String::from_utf8_lossy(&output.stdout).trim_end());
    }
    let output =
        run(Command::new("qemu-img").args(["info", "-f", "qcow2", "--output=json"]).arg(file), file)?;
    let info: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("qemu-img has not said what it should")?;
    print(&info.get("snapshots").cloned().unwrap_or_else(|| serde_json::json!([])).to_string())
}

fn snapshot(file: &Path, args: &[&str]) -> anyhow::Result<Output> {
    // Without a format, qemu-img would guess one from the bytes; `json:` and the like are taken for file names.
    let options = format!("driver=qcow2,file.driver=file,file.filename={}", escaped(file)?);
    run(Command::new("qemu-img").arg("snapshot").args(args).args(["--image-opts", &options]), file)
}

/// A path for QEMU's options, where commas are doubled.
fn escaped(file: &Path) -> anyhow::Result<String> {
    Ok(file.to_str().context("the path of the image is no UTF-8: rename it")?.replace(',', ",,"))
}

fn run(command: &mut Command, file: &Path) -> anyhow::Result<Output> {
    let output = command.output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            anyhow::anyhow!(
                "qemu-img is needed for snapshots inside an image: install the package qemu-utils"
            )
        }
        _ => anyhow::Error::from(error).context("cannot start qemu-img"),
    })?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {}", file.display(), text.lines().next().unwrap_or("qemu-img failed").trim());
    }
    Ok(output)
}
