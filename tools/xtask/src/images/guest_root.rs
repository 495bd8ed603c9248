//! The root file system of the test guests: busybox and the lab's guest init on ext4, so that a guest is up as soon as its kernel is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::ext4;
use crate::command::{command, read};

/// This file: whatever changes here changes the image.
pub const SOURCE: &str = include_str!("guest_root.rs");

/// The guest's first process once its disk is mounted: does what it is told on the console.
pub const GUEST_INIT: &str = include_str!("guest-init.sh");

/// Room for the 64 MiB that the tests write, a copy, and the file system itself.
const SIZE: &str = "256M";

/// Makes the image at `image` from a tree in `tree`.
pub fn build(tree: &Path, image: &Path) -> Result<()> {
    for folder in ["bin", "sbin", "dev", "proc", "sys", "run", "tmp", "data", "etc"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy("/bin/busybox", tree.join("bin/busybox"))
        .context("cannot copy /bin/busybox: install busybox-static")?;
    for applet in read(&mut command("/bin/busybox", ["--list"]))?.lines() {
        if applet != "busybox" {
            symlink("/bin/busybox", tree.join("bin").join(applet))?;
        }
    }
    write_program(&tree.join("sbin/init"), GUEST_INIT)?;
    fs::write(tree.join("etc/passwd"), "root::0:0:root:/:/bin/sh\n")?;
    ext4(tree, image, SIZE)
}

/// Writes `content` as a program of mode 0755.
pub fn write_program(path: &Path, content: &str) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    fs::write(path, content)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
