//! A driver for virtio-net (virtio 1.3 §5.1) without offloads: one receive and one transmit queue, whole frames.

use super::ring::{Queue, Segment};
use super::virtio::{EVENT_IDX, Virtio};
use super::{Failed, arena, clock, ensure, sys};

/// `VIRTIO_NET_F_MAC`.
pub const MAC: u64 = 1 << 5;
/// `VIRTIO_NET_F_MRG_RXBUF`.
pub const MRG_RXBUF: u64 = 1 << 15;
/// Bytes of `virtio_net_hdr` with VERSION_1.
pub const HEADER: u64 = 12;
/// Bytes of each buffer.
const BUFFER: u64 = 2048;
const SIZE: u16 = 64;

/// A network device under way.
pub struct Net {
    /// The transport.
    pub virtio: Virtio,
    /// Its address.
    pub mac: [u8; 6],
    /// Receive queue.
    pub rx: Queue,
    /// Transmit queue.
    pub tx: Queue,
    rx_buffers: u64,
    tx_buffers: u64,
}

impl Net {
    /// Brings the first network device up, with all receive buffers posted.
    pub fn open() -> Result<Self, Failed> {
        let virtio = Virtio::open(1, 0)?;
        let features = virtio.negotiate(MAC | MRG_RXBUF | EVENT_IDX)?;
        ensure!(features & MAC != 0, "the network device has no address");
        let mut mac = [0; 6];
        sys::get(virtio.config.at, &mut mac);
        let last = virtio.msix.count - 1;
        let rx = virtio.queue(0, SIZE, features, 1.min(last))?;
        let tx = virtio.queue(1, SIZE, features, 2.min(last))?;
        let (rx_buffers, tx_buffers) =
            (arena::alloc(u64::from(SIZE) * BUFFER, 4096), arena::alloc(u64::from(SIZE) * BUFFER, 4096));
        let mut net = Self { virtio, mac, rx, tx, rx_buffers, tx_buffers };
        net.rx.disarm();
        net.tx.disarm();
        virtio.go()?;
        net.post();
        Ok(net)
    }

    fn post(&mut self) {
        while self.rx.room() > 0 {
            let at = self.rx_buffers + u64::from(self.rx.next_head()) * BUFFER;
            self.rx.add(&[Segment { at, len: BUFFER as u32, writable: true }], false);
        }
        self.rx.kick();
    }

    /// Sends one frame of at most 1514 bytes.
    pub fn send(&mut self, frame: &[u8]) -> Result<(), Failed> {
        let deadline = clock::deadline(10_000);
        loop {
            while self.tx.pop()?.is_some() {}
            if self.tx.room() > 0 {
                break;
            }
            ensure!(sys::tsc() < deadline, "no frame left the transmit queue in 10 s");
        }
        let at = self.tx_buffers + u64::from(self.tx.next_head()) * BUFFER;
        sys::fill(at, HEADER, 0);
        sys::put(at + HEADER, frame);
        self.tx.add(&[Segment { at, len: (HEADER as usize + frame.len()) as u32, writable: false }], false);
        self.tx.kick();
        Ok(())
    }

    /// Takes one received frame into `frame`; its length, or `None` if nothing has come.
    pub fn receive(&mut self, frame: &mut [u8]) -> Result<Option<usize>, Failed> {
        let Some((head, len)) = self.rx.pop()? else { return Ok(None) };
        ensure!(u64::from(len) >= HEADER && u64::from(len) <= BUFFER, "a received frame has {len} bytes");
        let len = (u64::from(len) - HEADER) as usize;
        let len = len.min(frame.len());
        sys::get(self.rx_buffers + u64::from(head) * BUFFER + HEADER, &mut frame[..len]);
        self.post();
        Ok(Some(len))
    }

    /// Takes the device down, so that the arena may be emptied.
    pub fn close(self) -> Result<(), Failed> {
        self.virtio.reset()
    }
}
