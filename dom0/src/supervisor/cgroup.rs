//! One cgroup (v2) for each domain, with limits that the domain's own size gives.
//!
//! Needs the controllers cpu, memory and pids in dom0's own cgroup, which the host's service manager delegates
//! (systemd: `Delegate=yes`). Where they are missing the caller goes on without limits, and says so once.

use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use shared_abi::DomainName;

/// dom0's part of the cgroup tree.
#[derive(Debug)]
pub struct Cgroups {
    base: PathBuf,
}

/// Memory that the processes of a domain may use beside the guest's RAM: their own, page tables, page cache.
const MEMORY_BESIDE_RAM: u64 = 256 << 20;

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
        let mount = mount.ok_or("no cgroup v2 hierarchy is mounted")?;
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|e| format!("no cgroup: {e}"))?;
        let own =
            own.lines().find_map(|line| line.strip_prefix("0::")).ok_or("dom0 is in no cgroup of v2")?;
        let own = PathBuf::from(mount).join(own.trim_start_matches('/'));
        let controllers = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
        for needed in ["cpu", "memory", "pids"] {
            if !controllers.split_whitespace().any(|there| there == needed) {
                return Err(format!(
                    "the cgroup v2 controller {needed} is not delegated to {}",
                    own.display()
                ));
            }
        }
        // A cgroup with processes in it can give its children no controllers, so dom0 moves into a leaf.
        let enter = || -> std::io::Result<()> {
            let leaf = own.join("dom0");
            fs::create_dir_all(&leaf)?;
            fs::write(leaf.join("cgroup.procs"), "0")?;
            fs::write(own.join("cgroup.subtree_control"), "+cpu +memory +pids")
        };
        enter().map_err(|e| format!("{} cannot be divided: {e}", own.display()))?;
        Ok(Self { base: own })
    }

    fn path(&self, domain: &DomainName) -> PathBuf {
        self.base.join(format!("domus-{domain}"))
    }

    /// The domain's cgroup, made at the first call.
    pub fn group(&self, domain: &DomainName, memory: u64, vcpus: u8) -> Option<OwnedFd> {
        let path = self.path(domain);
        if !path.exists() {
            let made = || -> std::io::Result<()> {
                fs::create_dir(&path)?;
                fs::write(path.join("memory.max"), (memory + MEMORY_BESIDE_RAM).to_string())?;
                // vCPUs, the backends' queue threads and io_uring's workers.
                fs::write(path.join("pids.max"), (512 + 8 * u32::from(vcpus)).to_string())
            };
            if let Err(error) = made() {
                crate::say::line(format_args!("{domain} runs without limits: {}: {error}", path.display()));
            }
        }
        File::open(&path).ok().map(OwnedFd::from)
    }

    /// Removes the domain's cgroup; its processes have ended.
    pub fn remove(&self, domain: &DomainName) {
        let _ = fs::remove_dir(self.path(domain));
    }
}
