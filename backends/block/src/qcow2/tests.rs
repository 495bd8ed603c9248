use std::fs::OpenOptions;
use std::process::Command;

use imago::io_buffers::IoBuffer;
use tempfile::TempDir;

use super::*;
use crate::async_io::AsyncDisk;
use crate::uring::NewUring;

const MIB: u64 = 1 << 20;

struct ImageFolder {
    dir: TempDir,
    reactor: Arc<Reactor>,
}

impl ImageFolder {
    fn new() -> Self {
        let ring = NewUring::new(&[]).unwrap().enable().unwrap();
        Self { dir: tempfile::tempdir().unwrap(), reactor: Arc::new(Reactor::new(ring)) }
    }

    fn qemu_img(&self, args: &[&str]) {
        let output = Command::new("qemu-img").current_dir(&self.dir).args(args).output().unwrap();
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn image(&self, name: &str) -> OpenImage {
        let path = self.dir.path().join(name);
        let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
        OpenImage { path, file, direct: false }
    }

    fn open(&self, name: &str, backing: &[(ImageFormat, &str)]) -> Result<Image, ChainError> {
        let backing = backing.iter().map(|&(format, name)| (format, self.image(name))).collect();
        self.reactor.block_on(Image::open(
            &self.reactor,
            self.image(name),
            ImageFormat::Qcow2,
            backing,
            true,
            true,
        ))
    }

    fn write(&self, image: &Image, byte: u8, len: usize, offset: u64) {
        let mut buffer = IoBuffer::new(len, 4096).unwrap();
        buffer.as_mut().into_slice().fill(byte);
        self.reactor.block_on(image.write(buffer, len, offset, false)).1.unwrap();
    }

    fn byte(&self, image: &Image, offset: u64) -> u8 {
        let buffer = IoBuffer::new(512, 4096).unwrap();
        let (buffer, read) = self.reactor.block_on(image.read(buffer, 512, offset));
        read.unwrap();
        let bytes = buffer.as_ref().into_slice();
        assert!(bytes.iter().all(|&byte| byte == bytes[0]));
        bytes[0]
    }
}

#[test]
fn what_is_flushed_is_what_qemu_img_reads() {
    let folder = ImageFolder::new();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "64M"]);
    let image = folder.open("disk.qcow2", &[]).unwrap();
    assert_eq!(folder.reactor.block_on(image.size()), 64 * MIB);
    folder.write(&image, 7, 200 << 10, 5 * MIB + 512);
    folder.write(&image, 9, 4096, 64 * MIB - 4096);
    folder.reactor.block_on(image.flush()).unwrap();
    drop(image);
    folder.qemu_img(&["check", "-q", "disk.qcow2"]);
    folder.qemu_img(&["convert", "-O", "raw", "disk.qcow2", "disk.raw"]);
    let raw = std::fs::read(folder.dir.path().join("disk.raw")).unwrap();
    let at = |offset: u64| raw[offset as usize];
    assert_eq!((at(5 * MIB), at(5 * MIB + 512), at(5 * MIB + (200 << 10) + 511)), (0, 7, 7));
    assert_eq!((at(64 * MIB - 4097), at(64 * MIB - 1), at(0)), (0, 9, 0));
}

#[test]
fn a_chain_is_read_through_and_written_at_its_top_only() {
    let folder = ImageFolder::new();
    std::fs::write(folder.dir.path().join("base.raw"), vec![1; MIB as usize]).unwrap();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "middle.qcow2"]);
    folder.qemu_img(&[
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "qcow2",
        "-b",
        "./middle.qcow2",
        "top.qcow2",
        "2M",
    ]);
    let listed = [(ImageFormat::Qcow2, "middle.qcow2"), (ImageFormat::Raw, "base.raw")];
    let image = folder.open("top.qcow2", &listed).unwrap();
    folder.write(&image, 3, 512, 64 << 10);
    assert_eq!(
        [0, 64 << 10, (64 << 10) + 512, MIB, 2 * MIB - 512].map(|at| folder.byte(&image, at)),
        [1, 3, 1, 0, 0]
    );
    folder.reactor.block_on(image.flush()).unwrap();
    folder.qemu_img(&["check", "-q", "top.qcow2"]);
    assert_eq!(std::fs::read(folder.dir.path().join("base.raw")).unwrap(), vec![1; MIB as usize]);
}

#[test]
fn a_backing_image_that_is_not_listed_is_refused_with_the_line_to_add() {
    let folder = ImageFolder::new();
    std::fs::write(folder.dir.path().join("base.raw"), vec![1; 4096]).unwrap();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "top.qcow2"]);
    let line =
        format!(r#""backing": [{{"path": "{}/base.raw", "format": "raw"}}]"#, folder.dir.path().display());
    let error = folder.open("top.qcow2", &[]).unwrap_err().to_string();
    assert!(error.contains(&line), "{error}");
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "loop.qcow2", "1M"]);
    folder.qemu_img(&["rebase", "-q", "-u", "-F", "qcow2", "-b", "loop.qcow2", "loop.qcow2"]);
    let error = folder.open("loop.qcow2", &[(ImageFormat::Qcow2, "loop.qcow2")]).unwrap_err();
    assert!(matches!(error, ChainError::Loop { .. }), "{error}");
}

#[test]
fn a_raw_backing_image_that_looks_like_qcow2_is_raw() {
    let folder = ImageFolder::new();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "base", "1M"]);
    folder.qemu_img(&["create", "-q", "-u", "-f", "qcow2", "-F", "qcow2", "-b", "base", "top.qcow2", "1M"]);
    let image = folder.open("top.qcow2", &[(ImageFormat::Raw, "base")]).unwrap();
    let buffer = IoBuffer::new(512, 4096).unwrap();
    let (buffer, read) = folder.reactor.block_on(image.read(buffer, 512, 0));
    read.unwrap();
    assert_eq!(&buffer.as_ref().into_slice()[..4], b"QFI\xfb");
}

#[test]
fn features_that_are_not_served_are_refused_with_a_reason() {
    let folder = ImageFolder::new();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "data_file=d.raw", "data.qcow2", "1M"]);
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "-o", "extended_l2=on", "l2.qcow2", "1M"]);
    folder.qemu_img(&["create", "-q", "-f", "raw", "raw", "1M"]);
    for (name, part) in [("data.qcow2", "external file"), ("l2.qcow2", "extended L2"), ("raw", "no qcow2")] {
        let error = domus_startup::control::chain(&folder.open(name, &[]).unwrap_err());
        assert!(error.contains(name) && error.contains(part), "{error}");
    }
}

#[test]
fn discarded_space_goes_back_to_the_host_and_zeros_read_as_zeros() {
    use std::os::unix::fs::MetadataExt;
    let folder = ImageFolder::new();
    for compat in ["compat=1.1", "compat=0.10"] {
        folder.qemu_img(&["create", "-q", "-f", "qcow2", "-o", compat, "disk.qcow2", "64M"]);
        let image = folder.open("disk.qcow2", &[]).unwrap();
        let blocks = || std::fs::metadata(folder.dir.path().join("disk.qcow2")).unwrap().blocks();
        for at in 0..16 {
            folder.write(&image, 5, MIB as usize, at * MIB);
        }
        let before = blocks();
        folder.reactor.block_on(image.discard(0, 8 * MIB)).unwrap();
        assert!(blocks() + 12_000 < before, "{compat}: {before} blocks before, {} after", blocks());
        folder.reactor.block_on(image.write_zeroes(9 * MIB, MIB, true)).unwrap();
        folder.reactor.block_on(image.write_zeroes(11 * MIB, MIB + 512, false)).unwrap();
        let read = [8 * MIB, 9 * MIB, 10 * MIB, 11 * MIB, 12 * MIB, 12 * MIB + 512];
        assert_eq!(read.map(|at| folder.byte(&image, at)), [5, 0, 5, 0, 0, 5], "{compat}");
        folder.reactor.block_on(image.flush()).unwrap();
        folder.qemu_img(&["check", "-q", "disk.qcow2"]);
    }
}

#[test]
fn a_disk_grows_and_does_not_shrink() {
    let folder = ImageFolder::new();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "disk.qcow2", "1M"]);
    let image = folder.open("disk.qcow2", &[]).unwrap();
    assert_eq!(folder.reactor.block_on(image.resize(Some(1 << 40))).unwrap(), 1 << 40);
    folder.write(&image, 1, 4096, (1 << 40) - 4096);
    assert!(folder.reactor.block_on(image.resize(Some(MIB))).is_err());
    folder.reactor.block_on(image.flush()).unwrap();
    folder.qemu_img(&["check", "-q", "disk.qcow2"]);
}

#[test]
fn a_disk_that_grows_does_not_show_more_of_its_backing_image() {
    let folder = ImageFolder::new();
    std::fs::write(folder.dir.path().join("base.raw"), vec![1; 4 * MIB as usize]).unwrap();
    folder.qemu_img(&["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "base.raw", "top.qcow2", "1M"]);
    let image = folder.open("top.qcow2", &[(ImageFormat::Raw, "base.raw")]).unwrap();
    folder.reactor.block_on(image.resize(Some(8 * MIB))).unwrap();
    let read = [0, MIB - 512, MIB, 4 * MIB - 512, 4 * MIB];
    assert_eq!(read.map(|at| folder.byte(&image, at)), [1, 1, 0, 0, 0]);
}
