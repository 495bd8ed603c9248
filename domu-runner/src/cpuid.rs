//! The `CPUID` leaves of each vCPU: of what KVM supports, that which is listed, with this machine's topology.
//!
//! An allow-list: [`FEATURES`] bit by bit, and the leaves that tell facts and promise nothing. What is not listed is 0,
//! a leaf that is not listed is not there, which reads as 0. KVM's own leaves (0x40000000 and up) are as KVM gives
//! them.
//!
//! One socket, one core for each vCPU, one thread for each core; the APIC id is the vCPU's number.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};
use shared_abi::cpu::{CpuSpec, FEATURES, Feature, HostCpu, Leaf, Register, State};

/// Leaf 1 ECX: the APIC timer has a TSC deadline mode.
const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1 ECX: a hypervisor is present.
const IS_GUEST: u32 = 1 << 31;
/// Leaf 1 EDX: EBX 23–16 is valid.
const HTT: u32 = 1 << 28;
/// Leaf 0x80000001 ECX: the same for AMD's leaf 0x80000008.
const CMP_LEGACY: u32 = 1 << 1;
/// Leaf 0x80000001 EDX: bits that AMD repeats from leaf 1.
const REPEATED: u32 = 0x0183_f3ff;

/// The leaves of the extended topology; 0x1f is Intel's second version.
const TOPOLOGY: [u32; 2] = [0xb, 0x1f];
/// The leaf of XSAVE's areas.
const XSAVE: u32 = 0xd;
/// The newest subleaf of leaf 7 that is listed.
const LAST_OF_7: u32 = 2;
/// Bytes of the legacy region and the header of an XSAVE area.
const XSAVE_LEAST: u32 = 576;

/// What registers of a leaf pass beside the listed features: facts, such as names, sizes and frequencies.
const FACTS: &[(u32, [u32; 4])] = &[
    // The last leaf, and the vendor.
    (0x0, [!0; 4]),
    // Family, model and stepping; the size of a cache line to flush. The rest is this machine's.
    (0x1, [!0, 0xffff, 0, 0]),
    // Caches.
    (0x2, [!0; 4]),
    (0x4, [!0; 4]),
    // The last subleaf.
    (0x7, [!0, 0, 0, 0]),
    // Frequencies.
    (0x15, [!0; 4]),
    (0x16, [!0; 4]),
    (0x8000_0000, [!0; 4]),
    (0x8000_0001, [!0, !0, 0, 0]),
    // The name of the model.
    (0x8000_0002, [!0; 4]),
    (0x8000_0003, [!0; 4]),
    (0x8000_0004, [!0; 4]),
    // Caches and TLBs.
    (0x8000_0005, [!0; 4]),
    (0x8000_0006, [!0; 4]),
    (0x8000_0019, [!0; 4]),
    (0x8000_001d, [!0; 4]),
    // Widths of addresses; the rest is features, and this machine's.
    (0x8000_0008, [!0, 0, 0, 0]),
    // Widths of data paths.
    (0x8000_001a, [!0, 0, 0, 0]),
    // This machine's topology.
    (0x8000_001e, [0; 4]),
    // Features alone.
    (0x6, [0; 4]),
    (0x8000_0007, [0; 4]),
    (0x8000_0021, [0; 4]),
];

/// Leaves that come with nested virtualization: SVM's.
const NESTED: [u32; 1] = [0x8000_000a];
/// Leaves that come with the PMU: Intel's and AMD's.
const PMU: [u32; 2] = [0xa, 0x8000_0022];
/// Where hypervisors speak.
const HYPERVISOR: std::ops::Range<u32> = 0x4000_0000..0x4000_0100;

/// The CPU of a machine.
#[derive(Debug, Clone)]
pub struct Cpu(Vec<kvm_cpuid_entry2>);

/// The host cannot give what was asked for.
#[derive(Debug, thiserror::Error)]
#[error("this host cannot give the CPU that the config asks for: it lacks {}", .0.join(", "))]
pub struct Missing(Vec<&'static str>);

impl Cpu {
    /// What `spec` makes of what `KVM_GET_SUPPORTED_CPUID` gave. `tsc_deadline` is `KVM_CAP_TSC_DEADLINE_TIMER`, which
    /// that does not tell.
    ///
    /// # Errors
    /// [`Missing`].
    pub fn new(spec: &CpuSpec, supported: &[kvm_cpuid_entry2], tsc_deadline: bool) -> Result<Self, Missing> {
        let mut supported = supported.to_vec();
        for entry in &mut supported {
            if entry.function == 1 {
                entry.ecx |= IS_GUEST | if tsc_deadline { TSC_DEADLINE } else { 0 };
            }
        }
        let leaves: Vec<Leaf> = supported.iter().map(leaf).collect();
        let host = HostCpu(&leaves);
        let missing = spec.missing(host);
        if !missing.is_empty() {
            return Err(Missing(missing));
        }
        let given: Vec<&Feature> = FEATURES.iter().filter(|feature| spec.gives(feature, host)).collect();
        let components = components(&given);
        let (mut entries, mut repeated) = (Vec::new(), 0);
        for mut entry in supported {
            let [eax, ebx, ecx, edx] = mask(spec, &given, components, &entry);
            entry.eax &= eax;
            entry.ebx &= ebx;
            entry.ecx &= ecx;
            entry.edx &= edx;
            match (entry.function, entry.index) {
                (0x1, _) => repeated = entry.edx & REPEATED,
                (0x7, 0) => entry.eax = entry.eax.min(LAST_OF_7),
                (0x8000_0001, _) => {
                    entry.edx |= host.register(0x8000_0001, 0, Register::Edx) & repeated;
                }
                (XSAVE, 0) => (entry.ebx, entry.ecx) = (area(host, components), area(host, components)),
                _ => {}
            }
            let is_told = FACTS.iter().any(|(function, _)| *function == entry.function)
                || [entry.eax, entry.ebx, entry.ecx, entry.edx] != [0; 4];
            if is_told {
                entries.push(entry);
            }
        }
        Ok(Self(entries))
    }
}

fn leaf(entry: &kvm_cpuid_entry2) -> Leaf {
    let registers = [entry.eax, entry.ebx, entry.ecx, entry.edx];
    Leaf { function: entry.function, index: entry.index, registers }
}

/// The components of XSAVE that the guest has; none without XSAVE.
fn components(given: &[&Feature]) -> u32 {
    let has = |name: &str| given.iter().any(|feature| feature.name == name);
    let with = |name: &str, state: State| if has(name) { state.components() } else { 0 };
    match has("xsave") {
        false => 0,
        // x87 and SSE always.
        true => {
            0b11 | with("avx", State::Avx) | with("avx512f", State::Avx512) | with("pku", State::Protected)
        }
    }
}

/// Bytes of an XSAVE area with these components.
fn area(host: HostCpu<'_>, components: u32) -> u32 {
    if components == 0 {
        return 0;
    }
    let end = |index| {
        let register = |register| host.register(XSAVE, index, register);
        register(Register::Eax).saturating_add(register(Register::Ebx))
    };
    (2..32).filter(|index| components >> index & 1 == 1).map(end).fold(XSAVE_LEAST, u32::max)
}

/// The bits of an entry that pass.
fn mask(spec: &CpuSpec, given: &[&Feature], components: u32, entry: &kvm_cpuid_entry2) -> [u32; 4] {
    let kvm_cpuid_entry2 { function, index, .. } = *entry;
    let whole = HYPERVISOR.contains(&function)
        || spec.nested && NESTED.contains(&function)
        || spec.pmu && PMU.contains(&function)
        || function == XSAVE && (2..32).contains(&index) && components >> index & 1 == 1;
    if whole {
        return [!0; 4];
    }
    if function == XSAVE && (components == 0 || index > 1) {
        return [0; 4];
    }
    let facts =
        FACTS.iter().find(|(listed, _)| *listed == function).filter(|_| index == 0 || is_cache(function));
    let mut mask = facts.map_or([0; 4], |(_, mask)| *mask);
    if (function, index) == (XSAVE, 0) {
        mask[Register::Eax as usize] = components;
    }
    for feature in given.iter().filter(|it| (it.function, it.index) == (function, index)) {
        mask[feature.register as usize] |= 1 << feature.bit;
    }
    mask
}

/// Leaves with a subleaf for each cache.
fn is_cache(function: u32) -> bool {
    [0x4, 0x8000_001d].contains(&function)
}

/// One of the vCPUs.
#[derive(Debug, Clone, Copy)]
pub struct Vcpu {
    /// Its number, and APIC id.
    pub id: u8,
    /// How many there are.
    pub count: u8,
}

impl Vcpu {
    /// What this vCPU is told.
    pub fn cpuid(self, cpu: &Cpu) -> Vec<kvm_cpuid_entry2> {
        let last = cpu.0.iter().find(|entry| entry.function == 0).map_or(0, |entry| entry.eax);
        let mut entries: Vec<_> = cpu.0.clone();
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

    /// Bits of an APIC id that number the core: 0 for one core, 8 for 255.
    fn core_bits(self) -> u32 {
        u32::from(self.count).next_power_of_two().trailing_zeros()
    }

    fn apply_entry(self, entry: &mut kvm_cpuid_entry2) {
        let (id, count) = (u32::from(self.id), u32::from(self.count));
        let core_bits = self.core_bits();
        match entry.function {
            1 => {
                entry.ebx = entry.ebx & 0x0000_ffff | count << 16 | id << 24;
                entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Caches, Intel: each belongs to one core, but the third level to all; ids of cores in the package, for
            // which there are six bits. Systems believe leaf 0xb before this one.
            4 if entry.eax & 0x1f != 0 => {
                let ids = (1 << core_bits) - 1;
                let shared = if entry.eax >> 5 & 7 >= 3 { ids } else { 0 };
                entry.eax = entry.eax & 0x3fff | shared << 14 | ids.min(0x3f) << 26;
            }
            0x8000_0001 => {
                entry.ecx = if count > 1 { entry.ecx | CMP_LEGACY } else { entry.ecx & !CMP_LEGACY };
            }
            // AMD: number of cores, and the width of their ids.
            0x8000_0008 => entry.ecx = core_bits << 12 | (count - 1),
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

    fn entry(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> [u32; 4] {
        let found = entries.iter().find(|entry| (entry.function, entry.index) == (function, index));
        found.map_or([0; 4], |entry| leaf(entry).registers)
    }

    /// A CPU of the future: every bit of every leaf.
    fn all() -> Vec<kvm_cpuid_entry2> {
        let basic = (0..0x40).flat_map(|function| (0..3).map(move |index| (function, index)));
        let extended = (0x8000_0000..0x8000_0040).map(|function| (function, 0));
        let mut all: Vec<_> = basic.chain(extended).map(|(f, index)| entry(f, index, [!0; 4])).collect();
        for one in &mut all {
            match (one.function, one.index) {
                (0, 0) => one.eax = 0x3f,
                (XSAVE, 2) => (one.eax, one.ebx) = (256, 576),
                _ => {}
            }
        }
        all.extend(
            [(5, 64, 1088), (6, 512, 1152), (7, 1024, 1664), (9, 8, 2688), (17, 64, 2752), (18, 8192, 2816)]
                .map(|(index, size, offset)| entry(XSAVE, index, [size, offset, 0, 0])),
        );
        all.push(entry(0x4000_0000, 0, [0x4000_0001, 1, 2, 3]));
        all.push(entry(0xc000_0000, 0, [!0; 4]));
        all
    }

    fn guest(spec: &CpuSpec) -> Vec<kvm_cpuid_entry2> {
        Vcpu { id: 0, count: 1 }.cpuid(&Cpu::new(spec, &all(), true).unwrap())
    }

    #[test]
    fn each_vcpu_finds_its_own_apic_id_and_the_number_of_cores() {
        let [leaf_0, leaf_1] = [entry(0, 0, [0x1e, 0, 0, 0]), entry(1, 0, [0; 4])];
        let cache = entry(4, 3, [3 | 3 << 5, 0, 0, 0]);
        let amd = [0xb, 0x8000_0008, 0x8000_001e].map(|function| entry(function, 0, [7, 0, 0, 0]));
        let supported = [&[leaf_0, leaf_1, cache], &amd[..]].concat();
        let cpu = Cpu::new(&CpuSpec::default(), &supported, true).unwrap();
        for (id, count, bits) in [(0, 1, 0), (2, 3, 2), (31, 32, 5), (254, 255, 8)] {
            let entries = Vcpu { id, count }.cpuid(&cpu);
            let [_, one, cache, sizes, node, threads, cores] = entries[..] else { unreachable!() };
            assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xff), (id.into(), count.into()));
            assert_eq!(one.ecx, TSC_DEADLINE | IS_GUEST);
            assert_eq!(cache.eax >> 14 & 0xfff, (1 << bits) - 1);
            assert_eq!(cache.eax >> 26, ((1 << bits) - 1).min(63));
            assert_eq!((threads.function, threads.edx, threads.eax), (0xb, id.into(), 0));
            assert_eq!((cores.index, cores.eax, cores.ebx), (1, bits, count.into()));
            assert_eq!((sizes.ecx & 0xff, sizes.ecx >> 12), (u32::from(count) - 1, bits));
            assert_eq!(node.eax, u32::from(id));
        }
    }

    #[test]
    fn of_a_cpu_with_every_bit_a_guest_gets_what_is_listed_and_nothing_of_virtualization_or_the_pmu() {
        let guest = guest(&CpuSpec::default());
        let bits = |function, index| find(&guest, function, index);
        let [_, _, ecx, _] = bits(1, 0);
        assert_eq!(ecx & (1 << 5 | 1 << 3 | 1 << 2 | 1 << 15), 0, "VMX, MONITOR, DTES64, PDCM");
        assert_ne!(ecx & 1 << 25, 0, "AES");
        assert_eq!(bits(0x8000_0001, 0)[2] & (1 << 2 | 1 << 23), 0, "SVM, core counters");
        for leaf in
            [3, 5, 0xa, 0x12, 0x14, 0x19, 0x1c, 0x24, 0x8000_000a, 0x8000_001f, 0x8000_0022, 0xc000_0000]
        {
            assert_eq!(bits(leaf, 0), [0; 4], "leaf {leaf:#x}");
        }
        assert_eq!(bits(7, 0)[0], LAST_OF_7);
        assert_eq!(bits(7, 0)[3] & (1 << 22 | 1 << 24 | 1 << 25), 0, "AMX");
        assert_eq!(bits(0x4000_0000, 0), [0x4000_0001, 1, 2, 3]);
        for feature in FEATURES {
            assert!(feature.index < 3 && feature.function != 0xb, "{}", feature.name);
        }
    }

    #[test]
    fn nested_virtualization_and_the_pmu_come_when_they_are_asked_for() {
        let guest = guest(&CpuSpec { nested: true, pmu: true, ..CpuSpec::default() });
        assert_ne!(find(&guest, 1, 0)[2] & 1 << 5, 0);
        assert_ne!(find(&guest, 0x8000_0001, 0)[2] & 1 << 2, 0);
        for leaf in [0xa, 0x8000_000a, 0x8000_0022] {
            assert_eq!(find(&guest, leaf, 0), [!0; 4], "leaf {leaf:#x}");
        }
    }

    #[test]
    fn the_area_of_xsave_is_as_long_as_its_components_and_no_longer() {
        let area = |text: &str| {
            let model = serde_json::from_str::<shared_abi::cpu::CpuModel>(text).unwrap();
            let guest = guest(&CpuSpec { model, ..CpuSpec::default() });
            let [eax, ebx, ecx, edx] = find(&guest, XSAVE, 0);
            assert_eq!((ebx, edx), (ecx, 0));
            (eax, ecx, find(&guest, XSAVE, 18))
        };
        assert_eq!(area(r#""x86-64-v2""#), (0, 0, [0; 4]));
        assert_eq!(area(r#""x86-64-v3""#), (0b111, 832, [0; 4]));
        assert_eq!(area(r#""x86-64-v4""#), (0b1110_0111, 2688, [0; 4]));
        assert_eq!(area(r#""host""#), (0b10_1110_0111, 2696, [0; 4]));
    }

    #[test]
    fn what_the_host_lacks_is_named() {
        let spec = CpuSpec { nested: true, ..CpuSpec::default() };
        let text = Cpu::new(&spec, &[entry(1, 0, [0; 4])], false).unwrap_err().to_string();
        assert!(text.ends_with("it lacks vmx or svm"), "{text}");
    }
}
