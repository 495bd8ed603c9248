//! What dom0 knows of virtio device types: their numbers, and what a device of one usually looks like on the PCI bus.

/// Network device (virtio 1.3 §5.1).
pub const NET: u16 = 1;

/// Block device (virtio 1.3 §5.2).
pub const BLOCK: u16 = 2;

/// Ring size of the devices that Domus serves itself.
pub const QUEUE_SIZE: u16 = 256;

/// Bytes of `struct virtio_blk_config` that every backend knows (virtio 1.3 §5.2.4), up to the write-zeroes fields.
pub const BLOCK_CONFIG: u16 = 60;

/// Bytes of `struct virtio_net_config` up to the hash types (virtio 1.3 §5.1.4).
pub const NET_CONFIG: u16 = 24;

/// Bytes of configuration space that a device of this type has, as far as every backend of others' knows it (virtio 1.3
/// §5): a NIC's up to its MTU.
pub fn usual_config(virtio_type: u16) -> u64 {
    match virtio_type {
        NET => 12,
        BLOCK => BLOCK_CONFIG.into(),
        3 => 12,
        8 => 36,
        16 => 16,
        19 => 8,
        26 => 40,
        _ => 0,
    }
}

/// The PCI class code a virtio device type usually has (PCI Code and ID Assignment, 1.16).
pub fn usual_class(virtio_type: u16) -> u32 {
    match virtio_type {
        NET => 0x02_0000,            // network: Ethernet
        BLOCK | 8 | 26 => 0x01_8000, // block, SCSI, file system: other mass storage
        3 | 11 | 19 => 0x07_8000,    // console, serial, vsock: other communication
        16 => 0x03_8000,             // GPU: other display
        18 => 0x09_8000,             // input: other input
        20 => 0x10_8000,             // crypto: other encryption
        25 => 0x04_0100,             // sound: audio
        _ => 0xff_0000,              // unassigned
    }
}
