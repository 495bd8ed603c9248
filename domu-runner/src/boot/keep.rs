//! What a packed kernel unpacks to, kept for the next start: a memory file that is sealed here before this process
//! hears anything of a guest.
//!
//! dom0 makes the file, empty, and hands it to one runner. Whatever becomes of the runner later, dom0 takes the file
//! for whole if, and only if, it can no longer be written. So there are two ends, and both are final:
//!
//! | the kernel | the file's seals |
//! |---|---|
//! | was unpacked, and its checksums are right | no write, no change of size, no more seals |
//! | was not packed, is damaged, or is too long to be kept | no more seals: it can never become whole |
//!
//! One of them is reached before the first byte of a backend, of COM1 or of a guest is looked at, and until then a
//! runner has seen nothing but dom0's message and the kernel itself. Who takes a runner over later finds no way to put
//! a kernel of their own before other domains. Who does so with a kernel made for it reaches only domains that name
//! this very kernel, whose first and last word is its own anyway.

use std::fs::File;
use std::io::Write;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use shared_abi::limits::MAX_UNPACKED;

/// An empty memory file to be filled once.
pub struct Keep {
    /// None when it is closed.
    file: Option<File>,
    /// How many bytes there is room for yet.
    room: u64,
}

impl Keep {
    /// For up to `limit` bytes, which no other limit of this process lies below.
    pub fn new(file: File, limit: u64) -> Self {
        Self { file: Some(file), room: limit.min(MAX_UNPACKED) }
    }

    /// Appends, or gives up.
    pub fn write(&mut self, bytes: &[u8]) {
        let Some(file) = &mut self.file else { return };
        match self.room.checked_sub(bytes.len() as u64) {
            Some(room) if file.write_all(bytes).is_ok() => self.room = room,
            _ => self.close(SealFlag::empty()),
        }
    }

    /// It is whole.
    pub fn finish(&mut self) {
        self.close(SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW);
    }

    fn close(&mut self, seals: SealFlag) {
        if let Some(file) = self.file.take() {
            // Only a file that is no memory file, or is mapped by somebody, cannot be sealed: dom0 sees that, too.
            let _ = fcntl(&file, FcntlArg::F_ADD_SEALS(seals | SealFlag::F_SEAL_SEAL));
        }
    }
}

impl Drop for Keep {
    fn drop(&mut self) {
        self.close(SealFlag::empty());
    }
}
