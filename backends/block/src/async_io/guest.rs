//! Buffers of a guest: copied from and to, never lent.
#![expect(unsafe_code, reason = "guest memory is reached through the addresses of a slot's buffers")]

use libc::iovec;
use vm_memory::VolatileSlice;

/// The buffers of one request.
#[derive(Debug)]
pub struct GuestBuffers(Vec<iovec>);

impl GuestBuffers {
    /// The buffers of a slot.
    ///
    /// # Safety
    /// They must be mapped guest memory for as long as this lives.
    pub unsafe fn new(buffers: Vec<iovec>) -> Self {
        Self(buffers)
    }

    /// Gives them back.
    pub fn into_inner(self) -> Vec<iovec> {
        self.0
    }

    /// Copies what the guest has from its byte `at` on.
    pub fn read(&self, at: u64, into: &mut [u8]) {
        self.pieces(at, into.len(), |piece, done| {
            piece.copy_to(&mut into[done..done + piece.len()]);
        });
    }

    /// Copies to the guest from its byte `at` on.
    pub fn write(&self, at: u64, from: &[u8]) {
        self.pieces(at, from.len(), |piece, done| piece.copy_from(&from[done..done + piece.len()]));
    }

    fn pieces(&self, at: u64, len: usize, mut each: impl FnMut(VolatileSlice<'_>, usize)) {
        let (mut skip, mut done) = (at as usize, 0);
        for buffer in &self.0 {
            if skip >= buffer.iov_len {
                skip -= buffer.iov_len;
                continue;
            }
            let part = (buffer.iov_len - skip).min(len - done);
            let base = buffer.iov_base.wrapping_byte_add(skip).cast();
            // SAFETY: `skip + part` is at most `iov_len`, and so many bytes are mapped there as `new` was promised.
            each(unsafe { VolatileSlice::new(base, part) }, done);
            skip = 0;
            done += part;
            if done == len {
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_copied_from_the_middle_of_several_buffers() {
        let mut memory: Vec<u8> = (0..100).collect();
        let mut at = 0;
        let buffers = [1, 30, 0, 60].map(|len| {
            let base = memory[at..].as_mut_ptr().cast();
            at += len;
            iovec { iov_base: base, iov_len: len }
        });
        // SAFETY: they lead into `memory`, which lives.
        let guest = unsafe { GuestBuffers::new(buffers.to_vec()) };
        let mut bytes = [0; 50];
        guest.read(20, &mut bytes);
        assert!(bytes.into_iter().eq(20..70));
        guest.write(29, &[0xff; 4]);
        guest.read(28, &mut bytes[..6]);
        assert_eq!(bytes[..6], [28, 0xff, 0xff, 0xff, 0xff, 33]);
    }
}
