//! The addresses that are a guest's own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use shared_abi::control::{AddressRange, NicFilter};
use shared_abi::ids::MacAddress;

/// What a guest may call itself.
#[derive(Debug, Clone)]
pub struct Own {
    /// None if it may have any.
    mac: Option<[u8; 6]>,
    link_local: Ipv6Addr,
    /// None if it may have any.
    addresses: Option<Box<[AddressRange]>>,
    except: Box<[AddressRange]>,
    /// It may be a router and a DHCP server.
    pub router: bool,
}

impl Own {
    pub fn new(mac: MacAddress, rules: &NicFilter) -> Self {
        let mac = mac.bytes();
        Self {
            mac: (!rules.any_mac).then_some(mac),
            link_local: link_local(mac),
            addresses: rules.addresses.as_deref().map(Into::into),
            except: rules.except.as_slice().into(),
            router: rules.router,
        }
    }

    #[inline]
    pub fn has_mac(&self, mac: [u8; 6]) -> bool {
        self.mac.is_none_or(|own| own == mac)
    }

    #[inline]
    pub fn has_v4(&self, address: [u8; 4]) -> bool {
        self.has(Ipv4Addr::from(address).into())
    }

    #[inline]
    pub fn has_v6(&self, address: [u8; 16]) -> bool {
        let address = Ipv6Addr::from(address);
        address == self.link_local || self.has(address.into())
    }

    #[inline]
    fn has(&self, address: IpAddr) -> bool {
        let in_range = |ranges: &[AddressRange]| ranges.iter().any(|range| range.contains(address));
        self.addresses.as_deref().is_none_or(in_range) && !in_range(&self.except)
    }
}

/// The link-local address of an interface with this MAC address (RFC 4291 appendix A).
fn link_local([a, b, c, d, e, f]: [u8; 6]) -> Ipv6Addr {
    Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_local_address_is_made_of_the_mac_address() {
        assert_eq!(link_local([0x52, 0x54, 0, 0x12, 0x34, 0x56]).to_string(), "fe80::5054:ff:fe12:3456");
    }
}
