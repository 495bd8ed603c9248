//! Memory that processes share.

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// `MFD_NOEXEC_SEAL`: it can never be made executable.
const NOEXEC_SEAL: u32 = 8;

/// The flags that [`sealed`] makes files with: those that it prefers, and those that kernels before 6.3 know.
pub const FLAGS: [u32; 2] = {
    let usual = libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING;
    [usual | NOEXEC_SEAL, usual]
};

/// A memory file of `bytes` zeros, sealed against changes of its size and of its seals: whoever maps it need not fear
/// `SIGBUS`.
///
/// # Errors
/// No memory, or no descriptor.
pub fn sealed(name: &str, bytes: u64) -> io::Result<File> {
    let file = open(name)?;
    file.set_len(bytes)?;
    let seals = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SEAL;
    fcntl(&file, FcntlArg::F_ADD_SEALS(seals))?;
    Ok(file)
}

/// An empty memory file without seals, which is not executable.
///
/// # Errors
/// No memory, or no descriptor.
pub fn open(name: &str) -> io::Result<File> {
    let [preferred, usual] = FLAGS.map(MFdFlags::from_bits_retain);
    Ok(File::from(match memfd_create(name, preferred) {
        Err(Errno::EINVAL) => memfd_create(name, usual)?,
        made => made?,
    }))
}
