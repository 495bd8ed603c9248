//! The model-specific registers that a guest may touch: an allow-list for KVM's filter (`KVM_X86_SET_MSR_FILTER`).
//!
//! Any other access is a general protection fault, as on a CPU that has no such register, whatever KVM could do with
//! it. The x2APIC's registers are not KVM's to filter, and this process reads and writes all of them.

use std::ops::RangeInclusive;

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use shared_abi::cpu::CpuSpec;
use vmm_sys_util::errno;

/// Where registers are: the first of each area, and how many it has.
const AREAS: [(u32, u32); 4] =
    [(0, 0x1000), (0xc000_0000, 0x400), (0xc001_0000, 0x1100), (0x4b56_4d00, 0x10)];

type Range = RangeInclusive<u32>;

/// What systems use of a CPU that has the features of [`shared_abi::cpu`] and no PMU.
const ALL: &[Range] = &[
    // TSC, kvmclock's first two, the platform's id, APIC_BASE, FEATURE_CONTROL, TSC_ADJUST.
    0x10..=0x12,
    0x17..=0x17,
    0x1b..=0x1b,
    0x3a..=0x3b,
    // SPEC_CTRL, PRED_CMD, the microcode's version, PLATFORM_INFO.
    0x48..=0x49,
    0x8b..=0x8b,
    0xce..=0xce,
    // ARCH_CAPABILITIES, FLUSH_CMD, TSX_CTRL, MISC_FEATURES_ENABLES.
    0x10a..=0x10b,
    0x122..=0x122,
    0x140..=0x140,
    // SYSENTER, machine checks, MISC_ENABLE.
    0x174..=0x176,
    0x179..=0x17b,
    0x1a0..=0x1a0,
    0x280..=0x29f,
    0x400..=0x47f,
    // DEBUGCTL and the last branch.
    0x1d9..=0x1d9,
    0x1db..=0x1de,
    // MTRRs and PAT.
    0xfe..=0xfe,
    0x200..=0x20f,
    0x250..=0x250,
    0x258..=0x259,
    0x268..=0x26f,
    0x277..=0x277,
    0x2ff..=0x2ff,
    // TSC_DEADLINE, XSS.
    0x6e0..=0x6e0,
    0xda0..=0xda0,
    // EFER, SYSCALL, the bases of FS and GS, TSC_AUX.
    0xc000_0080..=0xc000_0084,
    0xc000_0100..=0xc000_0103,
    // AMD: SYSCFG, HWCR, TOP_MEM, NB_CFG, the microcode's loader, INT_PENDING, MMIO_CONF_BASE, SMM's place, VM_CR.
    0xc001_0010..=0xc001_0010,
    0xc001_0015..=0xc001_0015,
    0xc001_001a..=0xc001_001a,
    0xc001_001d..=0xc001_001d,
    0xc001_001f..=0xc001_0020,
    0xc001_0055..=0xc001_0055,
    0xc001_0058..=0xc001_0058,
    0xc001_0111..=0xc001_0114,
    // AMD: VIRT_SPEC_CTRL, OSVW, configuration of the load-store, bus and decode units.
    0xc001_011f..=0xc001_011f,
    0xc001_0140..=0xc001_0141,
    0xc001_1020..=0xc001_1020,
    0xc001_1022..=0xc001_1023,
    0xc001_1029..=0xc001_102a,
    // KVM's own.
    0x4b56_4d00..=0x4b56_4d07,
];

/// What comes with nested virtualization: VMX's capabilities, SVM's host save area and TSC ratio.
const NESTED: &[Range] = &[0x480..=0x491, 0xc001_0117..=0xc001_0117, 0xc000_0104..=0xc000_0104];

/// What comes with the PMU.
const PMU: &[Range] = &[
    // Intel: counters, events, fixed counters, PERF_CAPABILITIES, global control, PEBS, the debug store.
    0xc1..=0xc8,
    0x186..=0x18d,
    0x1a6..=0x1a7,
    0x309..=0x30c,
    0x345..=0x345,
    0x38d..=0x391,
    0x3f1..=0x3f2,
    0x4c1..=0x4c8,
    0x600..=0x600,
    // AMD: the first four, the core's, global control.
    0xc001_0000..=0xc001_0007,
    0xc001_0200..=0xc001_020b,
    0xc000_0300..=0xc000_0303,
];

/// Which registers the guest of such a CPU may touch.
fn allowed(spec: &CpuSpec) -> impl Iterator<Item = u32> {
    let nested = if spec.nested { NESTED } else { &[] };
    let pmu = if spec.pmu { PMU } else { &[] };
    [ALL, nested, pmu].into_iter().flatten().cloned().flatten()
}

/// The bits of each area: a register that may be touched is 1.
fn bitmaps(spec: &CpuSpec) -> [Vec<u8>; AREAS.len()] {
    let mut bitmaps = AREAS.map(|(_, count)| vec![0; count.div_ceil(8) as usize]);
    for msr in allowed(spec) {
        for (bitmap, (base, count)) in bitmaps.iter_mut().zip(AREAS) {
            if let Some(at) = msr.checked_sub(base).filter(|at| *at < count) {
                bitmap[at as usize / 8] |= 1 << (at % 8);
            }
        }
    }
    bitmaps
}

/// Lets the guest of this VM touch these registers and no others.
///
/// # Errors
/// What KVM says.
pub fn filter(vm: &VmFd, spec: &CpuSpec) -> Result<(), errno::Error> {
    let bitmaps = bitmaps(spec);
    let flags = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let ranges: Vec<_> = AREAS
        .iter()
        .zip(&bitmaps)
        .map(|(&(base, msr_count), bitmap)| MsrFilterRange { flags, base, msr_count, bitmap })
        .collect();
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has(spec: &CpuSpec, msr: u32) -> bool {
        let bits = bitmaps(spec);
        bits.iter().zip(AREAS).any(|(bitmap, (base, _))| {
            let at = msr.wrapping_sub(base) as usize;
            bitmap.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
        })
    }

    #[test]
    fn every_listed_register_is_in_an_area_and_has_its_bit() {
        let spec = CpuSpec { nested: true, pmu: true, ..CpuSpec::default() };
        let bits: u32 = bitmaps(&spec).iter().flatten().map(|byte| byte.count_ones()).sum();
        assert_eq!(bits as usize, allowed(&spec).count());
    }

    #[test]
    fn registers_of_virtualization_and_the_pmu_come_with_these_alone() {
        let (plain, asked) = (CpuSpec::default(), CpuSpec { nested: true, pmu: true, ..CpuSpec::default() });
        for msr in [0x10, 0xc000_0080, 0x4b56_4d01, 0xc001_0015] {
            assert!(has(&plain, msr), "{msr:#x}");
        }
        for msr in [0x480, 0xc001_0117, 0x186, 0xc001_0200] {
            assert!(!has(&plain, msr) && has(&asked, msr), "{msr:#x}");
        }
        for msr in [0x34, 0x79, 0x1000, 0x570, 0xc001_0130, 0x4000_0000] {
            assert!(!has(&asked, msr), "{msr:#x}");
        }
    }
}
