//! Compiles the freestanding guest image, `guest/main.rs`, with the same rustc as the rest of the workspace.
//!
//! It is not a cargo `[[bin]]`: a freestanding program must have `panic=abort` and no start files in every profile,
//! must be optimised even in dev (its first thousands of instructions may be interpreted, and it is a ruler), and
//! tests of other crates need its bytes, which cargo gives only to a binary's own package. So the image is a product
//! of this build script and the library carries it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let guest = root.join("guest");
    println!("cargo:rerun-if-changed={}", guest.display());
    println!("cargo:rerun-if-changed=build.rs");

    let mut command = Command::new(rustc);
    command
        .arg(guest.join("main.rs"))
        .args(["--crate-name", "mini_guest_image", "--crate-type", "bin", "--edition", "2024"])
        .args(["--target", "x86_64-unknown-linux-gnu"])
        .args(["-C", "panic=abort", "-C", "opt-level=2", "-C", "codegen-units=1", "-C", "lto=fat"])
        .args(["-C", "relocation-model=static", "-C", "force-unwind-tables=no", "-C", "debuginfo=0"])
        .args(["-C", "link-arg=-nostdlib", "-C", "link-arg=-static", "-C", "link-arg=-no-pie"])
        .args(["-C", "link-arg=-Wl,--build-id=none,-z,noexecstack,-z,max-page-size=4096"])
        .arg("-C")
        .arg(format!("link-arg=-Wl,-T,{}", guest.join("link.ld").display()))
        .arg("-o")
        .arg(out.join("mini-guest.elf"))
        // Flags meant for the host's programs (coverage, sanitizers) have no runtime in there.
        .env_remove("RUSTFLAGS")
        .env_remove("CARGO_ENCODED_RUSTFLAGS");
    let status = command.status().expect("rustc starts");
    assert!(status.success(), "cannot compile the guest image: rustc ended with {status}");
}
