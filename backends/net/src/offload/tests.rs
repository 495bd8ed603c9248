use proptest::prelude::*;

use super::*;

/// What is between Ethernet and payload.
#[derive(Debug, Clone, Copy)]
struct Shape {
    tags: usize,
    is_v6: bool,
    is_tcp: bool,
    /// Words of options in IPv4 and TCP.
    options: usize,
}

impl Shape {
    fn network(self) -> usize {
        14 + 4 * self.tags
    }

    fn transport(self) -> usize {
        self.network() + if self.is_v6 { 40 } else { 20 + 4 * self.options }
    }

    fn payload(self) -> usize {
        self.transport() + if self.is_tcp { 20 + 4 * self.options } else { 8 }
    }

    /// A large segment as a guest sends it, and its header. Its own lengths and checksums are rubbish.
    fn large(self, payload: &[u8], size: u16, flags: u8) -> ([u8; LEN], Vec<u8>) {
        let mut frame = vec![0x11; 12];
        for _ in 0..self.tags {
            frame.extend([0x81, 0, 0, 7]);
        }
        frame.extend(if self.is_v6 { [0x86, 0xdd] } else { [8, 0] });
        let protocol = if self.is_tcp { 6 } else { 17 };
        if self.is_v6 {
            frame.extend([0x60, 0, 0, 0, 0x77, 0x77, protocol, 64]);
            frame.extend((0..32).map(|n| n * 7));
        } else {
            frame.extend([
                0x45 + self.options as u8,
                0,
                0x77,
                0x77,
                0xff,
                0xfe,
                0x40,
                0,
                64,
                protocol,
                0x77,
                0x77,
            ]);
            frame.extend([10, 0, 0, 5, 10, 0, 0, 6]);
            frame.extend(vec![1; 4 * self.options]);
        }
        if self.is_tcp {
            frame.extend([
                0,
                80,
                0,
                81,
                0xff,
                0xff,
                0xf0,
                0,
                1,
                2,
                3,
                4,
                (5 + self.options as u8) << 4,
                flags,
            ]);
            frame.extend([9, 9, 0x77, 0x77, 0, 0]);
            frame.extend(vec![1; 4 * self.options]);
        } else {
            frame.extend([0, 80, 0, 81, 0x77, 0x77, 0x77, 0x77]);
        }
        frame.extend(payload);
        (self.header(size), frame)
    }

    fn header(self, size: u16) -> [u8; LEN] {
        let kind = match (self.is_tcp, self.is_v6) {
            (true, false) => 1,
            (true, true) => 4,
            (false, _) => 5,
        };
        let [[g0, g1], [s0, s1]] = [size, self.transport() as u16].map(u16::to_le_bytes);
        [1, kind, 0, 0, g0, g1, s0, s1, if self.is_tcp { 16 } else { 6 }, 0, 0, 0]
    }
}

/// The sum of 16-bit words as the RFC writes it, one at a time; 0xffff where a checksum in it is right.
fn naive(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// Checks a piece with nothing but what is in it; returns its payload.
fn check(shape: Shape, piece: &[u8], number: usize, count: usize, start: usize, flags: u8) -> &[u8] {
    let ip = &piece[shape.network()..];
    let transport = &piece[shape.transport()..];
    let word = |bytes: &[u8], at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
    let length = (transport.len() as u32).to_be_bytes();
    let protocol = [0, 0, 0, if shape.is_tcp { 6 } else { 17 }];
    let addresses = if shape.is_v6 { &ip[8..40] } else { &ip[12..20] };
    assert_eq!(naive(&[addresses, &length, &protocol, transport]), 0xffff, "the checksum of the segment");
    if shape.is_v6 {
        assert_eq!(usize::from(word(ip, 4)), transport.len());
    } else {
        assert_eq!(usize::from(word(ip, 2)), ip.len());
        assert_eq!(word(ip, 4), 0xfffe_u16.wrapping_add(number as u16), "the identification");
        assert_eq!(naive(&[&ip[..shape.transport() - shape.network()]]), 0xffff, "the checksum of IPv4");
    }
    if shape.is_tcp {
        let sequence = u32::from_be_bytes([transport[4], transport[5], transport[6], transport[7]]);
        assert_eq!(sequence, 0xffff_f000_u32.wrapping_add(start as u32));
        let (first, last) = (number == 0, number + 1 == count);
        let expected = flags & !(if last { 0 } else { 9 }) & !(if first { 0 } else { 0x80 });
        assert_eq!(transport[13], expected, "the flags");
    } else {
        assert_eq!(usize::from(word(transport, 4)), transport.len());
    }
    &piece[shape.payload()..]
}

fn shapes() -> impl Strategy<Value = Shape> {
    (0..3_usize, any::<bool>(), any::<bool>(), 0..11_usize).prop_map(|(tags, is_v6, is_tcp, options)| Shape {
        tags,
        is_v6,
        is_tcp,
        options,
    })
}

proptest! {
    #[test]
    fn the_pieces_of_a_segment_are_sound_packets_that_make_up_its_payload(
        shape in shapes(),
        payload in prop::collection::vec(any::<u8>(), 1..20_000),
        size in 48..9000_u16,
        flags: u8,
    ) {
        let (header, frame) = shape.large(&payload, size, flags);
        let cut = Cut::new(&header, &frame).unwrap();
        let (mut whole, mut piece) = (Vec::new(), Vec::new());
        for number in 0..cut.segments() {
            cut.segment(number, &mut piece);
            let part = check(shape, &piece, number, cut.segments(), whole.len(), flags);
            prop_assert!(part.len() == usize::from(size) || number + 1 == cut.segments());
            prop_assert!(piece.len() <= cut.longest());
            whole.extend_from_slice(part);
        }
        prop_assert!(whole == payload);
    }

    #[test]
    fn whatever_the_bytes_are_a_cut_is_bounded_and_nothing_panics(
        shape in shapes(),
        payload in prop::collection::vec(any::<u8>(), 0..5000),
        size: u16,
        patches in prop::collection::vec((0..120_usize, any::<u8>()), 0..8),
        bad_header in prop::option::of(any::<[u8; LEN]>()),
        length in 0..5000_usize,
    ) {
        let (header, mut frame) = shape.large(&payload, size, 0);
        for (at, value) in patches {
            if let Some(byte) = frame.get_mut(at) {
                *byte = value;
            }
        }
        frame.truncate(length);
        let header = bad_header.unwrap_or(header);
        let mut piece = Vec::new();
        if let Ok(cut) = Cut::new(&header, &frame) {
            prop_assert!(cut.segments() <= MAX_SEGMENTS);
            for number in 0..=cut.segments() {
                cut.segment(number, &mut piece);
                prop_assert!(piece.len() <= frame.len() && piece.len() <= cut.longest());
            }
        }
        let _ = fill(&header, &mut frame);
    }

    #[test]
    fn a_checksum_left_open_is_filled_in(shape in shapes(), payload in prop::collection::vec(any::<u8>(), 0..3000)) {
        let (header, mut frame) = shape.large(&payload, 1000, 0);
        let at = shape.transport() + usize::from(header[8]);
        let (network, length) = (shape.network(), (frame.len() - shape.transport()) as u32);
        let addresses = if shape.is_v6 { network + 8..network + 40 } else { network + 12..network + 20 };
        let pseudo = [&frame[addresses], &length.to_be_bytes(), &[0, 0, 0, if shape.is_tcp { 6 } else { 17 }]].concat();
        // What a sender puts there (virtio 1.3 §5.1.6.2).
        frame[at..at + 2].copy_from_slice(&naive(&[&pseudo]).to_be_bytes());
        fill(&header, &mut frame).unwrap();
        prop_assert_eq!(naive(&[&pseudo, &frame[shape.transport()..]]), 0xffff);
        prop_assert_ne!([frame[at], frame[at + 1]], [0, 0]);
    }
}

#[test]
fn each_mismatch_of_header_and_packet_is_refused() {
    let shape = Shape { tags: 1, is_v6: false, is_tcp: true, options: 1 };
    let (header, frame) = shape.large(&[7; 3000], 1000, 0x18);
    assert_eq!(Cut::new(&header, &frame).unwrap().segments(), 3);
    let (network, transport) = (shape.network(), shape.transport());
    let refused = |header: [u8; LEN], frame: &[u8]| Cut::new(&header, frame).is_err();
    let with = |at: usize, value: u8| {
        let mut header = header;
        header[at] = value;
        header
    };
    for (name, header) in [
        ("another family", with(1, 4)),
        ("another protocol", with(1, 5)),
        ("an unknown kind", with(1, 3)),
        ("no kind", with(1, 0)),
        ("a checksum elsewhere", with(6, header[6] + 2)),
        ("a checksum at another offset", with(8, 6)),
    ] {
        assert!(refused(header, &frame), "{name}");
    }
    let patched = |at: usize, value: u8| {
        let mut frame = frame.clone();
        frame[at] = value;
        frame
    };
    for (name, frame) in [
        ("no IP", patched(network - 1, 1)),
        ("three tags", [&frame[..12], &[0x81, 0, 0, 1, 0x81, 0, 0, 1], &frame[12..]].concat()),
        ("version 5", patched(network, 0x56)),
        ("a fragment", patched(network + 6, 0x20)),
        ("a later fragment", patched(network + 7, 1)),
        ("UDP inside", patched(network + 9, 17)),
        ("TCP longer than the frame", frame[..transport + 23].to_vec()),
        ("cut off in IP", frame[..network + 19].to_vec()),
        ("cut off in Ethernet", frame[..13].to_vec()),
    ] {
        assert!(refused(header, &frame), "{name}");
    }
    let (header, frame) = shape.large(&[7; 60_000], 40, 0);
    assert!(refused(header, &frame), "too many pieces");
    assert_eq!(fill(&with(6, 255), &mut [0; 60]), Err(Unfit));
}
