//! The `CPUID` leaves of each vCPU: those that KVM supports, with this machine's topology.
//!
//! One socket, one core for each vCPU, one thread for each core; the APIC id is the vCPU's number.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

/// Leaf 1 ECX: the APIC timer has a TSC deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// Leaf 1 EDX: EBX 23–16 is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001 ECX: the same for AMD's leaf 0x80000008.
const CMP_LEGACY: u32 = 1 << 1;

/// The leaves of the extended topology; 0x1f is Intel's second version.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];

/// What is put in for one vCPU.
#[derive(Debug, Clone, Copy)]
pub struct Vcpu {
    /// Its number, and APIC id.
    pub id: u8,
    /// How many there are.
    pub count: u8,
    /// KVM has `KVM_CAP_TSC_DEADLINE_TIMER` (which `KVM_GET_SUPPORTED_CPUID` does not tell).
    pub tsc_deadline: bool,
}

impl Vcpu {
    /// What this vCPU is told, from what `KVM_GET_SUPPORTED_CPUID` gave.
    pub fn cpuid(self, supported: &[kvm_cpuid_entry2]) -> Vec<kvm_cpuid_entry2> {
        let last = supported.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
        let mut entries: Vec<_> =
            supported.iter().filter(|entry| !TOPOLOGY.contains(&entry.function)).copied().collect();
        entries.iter_mut().for_each(|entry| self.apply_entry(entry));
        // KVM tells of no topology that is not this machine's, so these are made, not changed.
        entries
            .extend(TOPOLOGY.into_iter().filter(|&leaf| leaf <= last).flat_map(|leaf| self.topology(leaf)));
        entries
    }

    /// Extended topology: level 0 threads, level 1 cores; KVM answers for the levels after them.
    fn topology(self, function: u32) -> [kvm_cpuid_entry2; 2] {
        let level = |index, (eax, ebx, ecx)| {
            let (flags, edx) = (KVM_CPUID_FLAG_SIGNIFCANT_INDEX, u32::from(self.id));
            kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
        };
        [level(0, (0, 1, 1 << 8)), level(1, (self.core_bits(), self.count.into(), 1 | 2 << 8))]
    }

    /// Bits of an APIC id that number the core: 0 for one core, 5 for 32.
    fn core_bits(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    fn apply_entry(self, entry: &mut kvm_cpuid_entry2) {
        let (id, count) = (u32::from(self.id), u32::from(self.count));
        let core_bits = self.core_bits();
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | id << 24;
                entry.ecx |= HYPERVISOR;
                if self.tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Caches, Intel: each belongs to one core, but the third level to all; ids of cores in the package.
            4 if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { (1 << core_bits) - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14 | ((1 << core_bits) - 1) << 26;
            }
            0x8000_0001 => {
                entry.ecx = if count > 1 { entry.ecx | CMP_LEGACY } else { entry.ecx & !CMP_LEGACY };
            }
            // AMD: number of cores, and the width of their ids.
            0x8000_0008 => entry.ecx = entry.ecx & !0xf0ff | core_bits << 12 | (count - 1),
            // AMD caches, as for leaf 4.
            0x8000_001d if entry.eax & 0x1f != 0 => {
                let shared = if entry.eax >> 5 & 7 >= 3 { count - 1 } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14;
            }
            // AMD: APIC id, core id with one thread each, one node.
            0x8000_001e => (entry.eax, entry.ebx, entry.ecx) = (id, id & 0xff, 0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vcpu_finds_its_own_apic_id_and_the_number_of_cores() {
        let leaf = |function, eax| kvm_cpuid_entry2 { function, eax, ..Default::default() };
        let supported = [leaf(0, 0x1e), leaf(1, 0), leaf(0xb, 7), leaf(0x8000_0008, 0), leaf(0x8000_001e, 0)];
        for (id, count, bits) in [(0, 1, 0), (2, 3, 2), (31, 32, 5)] {
            let entries = Vcpu { id, count, tsc_deadline: true }.cpuid(&supported);
            let [_, one, sizes, node, threads, cores] = entries[..] else { unreachable!() };
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (id.into(), count.into()));
            assert_eq!(one.ecx, TSC_DEADLINE | HYPERVISOR);
            assert_eq!((threads.function, threads.edx, threads.eax), (0xb, id.into(), 0));
            assert_eq!((cores.index, cores.eax, cores.ebx), (1, bits, count.into()));
            assert_eq!((sizes.ecx & 0xff, sizes.ecx >> 12), (u32::from(count) - 1, bits));
            assert_eq!(node.eax, u32::from(id));
        }
    }
}
