//! Kernel images: whatever the bytes, loading ends in an entry point or an error, within guest memory.
#![no_main]

use std::fs::File;
use std::io::{Seek, Write};
use std::sync::LazyLock;

use domu_runner::boot::{Boot, Image, Unpacked};
use domu_runner::memory::GuestRam;
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use shared_abi::control::StartPart;

static RAM: LazyLock<GuestRam> = LazyLock::new(|| GuestRam::new(32 << 20).expect("guest memory"));

fuzz_target!(|bytes: &[u8]| {
    let mut file = File::from(memfd_create(c"kernel", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("a memfd takes bytes");
    file.rewind().expect("a memfd seeks");
    let image = Image::new(StartPart::Kernel, file).expect("a regular file");
    let boot = Boot { kernel: image, initrd: None, cmdline: "console=ttyS0".into(), yields: true, unpacked: Unpacked::Unknown };
    if let Err(error) = boot.load(&RAM, 1) {
        assert!(!error.to_string().contains('\n'));
    }
});
