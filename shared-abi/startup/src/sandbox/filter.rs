//! The seccomp allow-list: a system call that is not on it kills the process.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, apply_filter, apply_filter_all_threads,
};

use super::SandboxError;

/// One line of an allow-list. Lines for the same call add up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allow {
    /// The call, with whatever arguments.
    Call(libc::c_long),
    /// `ioctl` with one of these request numbers.
    Ioctl(&'static [u64]),
    /// The call, with this value in the low 32 bits of the argument with this index (0 is the first).
    Argument(libc::c_long, u8, u32),
    /// The call, with these arguments: of each the index, a mask, and what the bits of the mask have to be.
    Bits(libc::c_long, &'static [(u8, u64, u64)]),
}

/// Bits of `mmap`'s flags that say what is mapped: private or shared, a file or nothing, in pages of which size.
const KIND: u64 = (0xf | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB) as u64;
/// Nothing executable is ever mapped.
const NO_CODE: (u8, u64, u64) = (2, libc::PROT_EXEC as u64, 0);

/// To map memory of nobody else's, in pages of the usual size.
pub const PRIVATE_MEMORY: Allow =
    Allow::Bits(libc::SYS_mmap, &[NO_CODE, (3, KIND, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64)]);

/// To map a file that is shared with another process.
pub const SHARED_MEMORY: Allow = Allow::Bits(libc::SYS_mmap, &[NO_CODE, (3, KIND, libc::MAP_SHARED as u64)]);

/// To ask a socket who is at its other end.
pub const PEER: Allow = Allow::Bits(
    libc::SYS_getsockopt,
    &[(1, 0xffff_ffff, libc::SOL_SOCKET as u64), (2, 0xffff_ffff, libc::SO_PEERCRED as u64)],
);

/// To let an allocation grow where it is, or move it: to nowhere in particular.
pub const GROWING_MEMORY: Allow = Allow::Argument(libc::SYS_mremap, 3, libc::MREMAP_MAYMOVE as u32);

/// What a thread of a sealed process needs to [`narrow`] itself; it is on no list that it narrows itself to.
pub const NARROWING: &[Allow] = &[
    Allow::Argument(libc::SYS_prctl, 0, libc::PR_SET_NO_NEW_PRIVS as u32),
    Allow::Argument(libc::SYS_seccomp, 0, libc::SECCOMP_SET_MODE_FILTER),
];

/// What every process needs that has threads, an allocator and a control socket. No call here opens or makes
/// anything but anonymous memory and the next controller's connection.
pub const COMMON: &[Allow] = &[
    // The control socket and the stream sockets given.
    Allow::Call(libc::SYS_accept4),
    PEER,
    Allow::Call(libc::SYS_recvmsg),
    Allow::Call(libc::SYS_sendmsg),
    Allow::Call(libc::SYS_recvfrom),
    Allow::Call(libc::SYS_sendto),
    // Descriptors given, and standard error.
    Allow::Call(libc::SYS_read),
    Allow::Call(libc::SYS_write),
    Allow::Call(libc::SYS_readv),
    Allow::Call(libc::SYS_writev),
    Allow::Call(libc::SYS_close),
    // Builds of the standard library with debug assertions look at a descriptor before they close it.
    Allow::Argument(libc::SYS_fcntl, 1, libc::F_GETFD as u32),
    Allow::Call(libc::SYS_poll),
    Allow::Call(libc::SYS_ppoll),
    // The allocator, and the stack of a thread that ends.
    Allow::Call(libc::SYS_brk),
    Allow::Argument(libc::SYS_madvise, 2, libc::MADV_DONTNEED as u32),
    GROWING_MEMORY,
    Allow::Call(libc::SYS_munmap),
    PRIVATE_MEMORY,
    Allow::Bits(libc::SYS_mprotect, &[NO_CODE]),
    // Threads and locks.
    Allow::Call(libc::SYS_futex),
    Allow::Call(libc::SYS_gettid),
    Allow::Call(libc::SYS_getpid),
    Allow::Call(libc::SYS_sched_yield),
    Allow::Call(libc::SYS_rt_sigprocmask),
    Allow::Call(libc::SYS_rt_sigreturn),
    Allow::Call(libc::SYS_sigaltstack),
    Allow::Call(libc::SYS_restart_syscall),
    Allow::Call(libc::SYS_exit),
    Allow::Call(libc::SYS_exit_group),
    // Where the vDSO cannot tell the time, and for random hash seeds.
    Allow::Call(libc::SYS_clock_gettime),
    Allow::Call(libc::SYS_clock_nanosleep),
    Allow::Call(libc::SYS_getrandom),
];

/// Allows the calls listed on all threads of the process, for ever; any other kills the process.
///
/// A signal to a thread of this process is always allowed: an `abort` is then seen as one.
///
/// # Errors
/// [`SandboxError::Filter`].
pub fn seal(list: &[Allow]) -> Result<(), SandboxError> {
    let own_threads = Allow::Argument(libc::SYS_tgkill, 0, std::process::id());
    apply_filter_all_threads(&program(&[list, &[own_threads]].concat())?)
        .map_err(|error| SandboxError::Filter(error.to_string()))
}

/// Allows the calling thread the calls listed and no others, for ever, of those that its process may make; any other
/// kills the process. The process is sealed with [`NARROWING`] on its list.
///
/// # Errors
/// [`SandboxError::Filter`]; the thread must not go on.
pub fn narrow(list: &[Allow]) -> Result<(), SandboxError> {
    apply_filter(&program(list)?).map_err(|error| SandboxError::Filter(error.to_string()))
}

fn program(list: &[Allow]) -> Result<BpfProgram, SandboxError> {
    let refused = |error: seccompiler::BackendError| SandboxError::Filter(error.to_string());
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut unconditional = Vec::new();
    for line in list {
        match *line {
            Allow::Call(call) => unconditional.push(call),
            Allow::Ioctl(requests) => {
                for &request in requests {
                    // The kernel reads 32 bits of an ioctl's request number.
                    let rule =
                        rule(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, request).map_err(refused)?;
                    rules.entry(libc::SYS_ioctl).or_default().push(rule);
                }
            }
            Allow::Argument(call, index, value) => {
                let rule =
                    rule(index, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value.into()).map_err(refused)?;
                rules.entry(call).or_default().push(rule);
            }
            Allow::Bits(call, arguments) => {
                let condition = |&(index, mask, value): &(u8, u64, u64)| {
                    SeccompCondition::new(index, SeccompCmpArgLen::Qword, SeccompCmpOp::MaskedEq(mask), value)
                };
                let conditions = arguments.iter().map(condition).collect::<Result<Vec<_>, _>>();
                let rule = conditions.and_then(SeccompRule::new).map_err(refused)?;
                rules.entry(call).or_default().push(rule);
            }
        }
    }
    // A call without rules is allowed whatever its arguments.
    rules.extend(unconditional.into_iter().map(|call| (call, Vec::new())));
    SeccompFilter::new(rules, SeccompAction::KillProcess, SeccompAction::Allow, TargetArch::x86_64)
        .and_then(TryInto::try_into)
        .map_err(refused)
}

fn rule(
    index: u8,
    length: SeccompCmpArgLen,
    operator: SeccompCmpOp,
    value: u64,
) -> Result<SeccompRule, seccompiler::BackendError> {
    SeccompRule::new(vec![SeccompCondition::new(index, length, operator, value)?])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_common_list_has_no_call_that_opens_connects_or_starts_anything() {
        let forbidden = [
            libc::SYS_open,
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_fork,
            libc::SYS_vfork,
            libc::SYS_clone,
            libc::SYS_clone3,
            libc::SYS_ptrace,
            libc::SYS_kill,
            libc::SYS_io_uring_setup,
            libc::SYS_memfd_create,
            libc::SYS_ioctl,
        ];
        assert!(COMMON.iter().all(|line| !matches!(line, Allow::Call(call) if forbidden.contains(call))));
        assert!(program(COMMON).is_ok());
    }
}
