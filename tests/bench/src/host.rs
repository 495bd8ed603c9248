//! What the figures depend on and does not show in them: the machine, its file systems, the versions of the peers.

use std::fs;
use std::path::Path;
use std::process::Command;

use nix::sys::statfs::{self, statfs};

/// One line for each thing.
pub fn describe() -> Vec<String> {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let count = cpus.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    vec![
        format!("CPU: {count} × {}", model.map_or("unknown", |(_, name)| name)),
        format!("kernel: {}", kernel.trim()),
    ]
}

/// The first line of what a program says of its version.
pub fn version(program: &str) -> String {
    let output = Command::new(program).arg("--version").output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    text.ok()
        .and_then(|text| text.lines().next().map(str::to_owned))
        .unwrap_or_else(|| "not installed".into())
}

/// What kind of file system a folder is on.
pub fn file_system(folder: &Path) -> String {
    match statfs(folder).map(|found| found.filesystem_type()) {
        Ok(statfs::EXT4_SUPER_MAGIC) => "ext4".into(),
        Ok(statfs::TMPFS_MAGIC) => "tmpfs".into(),
        Ok(statfs::BTRFS_SUPER_MAGIC) => "btrfs".into(),
        Ok(statfs::XFS_SUPER_MAGIC) => "xfs".into(),
        Ok(statfs::OVERLAYFS_SUPER_MAGIC) => "overlayfs".into(),
        Ok(other) => format!("file system {:#x}", other.0),
        Err(errno) => format!("unknown ({errno})"),
    }
}
