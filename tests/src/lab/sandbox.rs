//! Checks the sandbox of a domain's processes by `/proc`: what each may do, see and hold.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};

use super::Lab;
use super::domain::{Domain, Spec};
use super::traces::{CHILDREN, Child, children};

/// Namespaces that none of them shares with the host.
const NAMESPACES: &[&str] = &["mnt", "net", "pid", "ipc", "uts", "cgroup"];

/// Beginnings of what `/proc/PID/fd` may point to, for every role. Descriptors that are no file of any file system.
const ANONYMOUS: &[&str] = &["socket:", "anon_inode:", "pipe:", "/dev/null", "/memfd:"];

/// The domain.
const NAME: &str = "boxed";

/// One running domain with a disk, a NIC and a console: one process for each, each in its sandbox.
pub fn sandbox(lab: &Lab) -> Result<()> {
    let (domain, console) = Domain::boot(lab, Spec::new(NAME, 2))?;
    let found = children()?;
    for role in CHILDREN {
        let count = found.iter().filter(|child| child.role == *role).count();
        if count != 1 {
            bail!("{count} processes are {role}, one domain has one");
        }
    }
    let image = domain.spec.image(lab);
    let mut uids = Vec::new();
    for child in &found {
        let what = format!("{} (process {})", child.role, child.pid);
        uids.push(status(child).context(what.clone())?);
        places(child).context(what.clone())?;
        descriptors(child, &image).context(what)?;
    }
    if uids.iter().any(|uid| *uid != uids[0]) {
        bail!("the processes of one domain run as different users: {uids:?}");
    }
    drop(console);
    drop(domain);
    Ok(())
}

/// Checks every thread's status, and returns the uid.
fn status(child: &Child) -> Result<u32> {
    let mut uid = 0;
    for task in fs::read_dir(format!("/proc/{}/task", child.pid))? {
        let text = fs::read_to_string(task?.path().join("status"))?;
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
                .with_context(|| format!("no {name}"))
        };
        let uids: Vec<u32> = field("Uid")?.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        if uids.contains(&0) || uids.iter().any(|each| *each != uids[0]) {
            bail!("its uids are {uids:?}: one, not root's, is expected");
        }
        uid = uids[0];
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            if field(set)?.bytes().any(|digit| digit != b'0') {
                bail!("{set} is {}", field(set)?);
            }
        }
        for (name, expected) in [("NoNewPrivs", "1"), ("Seccomp", "2"), ("Groups", "")] {
            if field(name)?.trim() != expected {
                bail!("{name} is {:?}, not {expected:?}", field(name)?);
            }
        }
    }
    Ok(uid)
}

/// Own namespaces, and nothing in the root.
fn places(child: &Child) -> Result<()> {
    for namespace in NAMESPACES {
        let theirs = fs::read_link(format!("/proc/{}/ns/{namespace}", child.pid))?;
        let ours = fs::read_link(format!("/proc/self/ns/{namespace}"))?;
        if theirs == ours {
            bail!("its {namespace} namespace is the host's");
        }
    }
    let root = format!("/proc/{}/root/", child.pid);
    let seen: Vec<_> = fs::read_dir(&root)?.flatten().map(|entry| entry.file_name()).collect();
    if !seen.is_empty() {
        bail!("its root holds {seen:?}");
    }
    Ok(())
}

/// Nothing is open but what the role needs.
fn descriptors(child: &Child, image: &Path) -> Result<()> {
    for entry in fs::read_dir(format!("/proc/{}/fd", child.pid))? {
        // A descriptor may be closed while it is looked at.
        let Ok(target) = fs::read_link(entry?.path()) else { continue };
        let text = target.to_string_lossy();
        let own = match child.role.as_str() {
            "domus-block" => target == image,
            // Its tap, and what a NIC's driver has set.
            "domus-net" => text == "/dev/net/tun" || text == format!("/run/domus/domains/{NAME}/nic0.state"),
            _ => false,
        };
        if !own && !ANONYMOUS.iter().any(|beginning| text.starts_with(beginning)) {
            bail!("it holds {text} open");
        }
    }
    Ok(())
}
