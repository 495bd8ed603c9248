//! The network: ARP and ICMP echo with whoever has the address `mini.peer`, as `mini.ip`.

use crate::body::net::Net;
use crate::body::{Failed, Machine, Outcome, clock, ensure, say, sys};

/// Bytes of the headers.
pub const ETHERNET: usize = 14;
/// Without options.
pub const IP: usize = 20;
const ICMP: usize = 8;

/// Finds the peer by ARP, then sends echoes of growing size and compares each answer byte for byte: `mini.rounds` of
/// them, or as many as fit into `mini.ms` milliseconds.
pub fn ping(machine: &Machine) -> Outcome {
    let line = &machine.start.line;
    let addresses = (line.value("mini.ip").and_then(address), line.value("mini.peer").and_then(address));
    let (Some(own), Some(peer)) = addresses else {
        say!("reason mini.ip and mini.peer are not two IPv4 addresses");
        return Err(Failed);
    };
    let mut net = Net::open()?;
    let peer_mac = resolve(&mut net, own, peer)?;
    let end = line.number("mini.ms").map(clock::deadline);
    let tries = line.number("mini.tries").unwrap_or(3);
    let (begin, mut lost, mut worst, mut round) = (sys::tsc(), 0, 0, 0);
    while end.map_or(round < machine.rounds(50), |end| sys::tsc() < end) {
        let len = (round as usize * 37 % 1400) + 8;
        let mut frame = [0; ETHERNET + IP + ICMP + 1408];
        let total = echo(&mut frame, (net.mac, own), (peer_mac, peer), round as u16, len);
        let sent = sys::tsc();
        let mut answered = false;
        for _ in 0..tries {
            net.send(&frame[..total])?;
            if wait_echo(&mut net, &frame[..total], 2000)? {
                answered = true;
                break;
            }
            lost += 1;
        }
        ensure!(answered, "echo {round} of {len} bytes was not answered");
        worst = clock::ns(sys::tsc() - sent).max(worst);
        round += 1;
    }
    let ns = clock::ns(sys::tsc() - begin) / round.max(1);
    say!("value net-ping rounds={round} lost={lost} mean_ns={ns} worst_ns={worst}");
    net.close()
}

/// Answers ARP and echo requests as `mini.ip`, for `mini.ms` milliseconds.
pub fn answer(machine: &Machine) -> Outcome {
    let Some(own) = machine.start.line.value("mini.ip").and_then(address) else {
        say!("reason mini.ip is no IPv4 address");
        return Err(Failed);
    };
    let mut net = Net::open()?;
    say!("value net-answer begins");
    let deadline = clock::deadline(machine.start.line.number("mini.ms").unwrap_or(5000));
    let mut count = 0_u64;
    while sys::tsc() < deadline {
        let mut frame = [0; 1514];
        let Some(len) = net.receive(&mut frame)? else { continue };
        if turned(&mut frame[..len], net.mac, own) {
            net.send(&frame[..len])?;
            count += 1;
        }
    }
    say!("value net-answer frames={count}");
    net.close()
}

/// Makes the answer of a request that is to this address; false if it is none.
fn turned(frame: &mut [u8], mac: [u8; 6], own: [u8; 4]) -> bool {
    let at = ETHERNET + IP;
    if frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 1] && frame[38..42] == own {
        frame.copy_within(22..32, 32);
        frame[22..28].copy_from_slice(&mac);
        frame[28..32].copy_from_slice(&own);
        frame[21] = 2;
    } else if frame.len() >= at + ICMP
        && frame[12..14] == [8, 0]
        && frame[ETHERNET + 9] == 1
        && frame[ETHERNET + 16..at] == own
        && frame[at] == 8
    {
        // The sum of the two addresses is the same after they have changed places.
        frame.copy_within(ETHERNET + 12..ETHERNET + 16, ETHERNET + 16);
        frame[ETHERNET + 12..ETHERNET + 16].copy_from_slice(&own);
        // From type 8 to type 0: the checksum grows by what the type has lost (RFC 1624).
        frame[at] = 0;
        let sum = u32::from(u16::from_be_bytes([frame[at + 2], frame[at + 3]])) + 0x0800;
        let sum = ((sum & 0xffff) + (sum >> 16)) as u16;
        frame[at + 2..at + 4].copy_from_slice(&sum.to_be_bytes());
    } else {
        return false;
    }
    frame.copy_within(6..12, 0);
    frame[6..12].copy_from_slice(&mac);
    true
}

/// An IPv4 address.
pub fn address(text: &str) -> Option<[u8; 4]> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    let found = [parts.next()??, parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then_some(found)
}

/// Finds a peer's MAC address by ARP.
pub fn resolve(net: &mut Net, own: [u8; 4], peer: [u8; 4]) -> Result<[u8; 6], Failed> {
    let mut request = [0; 60];
    request[..6].fill(0xff);
    request[6..12].copy_from_slice(&net.mac);
    request[12..22].copy_from_slice(&[0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1]);
    request[22..28].copy_from_slice(&net.mac);
    request[28..32].copy_from_slice(&own);
    request[38..42].copy_from_slice(&peer);
    for _ in 0..20 {
        net.send(&request)?;
        let deadline = clock::deadline(500);
        while sys::tsc() < deadline {
            let mut frame = [0; 128];
            if let Some(len) = net.receive(&mut frame)? {
                let reply =
                    len >= 42 && frame[12..14] == [8, 6] && frame[20..22] == [0, 2] && frame[28..32] == peer;
                if reply {
                    let mut mac = [0; 6];
                    mac.copy_from_slice(&frame[22..28]);
                    return Ok(mac);
                }
            }
        }
    }
    say!("reason nobody answers ARP for mini.peer");
    Err(Failed)
}

type End = ([u8; 6], [u8; 4]);

/// Writes an echo request with `len` bytes of data; returns the frame's length.
fn echo(frame: &mut [u8], from: End, to: End, sequence: u16, len: usize) -> usize {
    let total = ETHERNET + IP + ICMP + len;
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[ETHERNET..];
    ip[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 1, 0, 0]);
    ip[2..4].copy_from_slice(&((IP + ICMP + len) as u16).to_be_bytes());
    ip[12..16].copy_from_slice(&from.1);
    ip[16..20].copy_from_slice(&to.1);
    let sum = checksum(&ip[..IP]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let icmp = &mut frame[ETHERNET + IP..total];
    icmp[..ICMP].copy_from_slice(&[8, 0, 0, 0, 0x4d, 0x47, 0, 0]);
    icmp[6..8].copy_from_slice(&sequence.to_be_bytes());
    for (i, byte) in icmp[ICMP..].iter_mut().enumerate() {
        *byte = (i as u8) ^ sequence as u8;
    }
    let sum = checksum(icmp);
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    total
}

fn wait_echo(net: &mut Net, request: &[u8], ms: u64) -> Result<bool, Failed> {
    let deadline = clock::deadline(ms);
    while sys::tsc() < deadline {
        let mut frame = [0; 1514];
        let Some(len) = net.receive(&mut frame)? else { continue };
        let at = ETHERNET + IP;
        let reply =
            len >= request.len() && frame[12..14] == [8, 0] && frame[ETHERNET + 9] == 1 && frame[at] == 0;
        if reply && frame[at + 4..request.len()] == request[at + 4..] {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_the_rfc_1071_example() {
        assert_eq!(checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
    }

    #[test]
    fn an_echo_request_becomes_its_answer_and_a_strangers_stays() {
        let mut frame = [0; ETHERNET + IP + ICMP + 32];
        let (here, there) = (([2; 6], [10, 0, 0, 1]), ([4; 6], [10, 0, 0, 2]));
        let len = echo(&mut frame, here, there, 7, 32);
        let mut other = frame;
        assert!(!turned(&mut other[..len], [6; 6], [10, 0, 0, 3]) && other == frame);
        assert!(turned(&mut frame[..len], there.0, there.1));
        assert_eq!((&frame[..6], &frame[6..12]), (&here.0[..], &there.0[..]));
        assert_eq!(checksum(&frame[ETHERNET..ETHERNET + IP]), 0);
        assert_eq!((checksum(&frame[ETHERNET + IP..len]), frame[ETHERNET + IP]), (0, 0));
    }

    #[test]
    fn addresses_have_four_numbers() {
        assert_eq!(address("10.0.2.15"), Some([10, 0, 2, 15]));
        assert_eq!(address("10.0.2"), None);
        assert_eq!(address("10.0.2.256"), None);
        assert_eq!(address("10.0.2.1.1"), None);
    }
}
