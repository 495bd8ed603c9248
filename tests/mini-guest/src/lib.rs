//! A guest of our own: boots by PVH or as Linux does, drives virtio-pci devices with its own split rings, measures and
//! misbehaves.
//!
//! [`IMAGE`] is the freestanding ELF file that `build.rs` made of `guest/`. It does as little as possible in ring 0
//! and everything else in ring 3, so it runs at full speed on real VT-x and SVM and on a paravirtual /dev/kvm
//! (KVM_PVM), where ring 0 is interpreted. `guest/body/mod.rs` says what it is told and what it reports.

/// The guest as an ELF file with a PVH entry note. Its header's entry is Linux's 64-bit one.
pub const IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/mini-guest.elf"));

/// [`IMAGE`] without the note: it boots by the Linux boot protocol only.
///
/// # Panics
/// If the image has not exactly one such note.
pub fn without_pvh() -> Vec<u8> {
    /// Sizes of name and description, the note's type, its name: what boot.S makes it of.
    const NOTE: [u8; 16] = *b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0";
    let places: Vec<_> = IMAGE.windows(NOTE.len()).enumerate().filter(|(_, bytes)| *bytes == NOTE).collect();
    let [(at, _)] = places[..] else { panic!("the image has {} PVH notes", places.len()) };
    let mut image = IMAGE.to_vec();
    // A type that means nothing.
    image[at + 8..at + 12].fill(0xff);
    image
}

// The same modules as in the image, so that they are linted and their pure parts are tested on the host.
#[path = "../guest/body/mod.rs"]
#[allow(dead_code, reason = "what only the image's root calls")]
mod body;

/// What the guest's checks write to a disk: word `word` (0 to 63) of sector `sector`, by seed.
pub use body::blk::pattern;
