//! A client's stream with bounds of our own: zlink would keep 100 MiB of an unfinished call, and every descriptor that
//! comes with it.

use zlink::connection::socket::{ReadHalf, ReadResult, Socket};
use zlink::tokio::unix::Stream;

/// Longest call, in bytes: the longest config, as JSON within JSON, and more.
const MAX_CALL: usize = 1 << 20;

/// A stream of which at most [`MAX_CALL`] bytes make one call, and whose descriptors are closed unseen.
#[derive(Debug)]
pub struct Bounded(pub Stream);

/// The reading half.
#[derive(Debug)]
pub struct BoundedRead {
    inner: <Stream as Socket>::ReadHalf,
    /// Bytes since the last end of a call.
    unfinished: usize,
}

impl Socket for Bounded {
    type ReadHalf = BoundedRead;
    type WriteHalf = <Stream as Socket>::WriteHalf;

    fn split(self) -> (Self::ReadHalf, Self::WriteHalf) {
        let (inner, write) = self.0.split();
        (BoundedRead { inner, unfinished: 0 }, write)
    }
}

impl ReadHalf for BoundedRead {
    async fn read(&mut self, buffer: &mut [u8]) -> zlink::Result<ReadResult> {
        let mut result = self.inner.read(buffer).await?;
        drop(result.take_fds());
        let read = &buffer[..result.bytes_read()];
        // A Varlink message ends with a NUL byte.
        self.unfinished = match read.iter().rposition(|byte| *byte == 0) {
            Some(end) => read.len() - end - 1,
            None => self.unfinished + read.len(),
        };
        if self.unfinished > MAX_CALL { Err(zlink::Error::BufferOverflow) } else { Ok(result) }
    }
}
