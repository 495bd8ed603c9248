//! Zeros to write where the file system cannot make a range read as zeros by itself.

use libc::iovec;

/// Bytes of zeros that all requests share.
const LEN: usize = 64 << 10;
/// Most buffers of one write: 8 MiB.
const BUFFERS: usize = 128;

/// Aligned for any direct I/O.
#[repr(align(4096))]
struct Zeroes([u8; LEN]);

static ZEROES: Zeroes = Zeroes([0; LEN]);

/// Fills `buffers` with zeros to write, at most `left` bytes of them; returns how many.
pub fn fill(buffers: &mut Vec<iovec>, left: u64) -> u64 {
    buffers.clear();
    let mut filled = 0;
    while filled < left && buffers.len() < BUFFERS {
        let len = (left - filled).min(LEN as u64);
        // The kernel reads from there and never writes: these buffers are given to writes only.
        buffers.push(iovec { iov_base: ZEROES.0.as_ptr().cast_mut().cast(), iov_len: len as usize });
        filled += len;
    }
    filled
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_zeros_are_given_as_are_left_and_8_mib_at_most() {
        let mut buffers = Vec::new();
        assert_eq!(fill(&mut buffers, 100_000), 100_000);
        assert_eq!(buffers.iter().map(|buffer| buffer.iov_len).collect::<Vec<_>>(), [65536, 34464]);
        assert_eq!(fill(&mut buffers, 1 << 40), 8 << 20);
        assert_eq!(buffers.len(), 128);
    }
}
