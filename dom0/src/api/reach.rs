//! What the processes of a domain could reach, as the API tells it.

use domus_api::{DescriptorInfo, ReachInfo, SharedMemoryInfo};

use crate::host::reach::{Reach, SharedMemory};

/// As the API tells it.
pub fn describe(program: String, pid: i32, reach: Reach) -> ReachInfo {
    let Reach { uid, capabilities, no_new_privileges, filters, root, interfaces, longest_file, .. } = reach;
    let descriptors = reach.descriptors.into_iter();
    let descriptors =
        descriptors.map(|(of, count)| DescriptorInfo { what: of.what, writable: of.writable, count });
    let memory = reach.memory.into_iter();
    let memory =
        memory.map(|SharedMemory { what, bytes, writable }| SharedMemoryInfo { what, bytes, writable });
    ReachInfo {
        program,
        pid,
        uid,
        capabilities,
        no_new_privileges,
        filters,
        shared_namespaces: reach.shared_namespaces.into_iter().map(Into::into).collect(),
        root,
        descriptors: descriptors.collect(),
        memory: memory.collect(),
        interfaces,
        longest_file,
    }
}
