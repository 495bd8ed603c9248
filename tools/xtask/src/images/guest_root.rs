//! The root file system of the test guests: busybox, three network tools and the lab's guest init on ext4, so that a
//! guest is up as soon as its kernel is.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use anyhow::{Context, Result};

use super::ext4;
use crate::command::{command, read};

/// This file: whatever changes here changes the image.
pub const SOURCE: &str = concat!(include_str!("guest_root.rs"), include_str!("guest-lease.sh"));

/// The guest's first process once its disk is mounted: does what it is told on the console.
pub const GUEST_INIT: &str = include_str!("guest-init.sh");

/// What sets an address that DHCP has given.
const LEASE: &str = include_str!("guest-lease.sh");

/// Programs of the host's, with the libraries they need: traffic, and frames in the name of others.
const PROGRAMS: &[&str] = &["/usr/bin/iperf3", "/usr/bin/nping", "/usr/bin/socat"];

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
    write_program(&tree.join("usr/share/udhcpc/default.script"), LEASE)?;
    for program in PROGRAMS {
        copy_with_libraries(tree, program)?;
    }
    fs::write(tree.join("etc/passwd"), "root::0:0:root:/:/bin/sh\n")?;
    ext4(tree, image, SIZE)
}

/// Copies a program of the host's, and what its dynamic linker would load.
fn copy_with_libraries(tree: &Path, program: &str) -> Result<()> {
    let listed =
        read(&mut command("ldd", [program])).with_context(|| format!("{program} is not installed"))?;
    let libraries =
        listed.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    for file in libraries.chain([program]) {
        let copy = tree.join(file.trim_start_matches('/'));
        if let Some(folder) = copy.parent() {
            fs::create_dir_all(folder)?;
        }
        fs::copy(file, &copy).with_context(|| format!("cannot copy {file}"))?;
    }
    Ok(())
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
