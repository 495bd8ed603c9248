//! The system calls of a sealed runner: the common list, and these.

use domus_startup::sandbox::Allow;

/// `ioctl` request numbers, as linux/kvm.h makes them: direction, size, `KVMIO` (0xae), number.
const fn kvm(direction: u64, size: usize, number: u64) -> u64 {
    direction << 30 | (size as u64) << 16 | 0xae << 8 | number
}
const NONE: u64 = 0;
const WRITE: u64 = 1;
const READ: u64 = 2;

/// What is asked of KVM.
const KVM: &[u64] = &[
    // KVM_RUN.
    kvm(NONE, 0, 0x80),
    // KVM_SET_REGS, KVM_GET_SREGS, KVM_SET_SREGS: once, when the kernel's entry point is known.
    kvm(WRITE, size_of::<kvm_bindings::kvm_regs>(), 0x82),
    kvm(READ, size_of::<kvm_bindings::kvm_sregs>(), 0x83),
    kvm(WRITE, size_of::<kvm_bindings::kvm_sregs>(), 0x84),
    // KVM_GET_REGS, KVM_GET_MSRS: for a core.
    kvm(READ, size_of::<kvm_bindings::kvm_regs>(), 0x81),
    kvm(READ | WRITE, size_of::<kvm_bindings::kvm_msrs>(), 0x88),
    // KVM_KVMCLOCK_CTRL: after a pause.
    kvm(NONE, 0, 0xad),
    // KVM_NMI: an operator's.
    kvm(NONE, 0, 0x9a),
    // KVM_IRQ_LINE: buttons.
    kvm(WRITE, size_of::<kvm_bindings::kvm_irq_level>(), 0x61),
    // KVM_SET_GSI_ROUTING, KVM_IRQFD: the guest programs MSI-X vectors.
    kvm(WRITE, size_of::<kvm_bindings::kvm_irq_routing>(), 0x6a),
    kvm(WRITE, size_of::<kvm_bindings::kvm_irqfd>(), 0x76),
    // KVM_IOEVENTFD: the guest moves BARs.
    kvm(WRITE, size_of::<kvm_bindings::kvm_ioeventfd>(), 0x79),
];

/// The runner's own system calls. A pause brings vCPUs back with a signal to their thread, which every sealed process
/// may send.
pub const RULES: &[Allow] = &[
    Allow::Ioctl(KVM),
    // The kernel image and the initrd.
    Allow::Call(libc::SYS_pread64),
    // A core is written with holes where the guest's memory has them.
    Allow::Call(libc::SYS_lseek),
];
