//! UDP ports (RFC 768): who says what only a DHCP server says, and for whom a DHCP client asks.

use shared_abi::control::DropReason;

use super::own::Own;
use super::{Verdict, field};

const DHCP_SERVER: u16 = 67;
const DHCP_CLIENT: u16 = 68;
const DHCPV6_SERVER: u16 = 547;

/// `chaddr` in a DHCP message (RFC 2131), behind the UDP header, and before it type and length of such addresses.
const CLIENT_ADDRESS: usize = 8 + 28;
const ADDRESS_KIND: usize = 8 + 1;
const ETHERNET: [u8; 2] = [1, 6];

fn ports(datagram: &[u8]) -> Result<[u16; 2], DropReason> {
    let [a, b, c, d, ..]: [u8; 8] = field(datagram, 0)?;
    Ok([[a, b], [c, d]].map(u16::from_be_bytes))
}

/// Whether it goes from a DHCP client to a server.
pub fn is_dhcp_client(datagram: &[u8]) -> bool {
    ports(datagram) == Ok([DHCP_CLIENT, DHCP_SERVER])
}

/// Whether what it says is judged, besides its ports.
pub fn is_judged(datagram: &[u8]) -> Result<bool, DropReason> {
    Ok(ports(datagram)?[1] == DHCP_SERVER)
}

/// Judges a datagram in IPv4, or the first fragment of one.
///
/// A server gives the lease to the address inside the message, not to the frame's.
pub fn check_v4(own: &Own, datagram: &[u8], fragmented: bool) -> Verdict {
    match ports(datagram)? {
        // A relay speaks for others, and in the server's name.
        [DHCP_SERVER, _] | [_, DHCP_SERVER] if own.router => Ok(()),
        [DHCP_SERVER, _] => Err(DropReason::DhcpServer),
        [_, DHCP_SERVER] if fragmented => Err(DropReason::Malformed),
        [_, DHCP_SERVER] => {
            let (kind, address) = (field::<2>(datagram, ADDRESS_KIND)?, field(datagram, CLIENT_ADDRESS)?);
            if kind != ETHERNET || !own.has_mac(address) { Err(DropReason::SourceMac) } else { Ok(()) }
        }
        _ => Ok(()),
    }
}

/// Judges a datagram in IPv6, or the first fragment of one.
pub fn check_v6(own: &Own, datagram: &[u8]) -> Verdict {
    if ports(datagram)?[0] == DHCPV6_SERVER && !own.router { Err(DropReason::DhcpServer) } else { Ok(()) }
}
