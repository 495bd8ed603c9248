//! qcow2 images, opened and used as the backend does: whatever the bytes, there is an answer or an error, nothing is
//! read from anywhere but the image and the one backing image that is listed, and nothing is written to the latter.
//!
//! An input is 24 bytes that say what is done, then the image. Each operation has an offset anywhere in the disk.
#![no_main]

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use domus_block::async_io::reactor::Reactor;
use domus_block::async_io::{AsyncDisk, buffer};
use domus_block::qcow2::{Image, OpenImage};
use domus_block::uring::NewUring;
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use shared_abi::control::ImageFormat;

const OPERATIONS: usize = 8;
/// Bytes that say what an operation is.
const OPERATION: usize = 3;
const BASE: [u8; 4096] = [0xb5; 4096];

static REACTOR: LazyLock<Arc<Reactor>> = LazyLock::new(|| {
    let ring = NewUring::new(&[]).expect("a ring").enable().expect("an enabled ring");
    Arc::new(Reactor::new(ring))
});

fn file(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create(c"image", MFdFlags::MFD_CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("a memfd takes bytes");
    file
}

async fn operate(image: &Image, size: u64, operation: &[u8]) {
    let [what, place, len] = operation else { return };
    let sectors = size / 512;
    let first = (u128::from(sectors) * u128::from(*place) / 256) as u64;
    let count = (u64::from(*len) * u64::from(*len) / 16 + 1).min(sectors - first);
    let (offset, len) = (first * 512, count * 512);
    let bytes = buffer(len as usize).expect("memory");
    // Errors are what is expected.
    let _ = match what % 8 {
        0..3 => image.read(bytes, len as usize, offset).await.1,
        3 | 4 => image.write(bytes, len as usize, offset, what & 8 != 0).await.1,
        5 => image.write_zeroes(offset, len, what & 8 != 0).await,
        6 => image.discard(offset, len).await,
        _ => image.flush().await,
    };
}

fuzz_target!(|bytes: &[u8]| {
    let Some((operations, bytes)) = bytes.split_at_checked(OPERATIONS * OPERATION) else { return };
    let image = OpenImage { path: PathBuf::from("/d/image"), file: file(bytes), direct: false };
    let mut base = file(&BASE);
    let behind = base.try_clone().expect("another descriptor");
    let behind = OpenImage { path: PathBuf::from("/d/base"), file: behind, direct: false };
    REACTOR.block_on(async {
        let backing = vec![(ImageFormat::Raw, behind)];
        let open = Image::open(&REACTOR, image, ImageFormat::Qcow2, backing, true, false);
        let image = match open.await {
            Ok(image) => image,
            Err(error) => {
                let text = domus_startup::control::chain(&error);
                return assert!(!text.contains('\n'), "more than one line: {text}");
            }
        };
        let size = image.size().await;
        for operation in operations.chunks(OPERATION) {
            operate(&image, size, operation).await;
        }
        let _ = image.flush().await;
    });
    let mut after = Vec::new();
    base.rewind().expect("a memfd seeks");
    base.read_to_end(&mut after).expect("a memfd is read");
    assert!(after == BASE, "the backing image was written to");
});
