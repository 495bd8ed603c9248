//! What the host's KVM can give to a guest.

use std::io;

use kvm_ioctls::Kvm;
use shared_abi::cpu::{CpuSpec, HostCpu, Leaf};

/// Leaves that KVM tells of at most.
const MOST: usize = kvm_bindings::KVM_MAX_CPUID_ENTRIES;

/// The features of a CPU that this host lacks, by name, and the name of the config's key that asks for them: `cpu`,
/// `nested` or `pmu`. None if it lacks nothing.
///
/// # Errors
/// There is no KVM.
pub fn lacks(cpu: &CpuSpec) -> io::Result<Option<(&'static str, String)>> {
    if cpu.is_default() {
        return Ok(None);
    }
    let entries = Kvm::new().and_then(|kvm| kvm.get_supported_cpuid(MOST))?;
    let leaf = |entry: &kvm_bindings::kvm_cpuid_entry2| Leaf {
        function: entry.function,
        index: entry.index,
        registers: [entry.eax, entry.ebx, entry.ecx, entry.edx],
    };
    let leaves: Vec<_> = entries.as_slice().iter().map(leaf).collect();
    let asked = [
        ("cpu", CpuSpec { nested: false, pmu: false, ..cpu.clone() }),
        ("nested", CpuSpec { nested: cpu.nested, ..CpuSpec::default() }),
        ("pmu", CpuSpec { pmu: cpu.pmu, ..CpuSpec::default() }),
    ];
    Ok(asked.into_iter().find_map(|(key, spec)| {
        let missing = spec.missing(HostCpu(&leaves));
        (!missing.is_empty()).then(|| (key, missing.join(", ")))
    }))
}
