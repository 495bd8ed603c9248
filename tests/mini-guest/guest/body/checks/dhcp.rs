//! An address by DHCP (RFC 2131, as far as the offer), and a datagram to `mini.peer`, port 7, by way of the router.

use super::net::{ETHERNET, IP, address, checksum, resolve};
use crate::body::net::Net;
use crate::body::{Failed, Machine, Outcome, clock, ensure, say, sys};

const UDP: usize = 8;
/// A BOOTP message up to its options, with the magic cookie.
const BOOTP: usize = 240;
const NUMBER: [u8; 4] = [0x4d, 0x49, 0x4e, 0x49];

type End = ([u8; 6], [u8; 4], u16);

/// Gets an offer, and has a datagram answered byte for byte.
pub fn dhcp(machine: &Machine) -> Outcome {
    let Some(peer) = machine.start.line.value("mini.peer").and_then(address) else {
        say!("reason mini.peer is no IPv4 address");
        return Err(Failed);
    };
    let mut net = Net::open()?;
    let (own, router) = offer(&mut net)?;
    let router_mac = resolve(&mut net, own, router)?;
    let mac = net.mac;
    let payload: [u8; 64] = core::array::from_fn(|i| i as u8 ^ 0x5a);
    for _ in 0..machine.rounds(5) {
        let mut frame = [0; 256];
        let total = datagram(&mut frame, (mac, own, 4007), (router_mac, peer, 7), &payload);
        ensure!(answered(&mut net, &frame[..total], peer, &payload)?, "no answer from mini.peer, port 7");
    }
    say!("value net-dhcp address={}.{}.{}.{}", own[0], own[1], own[2], own[3]);
    net.close()
}

/// The address and the router that a server offers.
fn offer(net: &mut Net) -> Result<([u8; 4], [u8; 4]), Failed> {
    let mut message = [0; BOOTP + 8];
    message[..8].copy_from_slice(&[1, 1, 6, 0, NUMBER[0], NUMBER[1], NUMBER[2], NUMBER[3]]);
    message[28..34].copy_from_slice(&net.mac);
    message[236..244].copy_from_slice(&[0x63, 0x82, 0x53, 0x63, 53, 1, 1, 255]);
    let mut frame = [0; 512];
    let (from, to) = ((net.mac, [0; 4], 68), ([0xff; 6], [0xff; 4], 67));
    let total = datagram(&mut frame, from, to, &message);
    for _ in 0..20 {
        net.send(&frame[..total])?;
        let deadline = clock::deadline(500);
        while sys::tsc() < deadline {
            let mut reply = [0; 1514];
            let Some(len) = net.receive(&mut reply)? else { continue };
            let at = ETHERNET + IP + UDP;
            let ours = len > at + BOOTP
                && reply[12..14] == [8, 0]
                && reply[ETHERNET + 9] == 17
                && reply[ETHERNET + IP + 2..ETHERNET + IP + 4] == [0, 68]
                && reply[at] == 2
                && reply[at + 4..at + 8] == NUMBER;
            if !ours {
                continue;
            }
            if let Some(router) = option(&reply[at + BOOTP..len], 3) {
                let mut own = [0; 4];
                own.copy_from_slice(&reply[at + 16..at + 20]);
                return Ok((own, router));
            }
        }
    }
    say!("reason nobody offers an address");
    Err(Failed)
}

/// The first four bytes of an option.
fn option(mut options: &[u8], wanted: u8) -> Option<[u8; 4]> {
    loop {
        match *options {
            [0, ref rest @ ..] => options = rest,
            [code, len, ref rest @ ..] if code != 255 && rest.len() >= usize::from(len) => {
                let (value, more) = rest.split_at(len.into());
                if code == wanted {
                    return value.get(..4)?.try_into().ok();
                }
                options = more;
            }
            _ => return None,
        }
    }
}

/// Writes a UDP datagram without a checksum, which IPv4 allows; returns the frame's length.
fn datagram(frame: &mut [u8], from: End, to: End, payload: &[u8]) -> usize {
    let total = ETHERNET + IP + UDP + payload.len();
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&from.0);
    frame[12..14].copy_from_slice(&[8, 0]);
    let ip = &mut frame[ETHERNET..total];
    ip[..12].copy_from_slice(&[0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0]);
    ip[2..4].copy_from_slice(&((IP + UDP + payload.len()) as u16).to_be_bytes());
    ip[12..16].copy_from_slice(&from.1);
    ip[16..20].copy_from_slice(&to.1);
    let sum = checksum(&ip[..IP]);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    let udp = &mut ip[IP..];
    udp[..2].copy_from_slice(&from.2.to_be_bytes());
    udp[2..4].copy_from_slice(&to.2.to_be_bytes());
    udp[4..6].copy_from_slice(&((UDP + payload.len()) as u16).to_be_bytes());
    udp[6..8].fill(0);
    udp[8..].copy_from_slice(payload);
    total
}

/// Sends the frame until the peer has sent its payload back.
fn answered(net: &mut Net, frame: &[u8], peer: [u8; 4], payload: &[u8]) -> Result<bool, Failed> {
    for _ in 0..20 {
        net.send(frame)?;
        let deadline = clock::deadline(500);
        while sys::tsc() < deadline {
            let mut reply = [0; 1514];
            let Some(len) = net.receive(&mut reply)? else { continue };
            let at = ETHERNET + IP + UDP;
            let back = len >= at + payload.len()
                && reply[12..14] == [8, 0]
                && reply[ETHERNET + 9] == 17
                && reply[ETHERNET + 12..ETHERNET + 16] == peer;
            if back && reply[at..at + payload.len()] == *payload {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_option_is_found_behind_others_and_not_beyond_the_end() {
        assert_eq!(option(&[0, 53, 1, 2, 3, 4, 10, 0, 0, 1, 255], 3), Some([10, 0, 0, 1]));
        for bad in [&[][..], &[255, 3, 4, 1, 2, 3, 4], &[3, 4, 1, 2], &[3, 2, 1, 2], &[3]] {
            assert_eq!(option(bad, 3), None, "{bad:?}");
        }
    }
}
