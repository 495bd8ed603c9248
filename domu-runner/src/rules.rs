//! The system calls of a sealed runner, thread by thread.
//!
//! The process is sealed with the calls of all of its threads ([`process`]). Then each thread narrows itself to its
//! own, before it looks at anything of the guest's or a backend's: [`Gate`].
//!
//! | threads | calls |
//! |---|---|
//! | `vcpuN` | [`VCPU`]: `KVM_RUN`, eventfds, routes of interrupts, locks, memory |
//! | `dev ID` | [`DEVICE`]: one backend's socket |
//! | `backend-watch` | [`WATCH`]: waits for all of them, and hangs up |
//! | `serial`, `end` | [`SERIAL`], [`END`]: COM1; the machine's last words |
//! | the first | [`CONTROL`]: dom0, a core, new backends |

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use domus_startup::lock;
use domus_startup::sandbox::{self, Allow, COMMON, GROWING_MEMORY, PEER, PRIVATE_MEMORY};

/// `ioctl` request numbers, as linux/kvm.h makes them: direction, size, `KVMIO` (0xae), number.
const fn kvm(direction: u64, size: usize, number: u64) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xae << 8 | number
}
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// `KVM_IRQ_LINE`: buttons, and what the guest reads of them.
const IRQ_LINE: u64 = kvm(WRITE, size_of::<kvm_bindings::kvm_irq_level>(), 0x61);

/// What a vCPU's thread asks of KVM.
const RUNNING: &[u64] = &[
    // KVM_RUN.
    kvm(NONE, 0, 0x80),
    // KVM_GET_REGS, KVM_GET_SREGS, KVM_GET_MSRS: for a core.
    kvm(READ, size_of::<kvm_bindings::kvm_regs>(), 0x81),
    kvm(READ, size_of::<kvm_bindings::kvm_sregs>(), 0x83),
    kvm(READ | WRITE, size_of::<kvm_bindings::kvm_msrs>(), 0x88),
    // KVM_KVMCLOCK_CTRL: after a pause.
    kvm(NONE, 0, 0xad),
    // KVM_NMI: an operator's.
    kvm(NONE, 0, 0x9a),
    IRQ_LINE,
    // KVM_SET_GSI_ROUTING, KVM_IRQFD: the guest programs MSI-X vectors.
    kvm(WRITE, size_of::<kvm_bindings::kvm_irq_routing>(), 0x6a),
    kvm(WRITE, size_of::<kvm_bindings::kvm_irqfd>(), 0x76),
    // KVM_IOEVENTFD: the guest moves BARs.
    kvm(WRITE, size_of::<kvm_bindings::kvm_ioeventfd>(), 0x79),
];

/// What is asked of KVM once, when the kernel's entry point is known: KVM_GET_SREGS, KVM_SET_SREGS, KVM_SET_REGS.
const ENTRY: &[u64] = &[
    kvm(READ, size_of::<kvm_bindings::kvm_sregs>(), 0x83),
    kvm(WRITE, size_of::<kvm_bindings::kvm_sregs>(), 0x84),
    kvm(WRITE, size_of::<kvm_bindings::kvm_regs>(), 0x82),
];

/// What a kernel unpacks to is sealed when it is there.
const SEALING: Allow = Allow::Argument(libc::SYS_fcntl, 1, libc::F_ADD_SEALS as u32);

/// A vCPU's thread. A panic says its line, and then ends the process by `SIGSYS`.
pub const VCPU: &[Allow] = &[
    Allow::Ioctl(RUNNING),
    // Eventfds, and standard error.
    Allow::Call(libc::SYS_read),
    Allow::Call(libc::SYS_write),
    // Locks, and the signal that ends KVM_RUN.
    Allow::Call(libc::SYS_futex),
    Allow::Call(libc::SYS_sched_yield),
    Allow::Call(libc::SYS_rt_sigreturn),
    Allow::Call(libc::SYS_restart_syscall),
    Allow::Call(libc::SYS_clock_gettime),
    // The allocator.
    Allow::Call(libc::SYS_brk),
    PRIVATE_MEMORY,
    GROWING_MEMORY,
    Allow::Call(libc::SYS_munmap),
];

/// What a thread without KVM needs.
const PLAIN: &[Allow] = VCPU.split_first().expect("there is a first line").1;

/// The thread of a device: exchanges with its backend, and what it writes to wake the watcher.
pub const DEVICE: &[&[Allow]] = &[
    PLAIN,
    &[
        Allow::Call(libc::SYS_sendmsg),
        Allow::Call(libc::SYS_recvmsg),
        Allow::Call(libc::SYS_recvfrom),
        Allow::Call(libc::SYS_shutdown),
    ],
    CLOSING,
];

/// The thread that watches the backends' sockets, and tells dom0 of one that is lost.
pub const WATCH: &[&[Allow]] = &[
    PLAIN,
    &[Allow::Call(libc::SYS_poll), Allow::Call(libc::SYS_shutdown), Allow::Call(libc::SYS_sendmsg)],
    CLOSING,
];

/// COM1.
pub const SERIAL: &[&[Allow]] = &[
    PLAIN,
    &[Allow::Call(libc::SYS_poll), Allow::Call(libc::SYS_recvfrom), Allow::Call(libc::SYS_sendto)],
    CLOSING,
];

/// The thread that ends a machine: it signals the vCPUs' threads, sends what is left on COM1, and tells dom0.
pub const END: &[&[Allow]] = &[
    PLAIN,
    &[
        Allow::Call(libc::SYS_poll),
        Allow::Call(libc::SYS_sendto),
        Allow::Call(libc::SYS_sendmsg),
        Allow::Call(libc::SYS_rt_sigprocmask),
        Allow::Call(libc::SYS_getpid),
        SIGNALS,
    ],
    CLOSING,
];

/// Signals to threads of this process: the filter of the process allows no others.
const SIGNALS: Allow = Allow::Call(libc::SYS_tgkill);

/// A descriptor is closed; with debug assertions the standard library looks at it before.
const CLOSING: &[Allow] =
    &[Allow::Call(libc::SYS_close), Allow::Argument(libc::SYS_fcntl, 1, libc::F_GETFD as u32)];

/// The first thread, when the kernel is loaded.
pub const CONTROL: &[&[Allow]] = &[
    PLAIN,
    CLOSING,
    &[
        // dom0, and the next one.
        Allow::Call(libc::SYS_accept4),
        PEER,
        Allow::Call(libc::SYS_sendmsg),
        Allow::Call(libc::SYS_recvmsg),
        Allow::Call(libc::SYS_recvfrom),
        Allow::Call(libc::SYS_clock_nanosleep),
        // vCPUs are paused; the process aborts, or exits.
        SIGNALS,
        Allow::Call(libc::SYS_rt_sigprocmask),
        Allow::Call(libc::SYS_getpid),
        Allow::Call(libc::SYS_gettid),
        Allow::Call(libc::SYS_exit_group),
        Allow::Ioctl(&[IRQ_LINE]),
        // A core is written with holes where the guest's memory has them, whose file is read for it.
        Allow::Call(libc::SYS_lseek),
        Allow::Call(libc::SYS_pread64),
        // A backend's connection is ended, and a new one's socket duplicated for the watcher.
        Allow::Call(libc::SYS_shutdown),
        Allow::Argument(libc::SYS_fcntl, 1, libc::F_DUPFD_CLOEXEC as u32),
    ],
];

/// What all threads may do together, and what one needs to narrow itself and to load the kernel.
pub fn process() -> Vec<Allow> {
    let once = [Allow::Ioctl(ENTRY), SEALING];
    let mut threads = [DEVICE, WATCH, SERIAL, END, CONTROL].concat().concat();
    // Sealing allows those that are meant.
    threads.retain(|line| *line != SIGNALS);
    // What threads do that load a kernel and are not narrow yet is in the common list.
    [COMMON, VCPU, &once, sandbox::NARROWING, &threads].concat()
}

/// Holds threads back until the process is sealed, and lets each through with its own calls. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Gate {
    state: Arc<(Mutex<State>, Condvar)>,
    /// None in tests of parts, whose process is not sealed.
    narrows: bool,
}

#[derive(Debug, Default)]
struct State {
    expected: usize,
    passed: usize,
    open: bool,
}

/// A thread's way through a [`Gate`].
#[derive(Debug)]
pub struct Ticket {
    gate: Gate,
    calls: Vec<Allow>,
}

impl Gate {
    /// One that is closed.
    pub fn closed() -> Self {
        Self { state: Arc::default(), narrows: true }
    }

    /// One that is open and takes nothing away, for tests of a thread's work.
    pub fn none() -> Self {
        Self {
            state: Arc::new((Mutex::new(State { open: true, ..State::default() }), Condvar::new())),
            narrows: false,
        }
    }

    /// For a thread that may do these calls when it is through.
    pub fn ticket(&self, calls: &[&[Allow]]) -> Ticket {
        lock(&self.state.0).expected += 1;
        Ticket { gate: self.clone(), calls: calls.concat() }
    }

    /// Lets all threads through that have a ticket; returns when they are. The process is sealed.
    pub fn open(&self) {
        let (state, changed) = &*self.state;
        let mut state = lock(state);
        state.open = true;
        changed.notify_all();
        while state.passed < state.expected {
            state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Ticket {
    /// Does `work` behind the gate, with the thread's own calls, and stays: the end of a thread takes more calls.
    pub fn run(self, work: impl FnOnce()) {
        self.pass();
        work();
        loop {
            std::thread::park();
        }
    }

    /// Waits until the gate is open, and leaves the thread its own calls. Ends the process if that cannot be done.
    fn pass(self) {
        let Self { gate, calls } = self;
        let (state, changed) = &*gate.state;
        let mut held = lock(state);
        while !held.open {
            held = changed.wait(held).unwrap_or_else(PoisonError::into_inner);
        }
        drop(held);
        if let Some(error) = gate.narrows.then(|| sandbox::narrow(&calls)).and_then(Result::err) {
            domus_startup::say(format_args!("domu-runner: a thread: {error}"));
            std::process::abort();
        }
        drop(calls);
        lock(state).passed += 1;
        changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The different calls of a list.
    fn calls(list: &[Allow]) -> BTreeSet<libc::c_long> {
        let call = |line: &Allow| match *line {
            Allow::Call(call) | Allow::Bits(call, _) | Allow::Argument(call, ..) => call,
            Allow::Ioctl(_) => libc::SYS_ioctl,
        };
        list.iter().map(call).collect()
    }

    #[test]
    fn a_vcpu_has_twelve_calls_and_no_thread_but_the_first_takes_connections() {
        assert_eq!(calls(VCPU).len(), 12);
        for list in [DEVICE, WATCH, SERIAL, END] {
            let calls = calls(&list.concat());
            assert!(calls.len() <= 19, "{}", calls.len());
            for call in [libc::SYS_ioctl, libc::SYS_accept4, libc::SYS_seccomp, libc::SYS_prctl] {
                assert!(!calls.contains(&call), "{call}");
            }
        }
        let control = calls(&CONTROL.concat());
        assert!(!control.contains(&libc::SYS_seccomp) && !control.contains(&libc::SYS_prctl));
        let all = calls(&process());
        assert!(all.contains(&libc::SYS_seccomp) && all.is_superset(&calls(VCPU)));
        assert!(!all.contains(&libc::SYS_tgkill), "to any process");
    }

    #[test]
    fn no_thread_can_set_a_vcpus_registers_or_seal_a_file_once_the_kernel_is_loaded() {
        let lists = [DEVICE, WATCH, SERIAL, END, CONTROL].concat().concat();
        let lists = [VCPU, &lists].concat();
        let requests = lists.iter().filter_map(|line| match line {
            Allow::Ioctl(requests) => Some(*requests),
            _ => None,
        });
        let requests: BTreeSet<_> = requests.flatten().collect();
        assert!(ENTRY[1..].iter().all(|set| !requests.contains(set)));
        assert!(!lists.contains(&SEALING));
    }
}
