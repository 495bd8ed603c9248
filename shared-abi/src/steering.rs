//! The table by which a tap with several queues chooses the queue of a frame, in memory that the kernel, dom0 and the
//! NIC's backend share.
//!
//! dom0 makes the table as a BPF array with one mappable element, and attaches a program that reads it to the tap. The
//! backend maps the table and writes it when a driver sets its rules (`VIRTIO_NET_CTRL_MQ_RSS_CONFIG`, virtio 1.3
//! §5.1.6.5.6.4). The hash is the Toeplitz hash over the addresses, and over the ports if the rules say so. BPF must
//! compute it without loops, so the table holds, for each byte value at each place, its contribution to the hash:
//!
//! ```text
//! word 0        hash types (HASH_…)
//! word 1        entries of the indirection table, less 1
//! word 2        the queue pair of a frame without a hash
//! word 3        0
//! word 4..132   indirection table: queue pairs
//! word 132..    place 0: 256 words; … place 35: 256 words
//! ```

/// `VIRTIO_NET_RSS_HASH_TYPE_IPv4`: addresses of IPv4 packets.
pub const HASH_IPV4: u32 = 1 << 0;
/// `VIRTIO_NET_RSS_HASH_TYPE_TCPv4`: ports, too, of TCP in IPv4.
pub const HASH_TCPV4: u32 = 1 << 1;
/// `VIRTIO_NET_RSS_HASH_TYPE_UDPv4`: ports, too, of UDP in IPv4.
pub const HASH_UDPV4: u32 = 1 << 2;
/// `VIRTIO_NET_RSS_HASH_TYPE_IPv6`: addresses of IPv6 packets.
pub const HASH_IPV6: u32 = 1 << 3;
/// `VIRTIO_NET_RSS_HASH_TYPE_TCPv6`: ports, too, of TCP in IPv6 without extension headers.
pub const HASH_TCPV6: u32 = 1 << 4;
/// `VIRTIO_NET_RSS_HASH_TYPE_UDPv6`: ports, too, of UDP in IPv6 without extension headers.
pub const HASH_UDPV6: u32 = 1 << 5;
/// All hash types there are here.
pub const HASH_ALL: u32 = HASH_IPV4 | HASH_TCPV4 | HASH_UDPV4 | HASH_IPV6 | HASH_TCPV6 | HASH_UDPV6;

/// Bytes of a key.
pub const KEY: usize = 40;
/// Most entries of an indirection table.
pub const ENTRIES: usize = 128;
/// Bytes that are hashed at most: two IPv6 addresses and two ports.
pub const PLACES: usize = 36;

/// Word of the hash types.
pub const TYPES: usize = 0;
/// Word of the indirection table's mask.
pub const MASK: usize = 1;
/// Word of the queue pair for frames without a hash.
pub const UNCLASSIFIED: usize = 2;
/// First word of the indirection table.
pub const TABLE: usize = 4;
/// First word of what bytes add to the hash.
pub const ADDENDS: usize = TABLE + ENTRIES;
/// All words.
pub const WORDS: usize = ADDENDS + PLACES * 256;

/// The key that Microsoft's RSS specification gives as an example, and that every NIC starts with.
pub const USUAL_KEY: [u8; KEY] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0,
    0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42,
    0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// How frames are spread over queue pairs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// `HASH_…`; others are ignored.
    pub hash_types: u32,
    /// What the hash depends on.
    pub key: [u8; KEY],
    /// Queue pairs; the hash's last bits choose one. A power of two of them, 1 to [`ENTRIES`].
    pub table: Vec<u16>,
    /// The queue pair of frames without a hash.
    pub unclassified: u16,
}

impl Rules {
    /// Flows spread evenly over the first `pairs` queue pairs, at least 1.
    pub fn even(pairs: u16) -> Self {
        let table = (0..ENTRIES as u16).map(|entry| entry % pairs.max(1)).collect();
        Self { hash_types: HASH_ALL, key: USUAL_KEY, table, unclassified: 0 }
    }

    /// The table's words. None if the indirection table is not as it should be.
    pub fn words(&self) -> Option<Vec<u32>> {
        let entries = self.table.len();
        if !entries.is_power_of_two() || entries > ENTRIES {
            return None;
        }
        let mut words = vec![0; WORDS];
        words[TYPES] = self.hash_types & HASH_ALL;
        words[MASK] = entries as u32 - 1;
        words[UNCLASSIFIED] = self.unclassified.into();
        for (word, pair) in words[TABLE..].iter_mut().zip(&self.table) {
            *word = (*pair).into();
        }
        for place in 0..PLACES {
            for value in 0..256 {
                let bits = (0..8).filter(|bit| value & (0x80 >> bit) != 0);
                words[ADDENDS + place * 256 + value] =
                    bits.fold(0, |sum, bit| sum ^ self.window(place * 8 + bit));
            }
        }
        Some(words)
    }

    /// The 32 bits of the key from this bit on.
    fn window(&self, bit: usize) -> u32 {
        let (byte, shift) = (bit / 8, bit % 8);
        let five =
            (0..5).fold(0_u64, |all, n| all << 8 | u64::from(self.key.get(byte + n).copied().unwrap_or(0)));
        (five >> (8 - shift)) as u32
    }
}

/// The hash of these bytes, of which there are at most [`PLACES`], by a table's words.
pub fn hash(words: &[u32], bytes: &[u8]) -> u32 {
    let addends = bytes.iter().enumerate().map(|(place, byte)| ADDENDS + place * 256 + usize::from(*byte));
    addends.filter_map(|word| words.get(word)).fold(0, |sum, addend| sum ^ addend)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// From Microsoft's "Verifying the RSS Hash Calculation".
    #[test]
    fn hashes_are_those_of_the_published_examples() {
        let words = Rules::even(4).words().unwrap();
        let (source, destination) = (Ipv4Addr::new(66, 9, 149, 187), Ipv4Addr::new(161, 142, 100, 80));
        let mut bytes = [source.octets(), destination.octets()].concat();
        assert_eq!(hash(&words, &bytes), 0x323e_8fc2);
        bytes.extend([2794_u16.to_be_bytes(), 1766_u16.to_be_bytes()].concat());
        assert_eq!(hash(&words, &bytes), 0x51cc_c178);

        let source: Ipv6Addr = "3ffe:2501:200:1fff::7".parse().unwrap();
        let destination: Ipv6Addr = "3ffe:2501:200:3::1".parse().unwrap();
        let mut bytes = [source.octets(), destination.octets()].concat();
        assert_eq!(hash(&words, &bytes), 0x2cc1_8cd5);
        bytes.extend([2794_u16.to_be_bytes(), 1766_u16.to_be_bytes()].concat());
        assert_eq!(hash(&words, &bytes), 0x4020_7d3d);
    }

    #[test]
    fn an_indirection_table_has_a_power_of_two_of_entries() {
        for (entries, good) in [(0, false), (1, true), (3, false), (128, true), (256, false)] {
            let rules = Rules { table: vec![0; entries], ..Rules::even(1) };
            assert_eq!(rules.words().is_some(), good, "{entries}");
        }
    }
}
