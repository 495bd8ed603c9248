//! The frames that are sent: pure.

/// The first guest's address.
pub const FIRST: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The second guest's.
pub const SECOND: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// A virtio header (virtio 1.3 §5.1.6) of twelve bytes and a frame behind it.
#[derive(Clone, Debug)]
pub struct Frame {
    /// The header.
    pub header: [u8; 12],
    /// The frame.
    pub bytes: Vec<u8>,
}

impl Frame {
    /// A frame of `length` bytes that no protocol of the host's wants; above 1514 a TCP segment that is to be cut.
    pub fn new(to: [u8; 6], from: [u8; 6], length: usize) -> Self {
        let mut bytes = [to, from].concat();
        if length <= 1514 {
            // An Ethernet type for experiments (IEEE 802).
            bytes.extend([0x88, 0xb5]);
            bytes.resize(length, 0x55);
            return Self { header: [0; 12], bytes };
        }
        bytes.extend([8, 0]);
        // IP has at most 65535 bytes.
        let ip = (length - 14) as u16;
        bytes.extend([0x45, 0]);
        bytes.extend(ip.to_be_bytes());
        bytes.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        let sum = checksum(&bytes[14..34]);
        bytes[24..26].copy_from_slice(&sum.to_be_bytes());
        // From port 1 to port 9 (discard), 20 bytes of header, ACK.
        bytes.extend([0, 1, 0, 9, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
        bytes.resize(length, 0x55);
        // NEEDS_CSUM, TCPv4, 54 bytes of headers, segments of 1448 bytes, checksum from 34, at 16.
        let header = [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
        Self { header, bytes }
    }

    /// With the short header that taps and packet sockets take.
    pub fn short(&self) -> Vec<u8> {
        [&self.header[..super::wire::HEADER], &self.bytes].concat()
    }
}

fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |&low| u32::from(low)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_have_the_length_asked_for_and_a_right_ip_checksum() {
        for length in [60, 1514, 65214] {
            assert_eq!(Frame::new(SECOND, FIRST, length).bytes.len(), length);
        }
        assert_eq!(checksum(&Frame::new(SECOND, FIRST, 65214).bytes[14..34]), 0);
    }
}
