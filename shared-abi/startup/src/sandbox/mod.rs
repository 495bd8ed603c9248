//! The empty room: what a process keeps after it has received its descriptors.
//!
//! [`enter`] takes away identity, paths and network; [`seal`] takes away system calls. After both, a
//! guest that takes the process over holds the descriptors it was given and the calls of the list, no more.
//!
//! | taken away | by |
//! |---|---|
//! | the file system | own mount namespace whose root is an empty, read-only tmpfs |
//! | the same again, TCP, others' processes | Landlock, where the kernel has it |
//! | the network | own network namespace without an interface |
//! | System V IPC, host name, cgroup paths | own namespaces |
//! | the user | the domain's own uid and gid, no supplementary group |
//! | privilege | no capability in any set, an empty bounding set, `no_new_privs` |
//! | core dumps, many descriptors, files that grow ([`limit_files`]) | resource limits |
//! | all other system calls | a seccomp filter that kills the process |
//!
//! Without root the same is done inside a user namespace in which the caller's own id is the only one.

mod caps;
mod file_size;
mod filter;
mod landlock;

use std::io;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::{get_pdeathsig, set_dumpable, set_no_new_privs, set_pdeathsig};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{Gid, Uid, chdir, getegid, geteuid, pivot_root, setgroups, setresgid, setresuid};

pub use file_size::{limit_files, limit_files_for_now};
pub use filter::{
    Allow, COMMON, GROWING_MEMORY, NARROWING, PEER, PRIVATE_MEMORY, SHARED_MEMORY, narrow, seal,
};
pub use landlock::version as landlock_version;

/// Most descriptors a sealed process may have open: what it was given, and what its peers send it.
const MAX_OPEN: u64 = 1024;

/// Why the sandbox could not be closed. The process must not go on.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// A step of [`enter`] failed.
    #[error("sandbox: cannot {act}")]
    Step {
        /// What was attempted.
        act: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// Its starter may open fewer files than it needs.
    #[error(
        "sandbox: it needs {MAX_OPEN} open files, and the hard limit is {hard}: raise that with ulimit -Hn {MAX_OPEN}, a \
         nofile line in /etc/security/limits.conf, or LimitNOFILE= of the service"
    )]
    OpenFiles {
        /// The limit it was started with.
        hard: u64,
    },
    /// The domain's uid is root's.
    #[error("sandbox: uid 0 for a domain is refused")]
    RootUid,
    /// Not root, and asked to become someone else.
    #[error("sandbox: user {own} cannot become user {uid}: start it as root, or with its own uid")]
    NotRoot {
        /// The uid asked for.
        uid: u32,
        /// The uid of this process.
        own: u32,
    },
    /// The filter could not be built or installed.
    #[error("sandbox: cannot install the seccomp filter: {0}")]
    Filter(String),
}

fn step<T>(act: &'static str, result: nix::Result<T>) -> Result<T, SandboxError> {
    result.map_err(|errno| SandboxError::Step { act, source: errno.into() })
}

/// Leaves the host behind: own namespaces, an empty root, the uid and gid `uid`, no capabilities.
///
/// Must be called while the process has one thread, after everything that needs a path is open.
///
/// # Errors
/// [`SandboxError`]; the process is then half-way and must exit.
pub fn enter(uid: u32) -> Result<(), SandboxError> {
    let own = geteuid();
    let dies_with = step("ask for the parent-death signal", get_pdeathsig())?;
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS
        | CloneFlags::CLONE_NEWCGROUP;
    if own.is_root() {
        if uid == 0 {
            return Err(SandboxError::RootUid);
        }
        step("make own namespaces", unshare(namespaces))?;
    } else if own.as_raw() == uid {
        let gid = getegid();
        step("make own user namespace", unshare(CloneFlags::CLONE_NEWUSER | namespaces))?;
        step("map own ids", map_own_ids(own, gid))?;
    } else {
        return Err(SandboxError::NotRoot { uid, own: own.as_raw() });
    }
    empty_root()?;
    limit()?;
    step("empty the capability bounding set", caps::drop_bounding_set())?;
    if own.is_root() {
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(uid));
        step("leave all groups", setgroups(&[]))?;
        step("become the domain's group", setresgid(gid, gid, gid))?;
        step("become the domain's user", setresuid(uid, uid, uid))?;
    }
    step("drop all capabilities", caps::drop_all())?;
    step("set no_new_privs", set_no_new_privs())?;
    step("deny itself every path", landlock::deny_all())?;
    step("forbid tracing and core dumps", set_dumpable(false))?;
    // The kernel forgets it when the ids change: who is to die with its starter still is.
    step("keep dying with the parent", set_pdeathsig(dies_with))
}

/// Writes the one-line id maps of a new user namespace.
fn map_own_ids(uid: Uid, gid: Gid) -> nix::Result<()> {
    let write = |file: &str, text: String| {
        std::fs::write(file, text).map_err(|e| e.raw_os_error().map_or(Errno::EIO, Errno::from_raw))
    };
    write("/proc/self/setgroups", "deny".into())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

/// Makes an empty, read-only tmpfs the root, and lets go of everything else that was mounted.
fn empty_root() -> Result<(), SandboxError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    step("make mounts private", mount(None::<&str>, "/", None::<&str>, private, None::<&str>))?;
    // /tmp exists on every Linux; what is mounted over it is seen by this process alone.
    let options = Some("size=4k,nr_inodes=1,mode=0555");
    step("mount an empty root", mount(Some("none"), "/tmp", Some("tmpfs"), flags, options))?;
    step("go to the empty root", chdir("/tmp"))?;
    step("change to the empty root", pivot_root(".", "."))?;
    step("let go of the old root", umount2(".", MntFlags::MNT_DETACH))?;
    let read_only = flags | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_BIND;
    step("make the empty root read-only", mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>))?;
    step("go to the root", chdir("/"))
}

fn limit() -> Result<(), SandboxError> {
    step("forbid core dumps", setrlimit(Resource::RLIMIT_CORE, 0, 0))?;
    match (setrlimit(Resource::RLIMIT_NOFILE, MAX_OPEN, MAX_OPEN), getrlimit(Resource::RLIMIT_NOFILE)) {
        // Only whoever has CAP_SYS_RESOURCE on the host may go beyond what its starter has.
        (Err(Errno::EPERM), Ok((_, hard))) if hard < MAX_OPEN => Err(SandboxError::OpenFiles { hard }),
        (limited, _) => step("limit open files", limited),
    }
}
