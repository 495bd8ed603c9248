//! One cgroup (v2) for each domain, with limits that the domain's own size gives.
//!
//! dom0 divides its own cgroup, and only if that is its to divide: the service manager has delegated it (systemd:
//! `Delegate=yes`, which leaves an extended attribute), or there is no service manager and it is the root. Where there
//! is none the caller goes on without limits, and says so once.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use shared_abi::DomainName;

/// dom0's part of the cgroup tree.
#[derive(Debug)]
pub struct Cgroups {
    base: PathBuf,
}

/// Memory that the processes of a domain may use beside the guest's RAM: their own, page tables, page cache.
const MEMORY_BESIDE_RAM: u64 = 256 << 20;

/// The most memory that a domain's processes may use, in bytes, for a guest with so much RAM.
pub fn memory_limit(memory: u64) -> u64 {
    memory + MEMORY_BESIDE_RAM
}

/// The most threads of a domain's processes: vCPUs, the backends' queue threads and io_uring's workers.
pub fn task_limit(vcpus: u8) -> u32 {
    512 + 8 * u32::from(vcpus)
}

/// The most threads of a process that serves several domains: a switch has one for each of its 64 ports, and a few.
pub const SHARED_TASKS: u32 = 256;

/// The period of a CPU cap in microseconds.
const PERIOD: u64 = 100_000;

/// What the limits need.
const CONTROLLERS: [&str; 2] = ["memory", "pids"];

fn may_divide(own: &Path, mount: &Path) -> bool {
    let delegated = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 8];
        matches!(crate::process::spawn::extended_attribute(own, name, &mut value), Ok(1) if value[0] == b'1')
    });
    delegated || (own == mount && !Path::new("/run/systemd/system").exists())
}

impl Cgroups {
    /// Finds dom0's own cgroup, and makes it a parent of the domains'.
    ///
    /// # Errors
    /// Why there is none, in a few words.
    pub fn find() -> Result<Self, String> {
        let mounts = fs::read_to_string("/proc/self/mountinfo").map_err(|e| format!("no mountinfo: {e}"))?;
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            if right.starts_with("cgroup2 ") { left.split(' ').nth(4) } else { None }
        });
        let mount = Path::new(mount.ok_or("no cgroup v2 hierarchy is mounted")?);
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("no cgroup: {e}"))?;
        let own =
            own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("dom0 is in no cgroup of v2")?;
        let base = match own.trim_start_matches('/') {
            "" => mount.to_owned(),
            below => mount.join(below),
        };
        let there = fs::read_to_string(base.join("cgroup.controllers")).unwrap_or_default();
        for needed in CONTROLLERS {
            if !there.split_whitespace().any(|there| there == needed) {
                return Err(format!("the cgroup v2 controller {needed} is not there in {}", base.display()));
            }
        }
        if !may_divide(&base, mount) {
            return Err(format!("the cgroup {} is not delegated (systemd: Delegate=yes)", base.display()));
        }
        let cgroups = Self { base };
        cgroups
            .enter()
            .map_err(|e| format!("the cgroup {} cannot be divided: {e}", cgroups.base.display()))?;
        Ok(cgroups)
    }

    /// A cgroup with processes in it can give its children no controllers, so dom0 moves into a leaf.
    fn enter(&self) -> io::Result<()> {
        let leaf = self.leaf();
        fs::create_dir_all(&leaf)?;
        fs::write(leaf.join("cgroup.procs"), "0")?;
        for controller in CONTROLLERS {
            fs::write(self.base.join("cgroup.subtree_control"), format!("+{controller}"))?;
        }
        // No limit needs it; who wants to weigh domains is told that it is missing.
        let _ = fs::write(self.base.join("cgroup.subtree_control"), "+cpu");
        Ok(())
    }

    fn leaf(&self) -> PathBuf {
        self.base.join("dom0")
    }

    fn path(&self, domain: &DomainName) -> PathBuf {
        self.base.join(format!("domus-{domain}"))
    }

    /// The domain's cgroup, made where it is missing. One that is there may be from another dom0 and another config.
    pub fn group(&self, domain: &DomainName, memory: u64, vcpus: u8) -> Option<OwnedFd> {
        limited(&self.path(domain), Some(memory_limit(memory)), task_limit(vcpus), domain.as_str())
    }

    /// The cgroup of a process of none of the domains, made where it is missing. A space in its name becomes a `-`.
    /// Without a limit of memory for what maps guests' memory: what it is the first to touch of that is counted as its
    /// own.
    pub fn helper(&self, whom: &str, memory: Option<u64>, tasks: u32) -> Option<OwnedFd> {
        limited(&self.helper_path(whom), memory, tasks, whom)
    }

    /// No domain's cgroup begins so.
    fn helper_path(&self, whom: &str) -> PathBuf {
        self.base.join(format!("helper-{}", whom.replace([' ', '/'], "-")))
    }

    /// Removes such a cgroup. False while there is a process in it.
    pub fn remove_helper(&self, whom: &str) -> bool {
        let removed = fs::remove_dir(self.helper_path(whom));
        removed.is_ok() || !self.helper_path(whom).exists()
    }

    /// Changes a domain's weight and cap of CPU time, as
    /// [`Supervisor::set_cpu_limits`](crate::process::Supervisor::set_cpu_limits) says.
    ///
    /// # Errors
    /// One line.
    pub fn set_cpu_limits(
        &self,
        domain: &DomainName,
        weight: Option<u32>,
        cap: Option<u32>,
    ) -> Result<(), String> {
        let path = self.path(domain);
        let write = |file: &str, value: String| {
            let file = path.join(file);
            fs::write(&file, value).map_err(|error| format!("cannot write {}: {error}", file.display()))
        };
        if let Some(weight) = weight {
            write("cpu.weight", weight.to_string())?;
        }
        match cap {
            None => Ok(()),
            Some(0) => write("cpu.max", format!("max {PERIOD}")),
            Some(percent) => write("cpu.max", format!("{} {PERIOD}", u64::from(percent) * PERIOD / 100)),
        }
    }

    /// The domain's cgroup, if it has been made.
    pub fn there(&self, domain: &DomainName) -> Option<OwnedFd> {
        File::open(self.path(domain)).ok().map(OwnedFd::from)
    }

    /// Removes the domain's cgroup; its processes have ended.
    pub fn remove(&self, domain: &DomainName) {
        let _ = fs::remove_dir(self.path(domain));
    }
}

/// A cgroup with these limits, made where it is missing.
fn limited(path: &Path, memory: Option<u64>, tasks: u32, whom: &str) -> Option<OwnedFd> {
    let made = || -> io::Result<()> {
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        if let Some(memory) = memory {
            fs::write(path.join("memory.max"), memory.to_string())?;
        }
        fs::write(path.join("pids.max"), tasks.to_string())
    };
    if let Err(error) = made() {
        crate::log::stderr::line(format_args!("{whom} runs without limits: {}: {error}", path.display()));
    }
    File::open(path).ok().map(OwnedFd::from)
}

impl Drop for Cgroups {
    fn drop(&mut self) {
        // As it was found; what of it fails is in use by another dom0.
        let groups = fs::read_dir(&self.base).into_iter().flatten().flatten();
        for helper in groups.filter(|group| group.file_name().as_encoded_bytes().starts_with(b"helper-")) {
            let _ = fs::remove_dir(helper.path());
        }
        for controller in CONTROLLERS.into_iter().chain(["cpu"]) {
            let _ = fs::write(self.base.join("cgroup.subtree_control"), format!("-{controller}"));
        }
        let _ = fs::write(self.base.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(self.leaf());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_serves_no_domain_alone_has_limits_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let cgroups = std::mem::ManuallyDrop::new(Cgroups { base: dir.path().into() });
        assert!(cgroups.helper("network lan", Some(64 << 20), 64).is_some());
        assert!(cgroups.helper("switch fast", None, 256).is_some());
        let limit = |group: &str, file: &str| fs::read_to_string(dir.path().join(group).join(file)).ok();
        assert_eq!(limit("helper-network-lan", "memory.max").unwrap(), (64 << 20).to_string());
        assert_eq!(limit("helper-switch-fast", "pids.max").unwrap(), "256");
        assert_eq!(limit("helper-switch-fast", "memory.max"), None);
        assert!(!cgroups.remove_helper("switch fast"), "there is something in it");
        std::fs::remove_dir_all(dir.path().join("helper-switch-fast")).unwrap();
        assert!(cgroups.remove_helper("switch fast"));
    }

    #[test]
    fn a_cgroup_that_is_there_gets_the_limits_of_the_domain_that_is_made_now() {
        let dir = tempfile::tempdir().unwrap();
        // Not dropped: it would leave the test's own cgroup tree as it thinks it found it.
        let cgroups = std::mem::ManuallyDrop::new(Cgroups { base: dir.path().into() });
        let name = "web1".parse().unwrap();
        for (memory, vcpus, pids) in [(1 << 25, 1, "520"), (1 << 30, 2, "528")] {
            assert!(cgroups.group(&name, memory, vcpus).is_some());
            let limit = |file: &str| fs::read_to_string(dir.path().join("domus-web1").join(file)).unwrap();
            assert_eq!(limit("memory.max"), (memory + MEMORY_BESIDE_RAM).to_string());
            assert_eq!(limit("pids.max"), pids);
        }
    }
}
