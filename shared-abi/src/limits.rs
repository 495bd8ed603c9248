//! Bounds that hold everywhere. A value outside them is refused where it enters.

/// Longest control message, in bytes. One message is one datagram.
pub const MAX_MESSAGE: usize = 64 * 1024;

/// Most file descriptors in one control message: the kernel's own limit (`SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

/// Most vCPUs of a domain: their APIC ids, which are their numbers, fit into a byte of which 255 means all of them.
pub const MAX_VCPUS: u8 = 255;

/// Least memory of a domain, in bytes: below this no Linux starts, and the mini guest needs less.
pub const MIN_MEMORY: u64 = 16 << 20;

/// Guest memory comes in multiples of this many bytes.
pub const MEMORY_UNIT: u64 = 1 << 20;

/// End of the RAM below 4 GiB, as a guest physical address: the devices' addresses begin here.
pub const LOW_RAM_END: u64 = 0xc000_0000;

/// Start of the RAM above the devices' addresses, as a guest physical address.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// Most virtio devices of a domain: slots 1 to 31 of PCI bus 0.
pub const MAX_DEVICES: usize = 31;

/// Most virtqueues of one device. A queue has one MSI-X vector, and one more is for the configuration.
pub const MAX_QUEUES: u16 = 64;

/// Most queue pairs of a NIC: with the control queue they have at most [`MAX_QUEUES`] queues.
pub const MAX_QUEUE_PAIRS: u16 = 31;

/// Bytes of the memory file in which a NIC's backend keeps what the driver has set.
pub const NIC_STATE_LEN: u64 = 16 * 1024;

/// Largest ring, in descriptors. Virtio 1.3 §2.7 allows 32768; no driver asks for that.
pub const MAX_QUEUE_SIZE: u16 = 1024;

/// Longest kernel that is kept unpacked, in bytes. It is counted with what the domain uses beside its RAM that is the
/// first to start it.
pub const MAX_UNPACKED: u64 = 128 << 20;

/// Longest kernel command line in bytes, without the terminating NUL (x86 Linux: `COMMAND_LINE_SIZE` 2048).
pub const MAX_CMDLINE: usize = 2047;

/// Longest device-specific configuration space in bytes (vhost-user: `VHOST_USER_MAX_CONFIG_SIZE` 256).
pub const MAX_DEVICE_CONFIG: usize = 256;

/// Longest payload of one frame on a console socket, in bytes.
pub const MAX_CONSOLE_FRAME: usize = 4096;
