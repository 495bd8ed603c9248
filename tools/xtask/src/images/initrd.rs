//! The initial RAM file system of a guest: busybox, the virtio modules its kernel does not have built in, and a script.
//!
//! Debian's own initramfs-tools would have to be installed in a chroot with the kernel. This initrd has 2 MB, is the
//! same for every root file system, and says on the console when it runs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::cpio::Archive;
use super::kernels::Kernel;
use crate::command::{command, run_quiet};

/// Modules that a guest needs before its root file system is mounted, and those that the test guests, which have no
/// modprobe, need later.
const MODULES: &[&str] =
    &["virtio_pci", "virtio_blk", "virtio_net", "af_packet", "ext4", "crc32c_generic", "button", "evdev"];

/// This file: whatever changes here changes the image.
pub const SOURCE: &str = include_str!("initrd.rs");

/// Runs as the guest's first process.
pub const SCRIPT: &str = include_str!("initrd.sh");

/// The initrd for `kernel`, as bytes.
pub fn initrd(kernel: &Kernel, scratch: &Path) -> Result<Vec<u8>> {
    let busybox = fs::read("/bin/busybox").context("cannot read /bin/busybox: install busybox-static")?;
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "proc", "sys", "root", "modules"] {
        archive.directory(folder);
    }
    archive.device("dev/console", 5, 1);
    archive.program("bin/busybox", &busybox);
    archive.link("bin/sh", "busybox");
    archive.program("init", SCRIPT.as_bytes());
    let mut order = String::new();
    for path in load_order(kernel)? {
        let name =
            path.rsplit('/').next().unwrap_or(&path).split(".ko").next().unwrap_or_default().to_owned();
        archive.file(&format!("modules/{name}.ko"), &unpacked(&kernel.modules.join(&path), scratch)?);
        order.push_str(&name);
        order.push('\n');
    }
    archive.file("modules/order", order.as_bytes());
    Ok(archive.finish())
}

/// The module files to load, each after those it needs, relative to `kernel.modules`.
fn load_order(kernel: &Kernel) -> Result<Vec<String>> {
    let path = kernel.modules.join("modules.dep");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut order: Vec<String> = Vec::new();
    for wanted in MODULES {
        // A module that is not listed is built in.
        for line in text.lines() {
            let Some((file, needs)) = line.split_once(": ").or_else(|| line.split_once(':')) else {
                continue;
            };
            let stem = file.rsplit('/').next().unwrap_or(file).split(".ko").next().unwrap_or_default();
            if stem.replace('-', "_") != *wanted {
                continue;
            }
            // modules.dep lists the nearest need first.
            for module in needs.split_whitespace().rev().chain([file]) {
                if !order.iter().any(|known| known == module) {
                    order.push(module.to_owned());
                }
            }
        }
    }
    Ok(order)
}

fn unpacked(module: &Path, scratch: &Path) -> Result<Vec<u8>> {
    if module.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(module).with_context(|| format!("cannot read {}", module.display()));
    }
    let copy = scratch.with_extension("ko.xz");
    fs::copy(module, &copy)?;
    run_quiet(command("xz", ["--decompress", "--force"]).arg(&copy))?;
    let plain = scratch.with_extension("ko");
    let bytes = fs::read(&plain)?;
    fs::remove_file(plain)?;
    Ok(bytes)
}
