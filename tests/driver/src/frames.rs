//! Frames for NICs to carry: pure. A header before one has ten bytes (virtio 1.3 §5.1.6, without the last field).

use shared_abi::control::DropReason;

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

/// What no guest may send that is neither a router nor a bridge, each from this address, and why it is lost.
pub fn forbidden(from: [u8; 6]) -> Vec<(DropReason, Vec<u8>)> {
    let ethernet = |to: [u8; 6], ether_type: u16, payload: &[u8]| {
        [&to[..], &from, &ether_type.to_be_bytes(), payload, &[0; 46]].concat()
    };
    let tagged = |tags: &[u16]| {
        let rest = tags.iter().skip(1).flat_map(|tag| [0, 7].into_iter().chain(tag.to_be_bytes()));
        ethernet(ALL, tags[0], &rest.chain([0, 7, 8, 0, 0x45]).collect::<Vec<_>>())
    };
    let v4 = |protocol: u8, payload: &[u8]| {
        let [a, b] = (20 + payload.len() as u16).to_be_bytes();
        let head = [0x45, 0, a, b, 0, 1, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 255, 255, 255, 255];
        ethernet(ALL, 0x0800, &[&head[..], payload].concat())
    };
    let v6 = |protocol: u8, payload: &[u8]| {
        let [a, b] = (payload.len() as u16).to_be_bytes();
        let head = [0x60, 0, 0, 0, a, b, protocol, 255, 0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        ethernet([0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[&head[..], &[0xff, 2], &[0; 13], &[1], payload].concat())
    };
    let dhcp = |from: u16, to: u16, hardware: [u8; 6]| {
        let [[a, b], [c, d], [e, f]] = [from, to, 248].map(u16::to_be_bytes);
        [&[a, b, c, d, e, f, 0, 0, 2, 1, 6, 0][..], &[0; 24], &hardware, &[0; 206]].concat()
    };
    let other = [2, 9, 9, 9, 9, 9];
    vec![
        (DropReason::Tagged, tagged(&[0x8100])),
        (DropReason::Tagged, tagged(&[0x88a8])),
        (DropReason::Tagged, tagged(&[0x88a8, 0x8100])),
        (DropReason::Tagged, tagged(&[0x8100, 0x8100])),
        (DropReason::LinkControl, ethernet([1, 0x80, 0xc2, 0, 0, 0], 38, &[0x42, 0x42, 3])),
        (DropReason::LinkControl, ethernet([1, 0x80, 0xc2, 0, 0, 0xe], 0x88cc, &[2, 7, 4])),
        (DropReason::DhcpServer, v4(17, &dhcp(67, 68, from))),
        (DropReason::SourceMac, v4(17, &dhcp(68, 67, other))),
        (DropReason::DhcpServer, v6(17, &dhcp(547, 546, from))),
        (DropReason::NeighbourDiscovery, v6(58, &[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0])),
        (DropReason::NeighbourDiscovery, v4(1, &[5, 1, 0, 0, 10, 0, 0, 9])),
    ]
}
