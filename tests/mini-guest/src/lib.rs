//! A guest of our own: boots by PVH, drives virtio-pci devices with its own split rings, measures and misbehaves.
//!
//! [`IMAGE`] is the freestanding ELF file that `build.rs` made of `guest/`. It does as little as possible in ring 0
//! and everything else in ring 3, so it runs at full speed on real VT-x and SVM and on a paravirtual /dev/kvm
//! (KVM_PVM), where ring 0 is interpreted. `guest/body/mod.rs` says what it is told and what it reports.

/// The guest as an ELF file with a PVH entry note.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mini-guest.elf"));

// The same modules as in the image, so that they are linted and their pure parts are tested on the host.
#[path = "../guest/body/mod.rs"]
#[allow(dead_code, reason = "what only the image's root calls")]
mod body;

/// What the guest's checks write to a disk: word `word` (0 to 63) of sector `sector`, by seed.
pub use body::blk::pattern;
