//! The parts of `kvm_run` that kvm-ioctls does not decode.
#![expect(unsafe_code, reason = "kvm_run is a union that the kernel fills in")]

use kvm_bindings::{
    KVM_EXIT_INTERNAL_ERROR, KVM_EXIT_IO, KVM_EXIT_IO_IN, KVM_EXIT_NOTIFY, KVM_EXIT_X86_BUS_LOCK,
    KVM_NOTIFY_CONTEXT_INVALID, KVM_RUN_X86_BUS_LOCK, kvm_run,
};

/// A port access: one instruction, which may be a string of equal accesses (`rep outsb`).
pub struct PortAccess<'a> {
    /// The port.
    pub port: u16,
    /// True if the guest reads.
    pub read: bool,
    /// Bytes of each access: 1, 2 or 4.
    pub size: usize,
    /// The accesses, one after another.
    pub data: &'a mut [u8],
}

impl<'a> PortAccess<'a> {
    /// Decodes the page after `KVM_RUN` returned; none if that was for another reason.
    ///
    /// `run` must be the start of a vCPU's `kvm_run` mapping, as `VcpuFd::get_kvm_run` returns it.
    pub fn decode(run: &'a mut kvm_run) -> Option<Self> {
        if run.exit_reason != KVM_EXIT_IO {
            return None;
        }
        // SAFETY: the exit reason, which the kernel wrote, says that this is the union's field; it is plain integers.
        let io = unsafe { run.__bindgen_anon_1.io };
        let page = std::ptr::from_mut(run).cast::<u8>();
        // SAFETY: the kernel chose data_offset within the mapping whose start `run` is (KVM_GET_VCPU_MMAP_SIZE bytes).
        let start = unsafe { page.add(io.data_offset as usize) };
        let length = usize::from(io.size) * io.count as usize;
        // SAFETY: the kernel keeps size * count bytes at data_offset within the mapping, which lives as long as `run`
        // is borrowed and which nothing else refers to meanwhile: the page is beyond the struct itself.
        let data = unsafe { std::slice::from_raw_parts_mut(start, length) };
        let read = u32::from(io.direction) == KVM_EXIT_IO_IN;
        Some(Self { port: io.port, read, size: usize::from(io.size).max(1), data })
    }
}

/// What KVM says of an internal error: its number (`KVM_INTERNAL_ERROR_*`).
pub fn internal_error(run: &kvm_run) -> Option<u32> {
    if run.exit_reason != KVM_EXIT_INTERNAL_ERROR {
        return None;
    }
    // SAFETY: the exit reason, which the kernel wrote, says that this is the union's field; it is a plain integer.
    Some(unsafe { run.__bindgen_anon_1.internal.suberror })
}

/// The guest has locked the bus: this exit is for that, or for something else besides.
pub fn locked_the_bus(run: &kvm_run) -> bool {
    run.exit_reason == KVM_EXIT_X86_BUS_LOCK || u32::from(run.flags) & KVM_RUN_X86_BUS_LOCK != 0
}

/// The vCPU held its core without a chance for an interrupt; true if its state has been lost by that. None if the exit
/// is for another reason.
pub fn was_stuck(run: &kvm_run) -> Option<bool> {
    if run.exit_reason != KVM_EXIT_NOTIFY {
        return None;
    }
    // SAFETY: the exit reason, which the kernel wrote, says that this is the union's field; it is a plain integer.
    let flags = unsafe { run.__bindgen_anon_1.notify.flags };
    Some(flags & KVM_NOTIFY_CONTEXT_INVALID != 0)
}
