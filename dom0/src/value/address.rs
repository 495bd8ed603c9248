//! Ranges of IP addresses, as a config writes them.

use std::net::IpAddr;

use shared_abi::control::AddressRange;

/// An address, or a range as `ADDRESS/PREFIX`.
pub fn range(text: &str) -> Option<AddressRange> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => most,
        Some(prefix) => prefix.parse().ok().filter(|bits| *bits <= most)?,
    };
    Some(AddressRange { address, prefix })
}
