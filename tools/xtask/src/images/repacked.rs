//! A Debian kernel as others build theirs: without a PVH note, packed by each of Linux's compressors, and in a unified
//! kernel image. Nothing else of it is changed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use domus_tests::images::UKI_CMDLINE;

use super::Tree;
use crate::command::{command, run_quiet};

/// This file: whatever changes here changes the images.
pub const SOURCE: &str = include_str!("repacked.rs");

/// The program that firmware would run (systemd-boot-efi).
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// Compressors as the kernel's build calls them, but for how hard they try.
const COMPRESSORS: &[(&str, &[&str])] = &[
    ("gzip", &["gzip", "-1"]),
    ("bzip2", &["bzip2", "-1"]),
    ("lzma", &["xz", "--format=lzma", "-0"]),
    ("xz", &["xz", "--check=crc32", "--x86", "--lzma2=preset=0"]),
    ("lzo", &["lzop", "-1"]),
    ("lz4", &["lz4", "-l", "-1"]),
    ("zstd", &["zstd", "-1"]),
];

/// The files of a folder that [`build`] has made, by their names.
pub fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let names = COMPRESSORS.iter().map(|(name, _)| *name).chain(["uki"]);
    names.map(|name| (name.to_owned(), folder.join(name))).collect()
}

/// Makes them of `vmlinuz`, which is packed with zstd, in `folder`.
pub fn build(vmlinuz: &Path, initrd: &Path, folder: &Path) -> Result<()> {
    println!("Packing a kernel again");
    fs::create_dir_all(folder)?;
    let image = fs::read(vmlinuz)?;
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the kernel is too short")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    // Documentation/arch/x86/boot.rst: setup_sects, payload_offset, payload_length.
    let start = (usize::from(image[0x1f1]) + 1) * 512 + word(0x248)?;
    let payload = image.get(start..start + word(0x24c)?).context("the payload is cut off")?;
    ensure!(payload.starts_with(b"\x28\xb5\x2f\xfd"), "{} is not packed with zstd", vmlinuz.display());

    let tree = Tree::new(folder)?;
    let [packed, vmlinux] = ["packed", "vmlinux"].map(|name| tree.0.join(name));
    // The last four bytes are the size.
    fs::write(&packed, &payload[..payload.len() - 4])?;
    filter(&["zstd", "--decompress", "--memory=256MB"], &packed, &vmlinux)?;
    let mut kernel = fs::read(&vmlinux)?;
    strip_note(&mut kernel)?;
    fs::write(&vmlinux, &kernel)?;
    for (name, words) in COMPRESSORS {
        filter(words, &vmlinux, &packed)?;
        let mut payload = fs::read(&packed)?;
        if *name != "gzip" {
            payload.extend((kernel.len() as u32).to_le_bytes());
        }
        let mut bzimage = image[..start].to_vec();
        bzimage[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        bzimage.extend(payload);
        fs::write(folder.join(name), bzimage)?;
    }

    let cmdline = tree.0.join("cmdline");
    fs::write(&cmdline, UKI_CMDLINE)?;
    let mut objcopy = command::<&str>("objcopy", []);
    // Where the stub leaves room; the addresses are those of systemd-stub(7).
    let sections: [(&str, &Path, &str); 4] = [
        (".osrel", Path::new("/etc/os-release"), "0x20000"),
        (".cmdline", &cmdline, "0x30000"),
        (".linux", &folder.join("zstd"), "0x2000000"),
        (".initrd", initrd, "0x6000000"),
    ];
    for (name, file, address) in sections {
        objcopy.arg("--add-section").arg(format!("{name}={}", file.display()));
        objcopy.arg("--change-section-vma").arg(format!("{name}={address}"));
    }
    run_quiet(objcopy.arg(STUB).arg(folder.join("uki")))
}

/// Runs a program from a file into a file.
fn filter(words: &[&str], from: &Path, to: &Path) -> Result<()> {
    let (program, args) = words.split_first().context("no program")?;
    let mut command = Command::new(program);
    command.args(args).arg("-c").stdin(File::open(from)?).stdout(File::create(to)?).stderr(Stdio::null());
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    if !status.success() {
        bail!("{program} ended with {status}");
    }
    Ok(())
}

/// Makes XEN_ELFNOTE_PHYS32_ENTRY a note of no meaning.
fn strip_note(kernel: &mut [u8]) -> Result<()> {
    /// The note's type and name, behind the sizes of name and description.
    const NOTE: &[u8] = b"\x12\0\0\0Xen\0";
    let found: Vec<usize> = kernel
        .windows(8 + NOTE.len())
        .enumerate()
        .filter(|(_, bytes)| bytes[..4] == [4, 0, 0, 0] && bytes[8..] == *NOTE)
        .map(|(at, _)| at + 8)
        .collect();
    let [at] = found[..] else { bail!("the kernel has {} PVH notes", found.len()) };
    kernel[at..at + 4].fill(0xff);
    Ok(())
}
