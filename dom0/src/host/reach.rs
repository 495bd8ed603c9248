//! What a process could reach if it were taken over, as the kernel has it in `/proc`: not what its code means to do.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The kinds of namespaces that a process may share with dom0.
const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

/// Entries of its root directory that are told.
const MAX_ENTRIES: usize = 16;

/// Lines of its memory map that are read: a process of ours has some hundreds.
const MAX_MAPS: usize = 65_536;

/// A descriptor, or several of the same kind.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Descriptor {
    /// A path, or what it is: `eventfd`, `socket`, `kvm-vm`.
    pub what: String,
    /// It can be written to.
    pub writable: bool,
}

/// Memory that it shares with others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedMemory {
    /// The name of the memory file.
    pub what: String,
    /// Bytes mapped.
    pub bytes: u64,
    /// It can be written to.
    pub writable: bool,
}

/// What a process could reach.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Reach {
    /// Its user.
    pub uid: u32,
    /// Its effective and permitted capabilities, as a bit set.
    pub capabilities: u64,
    /// No program that it executes can give it more.
    pub no_new_privileges: bool,
    /// Lists of system calls that it is held to.
    pub filters: u32,
    /// Namespaces that it shares with dom0.
    pub shared_namespaces: Vec<&'static str>,
    /// What is in its root directory.
    pub root: Vec<String>,
    /// Its descriptors by kind, with their numbers.
    pub descriptors: BTreeMap<Descriptor, u32>,
    /// The memory that it shares.
    pub memory: Vec<SharedMemory>,
    /// The interfaces of its network.
    pub interfaces: Vec<String>,
    /// How long a file it may make or lengthen, in bytes; none for no limit.
    pub longest_file: Option<u64>,
}

impl Reach {
    /// Of a process.
    ///
    /// # Errors
    /// It has ended, or this user may not look at it.
    pub fn of(pid: i32) -> io::Result<Self> {
        let proc = PathBuf::from(format!("/proc/{pid}"));
        let status = fs::read_to_string(proc.join("status"))?;
        let field = |key: &str| status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        let number = |key: &str| field(key).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let bits = |key: &str| field(key).and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
        let uid = field("Uid").and_then(|ids| ids.split_whitespace().nth(1)?.parse().ok());
        Ok(Self {
            uid: uid.ok_or(io::ErrorKind::InvalidData)?,
            capabilities: bits("CapEff").unwrap_or(u64::MAX) | bits("CapPrm").unwrap_or(u64::MAX),
            no_new_privileges: number("NoNewPrivs") == 1,
            // Mode 2 is a filter, and older kernels do not count them.
            filters: if number("Seccomp") == 2 { number("Seccomp_filters").max(1) } else { 0 },
            shared_namespaces: shared_namespaces(&proc),
            root: entries(&proc.join("root")),
            descriptors: descriptors(&proc)?,
            memory: shared_memory(&fs::read_to_string(proc.join("maps"))?),
            interfaces: interfaces(&fs::read_to_string(proc.join("net/dev")).unwrap_or_default()),
            longest_file: longest_file(&fs::read_to_string(proc.join("limits"))?),
        })
    }
}

/// One that cannot be compared is told: it may be shared.
fn shared_namespaces(proc: &Path) -> Vec<&'static str> {
    let namespace = |of: &Path, kind: &str| fs::read_link(of.join("ns").join(kind)).ok();
    let own = Path::new("/proc/self");
    NAMESPACES.into_iter().filter(|kind| namespace(proc, kind) == namespace(own, kind)).collect()
}

fn entries(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root).into_iter().flatten().flatten().take(MAX_ENTRIES);
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn descriptors(proc: &Path) -> io::Result<BTreeMap<Descriptor, u32>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(proc.join("fd"))? {
        let Ok(entry) = entry else { continue };
        let Ok(leads_to) = fs::read_link(entry.path()) else { continue };
        // The link's own mode says how the file is open (proc(5)).
        let writable = entry.path().symlink_metadata().is_ok_and(|link| link.mode() & 0o200 != 0);
        let what = kind(&leads_to.to_string_lossy());
        *found.entry(Descriptor { what, writable }).or_default() += 1;
    }
    Ok(found)
}

/// What a link in `/proc/PID/fd` says: `socket:[77]` is a socket, `anon_inode:kvm-vcpu:0` a vCPU, others are paths.
fn kind(link: &str) -> String {
    if let Some(anonymous) = link.strip_prefix("anon_inode:") {
        let name = anonymous.trim_start_matches('[').trim_end_matches(']');
        return name.split(':').next().unwrap_or(name).into();
    }
    if let Some(memory) = memory_file(link) {
        return format!("memory {memory}");
    }
    match link.split_once(":[") {
        Some((kind, _)) if !link.starts_with('/') => kind.into(),
        _ => link.into(),
    }
}

/// The name of a memory file, from its path in `/proc`.
fn memory_file(path: &str) -> Option<&str> {
    let name = path.strip_prefix("/memfd:")?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name))
}

/// Memory files that are mapped so that others see what is written there (`/proc/PID/maps`).
fn shared_memory(maps: &str) -> Vec<SharedMemory> {
    let mut found: Vec<SharedMemory> = Vec::new();
    for line in maps.lines().take(MAX_MAPS) {
        let mut fields = line.splitn(6, ' ');
        let (Some(range), Some(mode)) = (fields.next(), fields.next()) else { continue };
        let Some(what) = fields.nth(3).map(str::trim).and_then(memory_file) else { continue };
        let address = |text| u64::from_str_radix(text, 16).ok();
        let bounds = range.split_once('-').and_then(|(from, to)| address(to)?.checked_sub(address(from)?));
        let (Some(bytes), true) = (bounds, mode.ends_with('s')) else { continue };
        let writable = mode.contains('w');
        match found.iter_mut().find(|known| known.what == what && known.writable == writable) {
            Some(known) => known.bytes += bytes,
            None => found.push(SharedMemory { what: what.into(), bytes, writable }),
        }
    }
    found
}

fn interfaces(dev: &str) -> Vec<String> {
    dev.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().into())).collect()
}

fn longest_file(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max file size"))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_told_by_what_they_are() {
        for (link, what) in [
            ("socket:[4711]", "socket"),
            ("anon_inode:[eventfd]", "eventfd"),
            ("anon_inode:kvm-vcpu:12", "kvm-vcpu"),
            ("anon_inode:[io_uring]", "io_uring"),
            ("/memfd:guest (deleted)", "memory guest"),
            ("/images/a:[b].img", "/images/a:[b].img"),
            ("/dev/net/tun", "/dev/net/tun"),
        ] {
            assert_eq!(kind(link), what);
        }
    }

    #[test]
    fn only_memory_that_others_see_is_told_and_added_up() {
        let maps = "7f00-7f10 rw-s 00000000 00:01 7   /memfd:guest (deleted)\n\
                    7f10-7f30 rw-s 00000010 00:01 7   /memfd:guest (deleted)\n\
                    7f30-7f40 r--s 00000000 00:01 7   /memfd:guest (deleted)\n\
                    7f40-7f50 rw-p 00000000 00:01 7   /memfd:private (deleted)\n\
                    7f50-7f60 r-xp 00000000 08:01 9   /usr/bin/x\n\
                    nonsense\n";
        let guest = |bytes, writable| SharedMemory { what: "guest".into(), bytes, writable };
        assert_eq!(shared_memory(maps), [guest(0x30, true), guest(0x10, false)]);
    }

    #[test]
    fn this_process_reaches_what_it_reaches() {
        let reach = Reach::of(nix::unistd::getpid().as_raw()).unwrap();
        assert_eq!(reach.uid, nix::unistd::geteuid().as_raw());
        assert_eq!(reach.shared_namespaces, NAMESPACES);
        assert!(reach.root.iter().any(|name| name == "proc"));
        assert!(Reach::of(0).is_err());
    }
}
