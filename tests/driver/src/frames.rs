//! Frames for NICs to carry: pure. A header before one has ten bytes (virtio 1.3 §5.1.6, without the last field).

/// An Ethernet type for experiments (IEEE 802): no kernel makes such frames by itself.
pub const TYPE: u16 = 0x88b5;
/// Everybody.
pub const ALL: [u8; 6] = [0xff; 6];
/// A header that says nothing.
pub const PLAIN: [u8; 10] = [0; 10];

/// A frame of `length` bytes, all different from those of another `seed`.
pub fn frame(to: [u8; 6], from: [u8; 6], seed: u8, length: usize) -> Vec<u8> {
    let mut frame = [&to[..], &from, &TYPE.to_be_bytes()].concat();
    frame.extend((frame.len()..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)));
    frame
}

/// A TCP segment over IPv4 of `payload` bytes with its checksum left open, and the header that says so: with segments
/// of 1448 bytes if it is large.
pub fn tcp(to: [u8; 6], from: [u8; 6], payload: usize) -> ([u8; 10], Vec<u8>) {
    let total = (40 + payload) as u16;
    let [a, b] = total.to_be_bytes();
    let ip = [0x45, 0, a, b, 0, 1, 0x40, 0, 64, 6, 0, 0, 10, 9, 0, 1, 10, 9, 0, 2];
    let [c, d] = sum(&ip[12..], 6 + u32::from(total - 20)).to_be_bytes();
    let tcp = [0x10, 0, 0x20, 0, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, c, d, 0, 0];
    let mut frame = [&to[..], &from, &[8, 0], &ip, &tcp].concat();
    let checksum = (!sum(&ip, 0)).to_be_bytes();
    frame[24..26].copy_from_slice(&checksum);
    frame.extend((0..payload).map(|at| (at % 251) as u8));
    let (kind, size) = if payload > 1448 { (1, 1448_u16.to_le_bytes()) } else { (0, [0; 2]) };
    ([1, kind, 54, 0, size[0], size[1], 34, 0, 16, 0], frame)
}

/// Whether the checksums of a frame that [`tcp`] has made are filled in and right.
pub fn tcp_is_complete(frame: &[u8]) -> bool {
    let length = u32::from(u16::from_be_bytes([frame[16], frame[17]])) - 20;
    let segment = &frame[34..34 + length as usize];
    sum(&frame[14..34], 0) == 0xffff && sum(segment, u32::from(sum(&frame[26..34], 6 + length))) == 0xffff
}

fn sum(bytes: &[u8], start: u32) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
    let mut sum = bytes.chunks(2).map(word).sum::<u32>() + start;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
