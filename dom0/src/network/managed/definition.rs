//! A network's definition: text, then types that refuse what they do not know, then a value that can be acted on.
//!
//! | left out | means |
//! |---|---|
//! | `bridge` | called as the network |
//! | `dhcp` | what the first IPv4 network has beside the host's own address |
//! | `hosts` | none |
//! | `domain` | none |
//! | `forward` | `"nat"` |
//! | `host_access` | `false` |
//! | `autostart` | `false` |

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared_abi::control::AddressRange;
use shared_abi::{MacAddress, NetworkName};

use crate::value::address::range;
use crate::value::names::is_interface;
use crate::value::place::ConfigError;

/// Longest definition, in bytes.
pub const MAX_DEFINITION: usize = 64 * 1024;

/// Most addresses of the host, and most fixed leases.
const MAX_ADDRESSES: usize = 8;
const MAX_HOSTS: usize = 512;

/// A network that dom0 manages: a bridge of the host's, with addresses for guests and a way out.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(title = "Domus network")]
pub struct NetworkFile {
    /// Where the schema is, for editors. Domus does not read it.
    #[serde(rename = "$schema", default, skip_serializing_if = "Option::is_none")]
    pub schema: Option<String>,
    /// 1 to 15 of a-z A-Z 0-9 _ -, the first a letter or digit.
    pub name: String,
    /// The bridge that is made for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// The host's own addresses there, each with a prefix length, such as "10.5.0.1/24".
    pub addresses: Vec<String>,
    /// The IPv4 addresses that guests get, or false for none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dhcp: Option<DhcpFile>,
    /// Guests that always get the same address.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostFile>,
    /// The DNS domain of the guests' names: those of their domains, or those in hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub domain: Option<String>,
    /// What becomes of packets that leave the network.
    #[serde(default)]
    pub forward: Forward,
    /// The guests reach what listens on the host; otherwise only DHCP, DNS and ping.
    #[serde(default)]
    pub host_access: bool,
    /// It is started with dom0, and with the first domain that names it.
    #[serde(default)]
    pub autostart: bool,
}

/// The IPv4 addresses that guests get.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum DhcpFile {
    /// `false`: none.
    Switch(bool),
    /// These.
    Range(DhcpRange),
}

/// A range of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DhcpRange {
    /// The first.
    pub from: Ipv4Addr,
    /// The last.
    pub to: Ipv4Addr,
}

/// A guest that always gets the same address.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostFile {
    /// Its MAC address.
    pub mac: String,
    /// Its IPv4 address.
    pub ip: Ipv4Addr,
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// What becomes of packets that leave a network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Forward {
    /// They go out in the host's name; from outside only answers come in.
    #[default]
    Nat,
    /// They are routed as they are, both ways.
    Routed,
    /// None does.
    Isolated,
}

/// A network that can be started: every value is in range.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: NetworkName,
    /// Its bridge.
    pub bridge: String,
    /// The host's addresses, at least one; the prefix is that of the network.
    pub addresses: Vec<AddressRange>,
    /// What guests get.
    pub dhcp: Option<DhcpRange>,
    /// Fixed leases, each within one of the networks.
    pub hosts: Vec<Host>,
    /// The DNS domain.
    pub domain: Option<String>,
    /// What becomes of packets that leave it.
    pub forward: Forward,
    /// Guests reach the host.
    pub host_access: bool,
    /// Started without being asked for.
    pub autostart: bool,
}

impl Network {
    /// Whether the address is in one of its networks.
    pub fn holds(&self, ip: Ipv4Addr) -> bool {
        self.addresses.iter().any(|range| range.contains(ip.into()))
    }

    /// Whether an address of one could be of the other.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.addresses.iter().any(|own| other.addresses.iter().any(|range| own.overlaps(range)))
    }
}

/// A fixed lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    /// Whose.
    pub mac: MacAddress,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Its name.
    pub name: Option<String>,
}

impl From<&Network> for NetworkFile {
    fn from(network: &Network) -> Self {
        let range = |range: &AddressRange| format!("{}/{}", range.address, range.prefix);
        Self {
            schema: None,
            name: network.name.to_string(),
            bridge: Some(network.bridge.clone()),
            addresses: network.addresses.iter().map(range).collect(),
            dhcp: Some(network.dhcp.map_or(DhcpFile::Switch(false), DhcpFile::Range)),
            hosts: network
                .hosts
                .iter()
                .map(|host| HostFile { mac: host.mac.to_string(), ip: host.ip, name: host.name.clone() })
                .collect(),
            domain: network.domain.clone(),
            forward: network.forward,
            host_access: network.host_access,
            autostart: network.autostart,
        }
    }
}

/// Checks a definition's text; `file` is for messages.
///
/// # Errors
/// [`ConfigError`].
pub fn parse(file: &Path, text: &str) -> Result<Network, ConfigError> {
    if text.len() > MAX_DEFINITION {
        return Err(ConfigError::new(file, "", format!("is longer than {MAX_DEFINITION} bytes")));
    }
    let mut json = serde_json::Deserializer::from_str(text);
    let parsed: NetworkFile = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let at = error.path().to_string();
        let inner = error.into_inner();
        ConfigError::new(file, if at == "." || at == "?" { "" } else { &at }, inner)
    })?;
    json.end().map_err(|error| ConfigError::new(file, "", error))?;
    check(file, parsed)
}

fn check(file: &Path, text: NetworkFile) -> Result<Network, ConfigError> {
    let refuse = |at: &str, problem: String| ConfigError::new(file, at, problem);
    let name: NetworkName = text.name.parse().map_err(|error| ConfigError::new(file, "name", error))?;
    let bridge = text.bridge.unwrap_or_else(|| name.to_string());
    if !is_interface(&bridge) {
        let problem = format!(
            "{bridge:?} is no interface name: 1 to 15 printable characters without / : % * , \\ and \""
        );
        return Err(refuse("bridge", problem));
    }
    let count = text.addresses.len();
    if !(1..=MAX_ADDRESSES).contains(&count) {
        return Err(refuse("addresses", format!("lists {count} addresses: 1 to {MAX_ADDRESSES} would do")));
    }
    let mut addresses: Vec<AddressRange> = Vec::new();
    for (n, text) in text.addresses.iter().enumerate() {
        let at = format!("addresses[{n}]");
        let address = range(text).filter(|range| usable(*range)).ok_or_else(|| {
            let problem = format!("{text:?} is no address of a host in a network: \"10.5.0.1/24\" would do");
            refuse(&at, problem)
        })?;
        if let Some(other) = addresses.iter().position(|one| overlap(*one, address)) {
            return Err(refuse(&at, format!("\"{text}\" is in the network of addresses[{other}]")));
        }
        addresses.push(address);
    }
    let inside = |ip: Ipv4Addr| addresses.iter().any(|range| range.contains(ip.into()));
    let own = |ip: Ipv4Addr| addresses.iter().any(|range| range.address == ip);
    let dhcp = match text.dhcp {
        Some(DhcpFile::Switch(false)) => None,
        Some(DhcpFile::Switch(true)) | None => addresses.iter().find_map(|range| usual_range(*range)),
        Some(DhcpFile::Range(given)) => {
            let one = addresses.iter().any(|range| {
                range.contains(given.from.into()) && range.contains(given.to.into()) && given.from <= given.to
            });
            if !one {
                let problem = format!(
                    "{} to {} is no range within one of the addresses' networks",
                    given.from, given.to
                );
                return Err(refuse("dhcp", problem));
            }
            Some(given)
        }
    };
    if text.hosts.len() > MAX_HOSTS {
        let count = text.hosts.len();
        return Err(refuse("hosts", format!("lists {count} guests: at most {MAX_HOSTS} would do")));
    }
    let mut taken = (BTreeSet::new(), BTreeSet::new());
    let mut hosts = Vec::new();
    for (n, host) in text.hosts.into_iter().enumerate() {
        let at = |key: &str| format!("hosts[{n}].{key}");
        let mac: MacAddress = host.mac.parse().map_err(|error| ConfigError::new(file, at("mac"), error))?;
        if !inside(host.ip) || own(host.ip) {
            return Err(refuse(&at("ip"), format!("{} is no address for a guest of this network", host.ip)));
        }
        if !taken.0.insert(mac.bytes()) || !taken.1.insert(host.ip) {
            return Err(refuse(&format!("hosts[{n}]"), format!("{mac} or {} is listed before", host.ip)));
        }
        if let Some(name) = host.name.as_ref().filter(|name| !is_label(name)) {
            return Err(refuse(
                &at("name"),
                format!("{name:?} is no host name: letters, digits and - would do"),
            ));
        }
        hosts.push(Host { mac, ip: host.ip, name: host.name });
    }
    if let Some(domain) = text.domain.as_ref().filter(|domain| !is_domain(domain)) {
        return Err(refuse("domain", format!("{domain:?} is no DNS domain: \"lan.example\" would do")));
    }
    Ok(Network {
        name,
        bridge,
        addresses,
        dhcp,
        hosts,
        domain: text.domain,
        forward: text.forward,
        host_access: text.host_access,
        autostart: text.autostart,
    })
}

/// An address of a host, in a network of more than it alone.
fn usable(range: AddressRange) -> bool {
    let special =
        range.address.is_loopback() || range.address.is_multicast() || range.address.is_unspecified();
    let fits = match range.address {
        IpAddr::V4(address) => {
            (8..=30).contains(&range.prefix)
                && address != first(address, range.prefix)
                && address != last(address, range.prefix)
        }
        IpAddr::V6(_) => (16..=126).contains(&range.prefix),
    };
    fits && !special
}

fn overlap(one: AddressRange, other: AddressRange) -> bool {
    one.contains(other.address) || other.contains(one.address)
}

fn mask(prefix: u8) -> u32 {
    u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// The address of the network.
pub fn first(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() & mask(prefix))
}

/// The broadcast address.
fn last(address: Ipv4Addr, prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(address.to_bits() | !mask(prefix))
}

/// The IPv6 address of the network.
pub fn first_v6(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix.min(128))).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

/// The longer of the two pieces that the host's address leaves of its network.
fn usual_range(range: AddressRange) -> Option<DhcpRange> {
    let IpAddr::V4(own) = range.address else { return None };
    let (low, high) = (first(own, range.prefix).to_bits() + 1, last(own, range.prefix).to_bits() - 1);
    let own = own.to_bits();
    let (from, to) = if own - low > high - own { (low, own - 1) } else { (own + 1, high) };
    (from <= to).then(|| DhcpRange { from: Ipv4Addr::from_bits(from), to: Ipv4Addr::from_bits(to) })
}

/// A name of a host: a label of DNS.
pub fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_domain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Network, ConfigError> {
        parse(Path::new("lan.json"), text)
    }

    #[test]
    fn two_lines_are_a_network_and_the_rest_has_defaults() {
        let lan = parsed(r#"{ "name": "lan", "addresses": [ "10.5.0.1/24", "fd00:5::1/64" ] }"#).unwrap();
        assert_eq!((lan.bridge.as_str(), lan.forward, lan.autostart), ("lan", Forward::Nat, false));
        let range = lan.dhcp.unwrap();
        assert_eq!((range.from.to_string(), range.to.to_string()), ("10.5.0.2".into(), "10.5.0.254".into()));
        let lan = parsed(r#"{ "name": "lan", "addresses": [ "10.5.0.254/24" ] }"#).unwrap();
        assert_eq!(lan.dhcp.unwrap().to.to_string(), "10.5.0.253");
    }

    #[test]
    fn what_is_written_down_of_a_network_is_the_same_network() {
        let lan = parsed(
            r#"{ "name": "lan", "bridge": "br7", "addresses": [ "10.5.0.1/24", "fd00:5::1/64" ], "dhcp": false,
                 "hosts": [ { "mac": "52:54:00:00:00:01", "ip": "10.5.0.9" } ], "forward": "routed",
                 "host_access": true, "domain": "lan.example", "autostart": true }"#,
        )
        .unwrap();
        let text = serde_json::to_string(&NetworkFile::from(&lan)).unwrap();
        assert_eq!(parsed(&text).unwrap(), lan);
    }

    #[test]
    fn a_refusal_names_path_value_and_what_would_do() {
        for (more, parts) in [
            (r#""addresses": []"#, &["addresses: ", "1 to 8"][..]),
            (r#""addresses": ["10.5.0.0/24"]"#, &["addresses[0]: ", "10.5.0.0/24", "10.5.0.1/24"]),
            (r#""addresses": ["10.5.0.1"]"#, &["addresses[0]: "]),
            (r#""addresses": ["10.5.0.1/24", "10.5.0.9/16"]"#, &["addresses[1]: ", "addresses[0]"]),
            (r#""addresses": ["10.5.0.1/24"], "bridge": "a/b""#, &["bridge: ", "a/b"]),
            (r#""addresses": ["10.5.0.1/24"], "bridge": "v*""#, &["bridge: ", "v*", "without / : % *"]),
            (
                r#""addresses": ["10.5.0.1/24"], "dhcp": {"from":"10.5.0.9","to":"10.5.0.2"}"#,
                &["dhcp: ", "10.5.0.9"],
            ),
            (r#""addresses": ["10.5.0.1/24"], "dhcp": {"from":"10.5.0.9","to":"10.6.0.2"}"#, &["dhcp: "]),
            (
                r#""addresses": ["10.5.0.1/24"], "hosts": [{"mac":"52:54:00:00:00:01","ip":"10.5.0.1"}]"#,
                &["hosts[0].ip: 10.5.0.1"],
            ),
            (
                r#""addresses": ["10.5.0.1/24"], "hosts": [{"mac":"52:54:00:00:00:01","ip":"10.5.0.2","name":"a,b"}]"#,
                &["hosts[0].name: ", "a,b"],
            ),
            (r#""addresses": ["10.5.0.1/24"], "domain": "a..b""#, &["domain: ", "lan.example"]),
            (r#""addresses": ["10.5.0.1/24"], "forward": "nope""#, &["forward: ", "nope", "isolated"]),
            (r#""addresses": ["10.5.0.1/24"], "dns": true"#, &["dns", "domain"]),
        ] {
            let error = parsed(&format!(r#"{{ "name": "lan", {more} }}"#)).unwrap_err().to_string();
            assert!(error.starts_with("lan.json: ") && !error.contains('\n'), "{error}");
            for part in parts {
                assert!(error.contains(part), "{more}\n  gave  {error}\n  which lacks {part}");
            }
        }
    }

    #[test]
    fn the_schema_in_the_tree_is_the_one_of_the_types() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/schema/network.schema.json");
        let schema = serde_json::to_string_pretty(&schemars::schema_for!(NetworkFile)).unwrap() + "\n";
        if std::env::var_os("DOMUS_UPDATE_SCHEMA").is_some() {
            std::fs::write(path, &schema).unwrap();
        }
        let kept = std::fs::read_to_string(path).unwrap_or_default();
        assert!(kept == schema, "{path} is out of date: run this test with DOMUS_UPDATE_SCHEMA=1");
    }
}
