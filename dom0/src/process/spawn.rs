//! Starts one program as a process with a pidfd, in a pid namespace and a session of its own.
//!
//! `clone3` and not `std::process::Command`: it gives the pidfd, the pid namespace and the cgroup in one step, from
//! the calling thread, so that the new process is a child of dom0's main thread and of nothing that ends earlier.
//! Between `clone3` and `execve` only system calls are made: dom0 may have other threads.

#![expect(unsafe_code, reason = "clone3 and what a child does before execve have no safe interface")]

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;

use nix::unistd::Pid;

/// How a program is started.
#[derive(Debug, Clone, Copy, Default)]
pub struct Surroundings<'a> {
    /// The cgroup (v2) the process is born in.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// The process gets SIGKILL when the thread that started it ends; its sandbox keeps that.
    pub dies_with_parent: bool,
    /// It is the first process of a pid namespace, where the caller may make one. `/proc` is not that namespace's.
    pub alone: bool,
    /// It has this as standard input, in place of `/dev/null`.
    pub gives: Option<BorrowedFd<'a>>,
    /// It becomes somebody else before it is executed, and can become nobody else after that.
    pub becomes: Option<Becomes>,
}

/// Whom a program runs as.
#[derive(Debug, Clone, Copy)]
pub struct Becomes {
    /// User and group; no other groups.
    pub uid: u32,
    /// The capabilities that it keeps, as bits.
    pub capabilities: u64,
}

/// Starts `program` with `args` after its own path, an empty environment, `/dev/null` as standard input, `says` as
/// standard output and error, and no other descriptor.
///
/// # Errors
/// What `open`, `clone3` said. A program that cannot be executed exits with status 127.
pub fn spawn(
    program: &Path,
    args: &[&[u8]],
    says: BorrowedFd<'_>,
    around: Surroundings<'_>,
) -> io::Result<(Pid, OwnedFd)> {
    let text = |bytes: &[u8]| CString::new(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
    let path = text(program.as_os_str().as_bytes())?;
    let mut argv = vec![path.clone()];
    for arg in args {
        argv.push(text(arg)?);
    }
    let argv: Vec<*const libc::c_char> = argv.iter().map(|a| a.as_ptr()).chain([ptr::null()]).collect();
    let null = std::fs::File::options().read(true).open("/dev/null")?;
    let child = Child {
        path: &path,
        argv: &argv,
        input: around.gives.map_or(null.as_raw_fd(), |fd| fd.as_raw_fd()),
        says: says.as_raw_fd(),
        parent: if around.dies_with_parent { nix::unistd::getpid().as_raw() } else { 0 },
        becomes: around.becomes,
    };
    if !around.alone {
        return clone(&child, 0, around.cgroup);
    }
    match clone(&child, libc::CLONE_NEWPID, around.cgroup) {
        // Without CAP_SYS_ADMIN there is no pid namespace; the sandbox still hides every other process.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => clone(&child, 0, around.cgroup),
        other => other,
    }
}

/// What the new process needs. All made before `clone3`: nothing is allocated after it.
struct Child<'a> {
    path: &'a CStr,
    argv: &'a [*const libc::c_char],
    input: RawFd,
    says: RawFd,
    /// Its parent's pid if it is to die with it, or 0.
    parent: libc::pid_t,
    becomes: Option<Becomes>,
}

/// `struct __user_cap_header_struct` and `struct __user_cap_data_struct` of capset(2), version 3.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// More than any kernel has.
const CAPABILITIES: u32 = 64;

fn clone(
    child: &Child<'_>,
    namespaces: libc::c_int,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(Pid, OwnedFd)> {
    let mut pidfd: RawFd = -1;
    // Not libc's constant, which does not fit its own type.
    const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
    let mut flags = libc::CLONE_PIDFD as u64 | namespaces as u64;
    if cgroup.is_some() {
        flags |= CLONE_INTO_CGROUP;
    }
    let args = libc::clone_args {
        flags,
        pidfd: ptr::from_mut(&mut pidfd) as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let size = size_of::<libc::clone_args>();
    // SAFETY: `args` is a valid clone_args of the size given and `pidfd` outlives the call. Without CLONE_VM and with
    // stack 0 the child has its own copy of this address space and goes on here, as after fork.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, ptr::from_ref(&args), size) };
    match pid {
        0 => child.run(namespaces & libc::CLONE_NEWPID != 0),
        -1 => Err(io::Error::last_os_error()),
        pid => {
            // SAFETY: clone3 has just put a new descriptor there (CLONE_PIDFD); nobody else knows its number.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok((Pid::from_raw(pid as libc::pid_t), pidfd))
        }
    }
}

impl Child<'_> {
    /// The new process, up to its execve. Makes system calls only; failures of the first steps are not fatal.
    fn run(&self, first_in_namespace: bool) -> ! {
        let environment: [*const libc::c_char; 1] = [ptr::null()];
        let no_signals = 0_u64;
        // SAFETY: sets this process's own signal mask from eight readable bytes, the kernel's sigset size on x86-64.
        unsafe {
            libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, ptr::from_ref(&no_signals), 0, 8_usize)
        };
        // SAFETY: takes no pointer. A session of its own: the terminal's signals are dom0's, not the guest's.
        unsafe { libc::syscall(libc::SYS_setsid) };
        if self.parent != 0 {
            // SAFETY: takes no pointer.
            unsafe { libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0) };
            // SAFETY: takes no pointer.
            let parent = unsafe { libc::syscall(libc::SYS_getppid) } as libc::pid_t;
            // From within a pid namespace an outer parent's pid reads as 0 while it lives, and 0 after that too.
            if !first_in_namespace && parent != self.parent {
                exit();
            }
        }
        be_as_expendable_as_any();
        for (from, to) in [(self.input, 0), (self.says, 1), (self.says, 2)] {
            if from == to {
                // SAFETY: takes no pointer. What is in its place already must stay open.
                unsafe { libc::syscall(libc::SYS_fcntl, from, libc::F_SETFD, 0) };
                continue;
            }
            // SAFETY: takes no pointer; both ends are this process's own descriptors.
            unsafe { libc::syscall(libc::SYS_dup2, from, to) };
        }
        // SAFETY: takes no pointer; marks what this process inherited, to be closed by the execve below.
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) };
        if let Some(becomes) = self.becomes
            && !becomes.become_it()
        {
            exit();
        }
        // SAFETY: path is a C string, both arrays end in a null pointer and hold C strings that the parent's copy of
        // this memory keeps alive.
        unsafe {
            libc::syscall(libc::SYS_execve, self.path.as_ptr(), self.argv.as_ptr(), environment.as_ptr())
        };
        exit()
    }
}

/// dom0 is the last that the kernel kills when there is no memory left; its children have no right to that. Makes
/// system calls only; where it fails the process stays as it is.
fn be_as_expendable_as_any() {
    // SAFETY: the path is a C string that lives for ever.
    let file = unsafe {
        libc::syscall(libc::SYS_openat, libc::AT_FDCWD, c"/proc/self/oom_score_adj".as_ptr(), libc::O_RDWR)
    };
    if file < 0 {
        return;
    }
    let mut sign = 0_u8;
    // SAFETY: reads at most one byte into the one that lives here.
    let read = unsafe { libc::syscall(libc::SYS_read, file, ptr::from_mut(&mut sign), 1_usize) };
    if read == 1 && sign == b'-' {
        // SAFETY: writes one byte of a text that lives for ever.
        unsafe { libc::syscall(libc::SYS_write, file, c"0".as_ptr(), 1_usize) };
    }
    // SAFETY: takes no pointer; the descriptor is this function's own.
    unsafe { libc::syscall(libc::SYS_close, file) };
}

impl Becomes {
    /// Becomes it. Makes system calls only; false if one has failed.
    fn become_it(&self) -> bool {
        let prctl = |option: libc::c_int, a: u64, b: u64| {
            // SAFETY: none of the options used here takes a pointer.
            unsafe { libc::syscall(libc::SYS_prctl, option, a, b, 0, 0) == 0 }
        };
        let keeps = |capability: u32| self.capabilities & 1 << capability != 0;
        for capability in (0..CAPABILITIES).filter(|capability| !keeps(*capability)) {
            // One that this kernel does not have cannot be dropped.
            prctl(libc::PR_CAPBSET_DROP, capability.into(), 0);
        }
        let groups: *const libc::gid_t = ptr::null();
        let uid = self.uid;
        // SAFETY: no groups are read.
        let no_groups = unsafe { libc::syscall(libc::SYS_setgroups, 0_usize, groups) == 0 };
        // SAFETY: takes no pointer.
        let group = || unsafe { libc::syscall(libc::SYS_setresgid, uid, uid, uid) == 0 };
        // SAFETY: takes no pointer.
        let user = || unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) == 0 };
        let became = prctl(libc::PR_SET_KEEPCAPS, 1, 0) && no_groups && group() && user();
        let header = CapabilityHeader { version: 0x2008_0522, pid: 0 };
        let data = [self.capabilities as u32, (self.capabilities >> 32) as u32].map(|bits| CapabilityData {
            effective: bits,
            permitted: bits,
            inheritable: bits,
        });
        // SAFETY: the header says version 3, for which the kernel reads two data; all of them live here.
        let set = unsafe { libc::syscall(libc::SYS_capset, ptr::from_ref(&header), data.as_ptr()) == 0 };
        let mut raised = (0..CAPABILITIES).filter(|capability| keeps(*capability)).map(|capability| {
            prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability.into())
        });
        became && set && raised.all(|raised| raised) && prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0)
    }
}

/// Ends the new process without running anything of its parent's.
fn exit() -> ! {
    loop {
        // SAFETY: takes no pointer and does not return.
        unsafe { libc::syscall(libc::SYS_exit_group, 127) };
    }
}

/// Reads an extended attribute into `value` and returns its length.
///
/// # Errors
/// What `getxattr(2)` said: there is none, or it is longer than `value`.
pub fn extended_attribute(path: &Path, name: &str, value: &mut [u8]) -> io::Result<usize> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let name = CString::new(name)?;
    // SAFETY: both strings end in NUL and outlive the call; the kernel writes at most value.len() bytes to value.
    let length =
        unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), value.as_mut_ptr().cast(), value.len()) };
    usize::try_from(length).map_err(|_| io::Error::last_os_error())
}
