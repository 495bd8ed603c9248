//! A large segment cut into frames.
//!
//! ```text
//!   Ethernet, tags │ IP │ TCP or UDP │ payload ………………………………………
//!   ───────────── headers ──────────── gso_size │ gso_size │ … │ rest
//! ```
//!
//! Each piece gets the headers, with what differs: lengths and checksums; the identification of IPv4 counts up; the
//! sequence number of TCP; FIN and PSH are for the last piece only, CWR for the first (RFC 3168).

use super::sum::Sum;
use super::{Fields, MAX_SEGMENTS, Unfit};
use crate::header::LEN;

const TCPV4: u8 = 1;
const TCPV6: u8 = 4;
const UDP_L4: u8 = 5;
const ECN: u8 = 0x80;

const ETHER_TYPE: usize = 12;
const TAGS: [[u8; 2]; 2] = [[0x81, 0], [0x88, 0xa8]];
const IPV4: [u8; 2] = [8, 0];
const IPV6: [u8; 2] = [0x86, 0xdd];
const TCP: u8 = 6;
const UDP: u8 = 17;

const FIN_PSH: u8 = 0x09;
const CWR: u8 = 0x80;

/// A frame that is to be cut, checked against its header.
#[derive(Debug)]
pub struct Cut<'a> {
    /// Up to the payload.
    headers: &'a [u8],
    payload: &'a [u8],
    size: usize,
    network: usize,
    transport: usize,
    is_v6: bool,
    protocol: u8,
}

impl<'a> Cut<'a> {
    /// The way to cut `frame`, before which is `header`.
    ///
    /// # Errors
    /// [`Unfit`].
    pub fn new(header: &[u8; LEN], frame: &'a [u8]) -> Result<Self, Unfit> {
        let fields = Fields::from(header);
        let mut network = ETHER_TYPE + 2;
        let mut ether_type: [u8; 2] = at(frame, ETHER_TYPE)?;
        for _ in 0..TAGS.len() {
            if TAGS.contains(&ether_type) {
                ether_type = at(frame, network + 2)?;
                network += 4;
            }
        }
        let is_v6 = ether_type == IPV6;
        let (transport, found) = match ether_type {
            IPV4 => {
                let ip: [u8; 20] = at(frame, network)?;
                let is_fragment = [ip[6] & 0x3f, ip[7]] != [0, 0];
                if ip[0] >> 4 != 4 || ip[0] & 0xf < 5 || is_fragment {
                    return Err(Unfit);
                }
                (network + usize::from(ip[0] & 0xf) * 4, ip[9])
            }
            IPV6 => {
                let ip: [u8; 40] = at(frame, network)?;
                (network + 40, ip[6])
            }
            _ => return Err(Unfit),
        };
        let (protocol, checksum, headers) = match (fields.gso_type & !ECN, is_v6) {
            (TCPV4, false) | (TCPV6, true) => {
                let tcp: [u8; 20] = at(frame, transport)?;
                (TCP, 16, transport + usize::from(tcp[12] >> 4).max(5) * 4)
            }
            (UDP_L4, _) => (UDP, 6, transport + 8),
            _ => return Err(Unfit),
        };
        let (headers, payload) = frame.split_at_checked(headers).ok_or(Unfit)?;
        let place = (fields.checksum_start, fields.checksum_offset);
        if found != protocol || place != (transport, checksum) || fields.gso_size == 0 {
            return Err(Unfit);
        }
        let cut = Self { headers, payload, size: fields.gso_size, network, transport, is_v6, protocol };
        // The lengths in the headers have 16 bits.
        let longest = headers.len() - network + cut.size.min(payload.len());
        if cut.segments() > MAX_SEGMENTS || longest > usize::from(u16::MAX) { Err(Unfit) } else { Ok(cut) }
    }

    /// How many frames it becomes, at least 1.
    pub fn segments(&self) -> usize {
        self.payload.len().div_ceil(self.size).max(1)
    }

    /// How long the longest of them is.
    pub fn longest(&self) -> usize {
        self.headers.len() + self.size.min(self.payload.len())
    }

    /// Makes `into` the frame with this number, the first being 0. A number too large is as good as the last.
    pub fn segment(&self, number: usize, into: &mut Vec<u8>) {
        let last = self.segments() - 1;
        let number = number.min(last);
        let start = number * self.size;
        let payload = &self.payload[start..self.payload.len().min(start + self.size)];
        into.clear();
        into.extend_from_slice(self.headers);
        into.extend_from_slice(payload);
        // `new` has found all the headers, so nothing here is outside.
        let transport = into.len() - self.transport;
        let ip = &mut into[self.network..];
        if self.is_v6 {
            put(ip, 4, (transport as u16).to_be_bytes());
        } else {
            put(ip, 2, (ip.len() as u16).to_be_bytes());
            let identification = u16::from_be_bytes([ip[4], ip[5]]).wrapping_add(number as u16);
            put(ip, 4, identification.to_be_bytes());
            put(ip, 10, [0; 2]);
            let checksum = Sum::default().add(&ip[..self.transport - self.network]).checksum();
            put(ip, 10, checksum);
        }
        let addresses = if self.is_v6 { 8..40 } else { 12..20 };
        let pseudo =
            Sum::default().add(&ip[addresses]).add_word(self.protocol.into()).add_word(transport as u16);
        let segment = &mut into[self.transport..];
        let checksum = if self.protocol == TCP {
            let sequence = u32::from_be_bytes([segment[4], segment[5], segment[6], segment[7]]);
            put(segment, 4, sequence.wrapping_add(start as u32).to_be_bytes());
            segment[13] &= if number == last { 0xff } else { !FIN_PSH };
            segment[13] &= if number == 0 { 0xff } else { !CWR };
            16
        } else {
            put(segment, 4, (transport as u16).to_be_bytes());
            6
        };
        put(segment, checksum, [0; 2]);
        let sum = pseudo.add(segment).checksum();
        put(segment, checksum, sum);
    }
}

fn at<const N: usize>(bytes: &[u8], offset: usize) -> Result<[u8; N], Unfit> {
    bytes.get(offset..).and_then(|rest| rest.first_chunk()).copied().ok_or(Unfit)
}

fn put<const N: usize>(bytes: &mut [u8], offset: usize, value: [u8; N]) {
    bytes[offset..offset + N].copy_from_slice(&value);
}
