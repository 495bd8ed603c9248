//! Traces of domains on a host, which must be gone after them: interfaces, processes, sockets, cgroups, shared memory.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use domus_driver::process::poll_until;

/// The programs that serve one domain.
pub const CHILDREN: &[&str] = &["domu-runner", "domus-block", "domus-net", "domus-console"];

/// Shared memory may grow by so much for other reasons; the smallest guest is 256 MiB.
const SHMEM_SLACK_KIB: u64 = 4096;

/// A look at the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces {
    things: BTreeSet<String>,
    shmem_kib: u64,
}

/// One process of a domain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// Its program's name, one of [`CHILDREN`].
    pub role: String,
    /// As this process sees it.
    pub pid: u32,
}

/// What the dom0s of this machine keep of kernels, for the next domains.
fn kept_kernels_kib() -> u64 {
    let is_dom0 = |folder: &Path| fs::read_to_string(folder.join("comm")).is_ok_and(|name| name == "dom0\n");
    let folders = fs::read_dir("/proc").into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let files = folders.filter(|folder| is_dom0(folder)).flat_map(|folder| fs::read_dir(folder.join("fd")));
    let files = files.flatten().filter_map(|file| Some(file.ok()?.path()));
    let kept = files
        .filter(|file| fs::read_link(file).is_ok_and(|name| name.as_os_str() == "/memfd:kernel (deleted)"));
    kept.filter_map(|file| Some(fs::metadata(file).ok()?.len() >> 10)).sum()
}

/// The processes on this machine that serve domains.
pub fn children() -> Result<Vec<Child>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process may end while it is looked at.
        let Ok(program) = fs::read_link(format!("/proc/{pid}/exe")) else { continue };
        let role = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if CHILDREN.contains(&role.as_str()) {
            found.push(Child { role, pid });
        }
    }
    Ok(found)
}

impl Traces {
    /// Looks at the host now.
    pub fn take() -> Result<Self> {
        let mut things = BTreeSet::new();
        for child in children()? {
            things.insert(format!("process {} {}", child.pid, child.role));
        }
        for entry in fs::read_dir("/sys/class/net")? {
            things.insert(format!("interface {}", entry?.file_name().to_string_lossy()));
        }
        walk(Path::new("/run/domus/domains"), &mut things);
        cgroups(Path::new("/sys/fs/cgroup"), &mut things);
        let meminfo = fs::read_to_string("/proc/meminfo")?;
        let shmem =
            meminfo.lines().find_map(|line| line.strip_prefix("Shmem:")).context("no Shmem in meminfo")?;
        let shmem_kib: u64 = shmem.trim().trim_end_matches(" kB").parse()?;
        Ok(Self { things, shmem_kib: shmem_kib.saturating_sub(kept_kernels_kib()) })
    }

    /// Waits until nothing is there that was not there in `self`.
    pub fn wait_until_back(&self) -> Result<()> {
        let mut left = Vec::new();
        let back = poll_until(Duration::from_secs(10), || match Self::take() {
            Ok(now) => {
                left = now.things.difference(&self.things).cloned().collect();
                if now.shmem_kib > self.shmem_kib + SHMEM_SLACK_KIB {
                    left.push(format!("{} KiB of shared memory", now.shmem_kib - self.shmem_kib));
                }
                left.is_empty()
            }
            Err(error) => {
                left = vec![format!("{error:#}")];
                false
            }
        });
        if !back {
            bail!("left behind: {}", left.join(", "));
        }
        Ok(())
    }
}

fn walk(folder: &Path, things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        things.insert(format!("file {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), things);
        }
    }
}

fn cgroups(folder: &Path, things: &mut BTreeSet<String>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            things.insert(format!("cgroup {}", entry.path().display()));
            cgroups(&entry.path(), things);
        }
    }
}
