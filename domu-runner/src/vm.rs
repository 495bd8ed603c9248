//! The VM: KVM's objects, made from the `/dev/kvm` descriptor that dom0 passed.
#![expect(
    unsafe_code,
    reason = "the KVM descriptor and guest memory are handed to the kernel by number and address"
)]

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::sync::Arc;

use kvm_bindings::{
    CpuId, KVM_BUS_LOCK_DETECTION_EXIT, KVM_CAP_MAX_VCPU_ID, KVM_CAP_PMU_CAPABILITY,
    KVM_CAP_X86_BUS_LOCK_EXIT, KVM_CAP_X86_NOTIFY_VMEXIT, KVM_MAX_CPUID_ENTRIES, KVM_PMU_CAP_DISABLE,
    KVM_X86_NOTIFY_VMEXIT_ENABLED, KVM_X86_NOTIFY_VMEXIT_USER, Msrs, kvm_enable_cap, kvm_msr_entry,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use shared_abi::cpu::CpuSpec;
use vmm_sys_util::errno;

use crate::cpuid::{self, Cpu, Missing};
use crate::layout::{IDENTITY_MAP, TSS};
use crate::memory::GuestRam;
use crate::msr;

/// The only version of the KVM API there has been since 2007.
const API_VERSION: i32 = 12;

/// What the runner cannot do without. What is missing is named.
const NEEDED: [(Cap, &str); 5] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::IrqRouting, "KVM_CAP_IRQ_ROUTING"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ExtCpuid, "KVM_CAP_EXT_CPUID"),
];

const IA32_MISC_ENABLE: u32 = 0x1a0;
const IA32_MISC_ENABLE_FAST_STRING: u64 = 1;
const IA32_MTRR_DEF_TYPE: u32 = 0x2ff;
const IA32_MTRR_ENABLED_WRITE_BACK: u64 = 1 << 11 | 6;

/// Why a VM could not be made.
#[derive(Debug, thiserror::Error)]
pub enum VmError {
    /// The descriptor is something else.
    #[error("the descriptor given for KVM is no /dev/kvm (API version {0}, not {API_VERSION})")]
    NotKvm(i32),
    /// This host's KVM lacks something.
    #[error("this host's KVM lacks {0}: load kvm_intel or kvm_amd of Linux 5.10 or later")]
    Lacks(&'static str),
    /// More vCPUs than this host's KVM takes.
    #[error("{asked} vCPUs: this host's KVM takes at most {most}")]
    Vcpus {
        /// Asked for.
        asked: u8,
        /// Possible.
        most: usize,
    },
    /// The CPU that was asked for.
    #[error(transparent)]
    Cpu(#[from] Missing),
    /// KVM supports more leaves than it takes.
    #[error("CPUID of {0} entries: KVM takes at most {KVM_MAX_CPUID_ENTRIES}")]
    CpuidTooLong(usize),
    /// A call failed.
    #[error("KVM cannot {act}")]
    Call {
        /// What was attempted.
        act: &'static str,
        /// What KVM said.
        source: errno::Error,
    },
}

fn call<T>(act: &'static str, result: Result<T, errno::Error>) -> Result<T, VmError> {
    result.map_err(|source| VmError::Call { act, source })
}

/// One VM with its memory, its irqchip and its vCPUs, which have never run.
pub struct Vm {
    /// For interrupts and ioeventfds.
    pub fd: Arc<VmFd>,
    /// In the order of their numbers.
    pub vcpus: Vec<VcpuFd>,
}

impl Vm {
    /// Makes a VM of `vcpus` vCPUs of this kind around `ram`, which must outlive it.
    ///
    /// # Errors
    /// [`VmError`].
    pub fn new(kvm: OwnedFd, vcpus: u8, spec: &CpuSpec, ram: &GuestRam) -> Result<Self, VmError> {
        // SAFETY: the descriptor is owned and open, and its ownership moves; that it is KVM's is checked next.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        if kvm.get_api_version() != API_VERSION {
            return Err(VmError::NotKvm(kvm.get_api_version()));
        }
        if let Some((_, name)) = NEEDED.iter().find(|(cap, _)| !kvm.check_extension(*cap)) {
            return Err(VmError::Lacks(name));
        }
        let most = kvm.get_max_vcpus();
        if usize::from(vcpus) > most {
            return Err(VmError::Vcpus { asked: vcpus, most });
        }
        let supported = call("tell its CPUID", kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES))?;
        let cpu = Cpu::new(spec, supported.as_slice(), kvm.check_extension(Cap::TscDeadlineTimer))?;

        let fd = call("make a VM", kvm.create_vm())?;
        limit(&fd, vcpus, spec)?;
        // Pages that Intel hosts without unrestricted guests need. Elsewhere they mean nothing and may be refused.
        let _ = fd.set_identity_map_address(IDENTITY_MAP);
        let _ = fd.set_tss_address(TSS as usize);
        for (slot, region) in (0..).zip(ram.regions()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.gpa,
                memory_size: region.size,
                userspace_addr: region.host,
            };
            // SAFETY: the region is a mapping of guest RAM, which nothing unmaps while the process lives.
            let set = unsafe { fd.set_user_memory_region(region) };
            call("take the guest's memory", set)?;
        }
        call("make an interrupt controller", fd.create_irq_chip())?;

        let vcpu = |id: u8| -> Result<VcpuFd, VmError> {
            let vcpu = call("make a vCPU", fd.create_vcpu(id.into()))?;
            let entries = cpuid::Vcpu { id, count: vcpus }.cpuid(&cpu);
            let cpuid = CpuId::from_entries(&entries).map_err(|_| VmError::CpuidTooLong(entries.len()))?;
            call("set a vCPU's CPUID", vcpu.set_cpuid2(&cpuid))?;
            // As firmware leaves them. A KVM that does not know them has its reasons: then they stay as they are.
            for (index, data) in [
                (IA32_MISC_ENABLE, IA32_MISC_ENABLE_FAST_STRING),
                (IA32_MTRR_DEF_TYPE, IA32_MTRR_ENABLED_WRITE_BACK),
            ] {
                if let Ok(msrs) = Msrs::from_entries(&[kvm_msr_entry { index, data, ..Default::default() }]) {
                    let _ = vcpu.set_msrs(&msrs);
                }
            }
            Ok(vcpu)
        };
        let vcpus = (0..vcpus).map(vcpu).collect::<Result<_, _>>()?;
        Ok(Self { fd: Arc::new(fd), vcpus })
    }
}

/// Takes from a VM without vCPUs what its guest is not to have, and asks to be told what it does to its host. Each as
/// far as this host's KVM can.
fn limit(fd: &VmFd, vcpus: u8, spec: &CpuSpec) -> Result<(), VmError> {
    let has = |cap: u32| u64::try_from(fd.check_extension_raw(cap.into())).unwrap_or(0);
    let enable = |cap, value: u64| {
        let cap = kvm_enable_cap { cap, args: [value, 0, 0, 0], ..Default::default() };
        fd.enable_cap(&cap)
    };
    if fd.check_extension(Cap::X86MsrFilter) {
        call("filter model-specific registers", msr::filter(fd, spec))?;
    }
    let no_pmu = u64::from(KVM_PMU_CAP_DISABLE);
    if !spec.pmu && has(KVM_CAP_PMU_CAPABILITY) & no_pmu != 0 {
        call("take the PMU away", enable(KVM_CAP_PMU_CAPABILITY, no_pmu))?;
    }
    let bus_lock = u64::from(KVM_BUS_LOCK_DETECTION_EXIT);
    if has(KVM_CAP_X86_BUS_LOCK_EXIT) & bus_lock != 0 {
        call("watch for bus locks", enable(KVM_CAP_X86_BUS_LOCK_EXIT, bus_lock))?;
    }
    if has(KVM_CAP_X86_NOTIFY_VMEXIT) != 0 {
        // In the upper half, the cycles that a vCPU may hold its core without a chance for an interrupt: 0 beyond
        // what the CPU itself adds.
        let wanted = KVM_X86_NOTIFY_VMEXIT_ENABLED | KVM_X86_NOTIFY_VMEXIT_USER;
        call("watch for vCPUs that hold their core", enable(KVM_CAP_X86_NOTIFY_VMEXIT, wanted.into()))?;
    }
    if has(KVM_CAP_MAX_VCPU_ID) != 0 {
        // What KVM makes tables for. One that cannot be told makes them for all ids.
        let _ = enable(KVM_CAP_MAX_VCPU_ID, vcpus.into());
    }
    Ok(())
}
