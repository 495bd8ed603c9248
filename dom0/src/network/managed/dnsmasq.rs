//! The configuration that dnsmasq gets for a network, and the leases that it reports. Pure.

use std::net::IpAddr;
use std::path::Path;

use crate::network::managed::definition::{Forward, Host, Network, first, first_v6};

/// Seconds that an address is lent for.
const LEASE: u32 = 3600;

/// Most addresses lent at a time.
const MAX_LEASES: usize = 4096;

/// What it has lent, in the network's directory.
pub const LEASES: &str = "leases";

/// What it is to lend to NICs of domains; read again when it gets SIGHUP.
pub const NICS: &str = "nics";

/// Its arguments. It reads no config of the host's; names it does not know it asks the host's resolvers for, unless the
/// network is isolated.
pub fn arguments(network: &Network, dir: &Path) -> Vec<String> {
    let mut args: Vec<String> = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-hosts",
        "--bind-dynamic",
        "--except-interface=lo",
        "--log-facility=-",
        "--quiet-dhcp",
        "--quiet-dhcp6",
        "--quiet-ra",
        "--dhcp-authoritative",
        "--dhcp-no-override",
        // A guest's own word for what it is called may be another's name.
        "--dhcp-ignore-names",
        "--pid-file=",
    ]
    .map(str::to_owned)
    .to_vec();
    args.push(format!("--interface={}", network.bridge));
    args.push(format!("--dhcp-leasefile={}", dir.join(LEASES).display()));
    args.push(format!("--dhcp-hostsfile={}", dir.join(NICS).display()));
    args.push(format!("--dhcp-lease-max={MAX_LEASES}"));
    if network.forward == Forward::Isolated {
        args.push("--no-resolv".into());
        // Option 3 with no value: there is no way out.
        args.push("--dhcp-option=3".into());
    }
    if let Some(range) = network.dhcp {
        args.push(format!("--dhcp-range={},{},{LEASE}", range.from, range.to));
    }
    for address in &network.addresses {
        match address.address {
            // Fixed leases need a range, if only one that lends nothing else.
            IpAddr::V4(own) if network.dhcp.is_none() && !network.hosts.is_empty() => {
                args.push(format!("--dhcp-range={},static,{LEASE}", first(own, address.prefix)));
            }
            IpAddr::V6(own) if address.prefix == 64 => {
                args.push(format!("--dhcp-range={},ra-stateless", first_v6(own, 64)));
            }
            IpAddr::V4(_) | IpAddr::V6(_) => {}
        }
    }
    if network.addresses.iter().any(|address| address.address.is_ipv6() && address.prefix == 64) {
        args.push("--enable-ra".into());
        if network.forward == Forward::Isolated {
            // A router with a lifetime of 0 is none.
            args.push(format!("--ra-param={},0,0", network.bridge));
        }
    }
    if let Some(domain) = &network.domain {
        args.extend([format!("--domain={domain}"), format!("--local=/{domain}/"), "--expand-hosts".into()]);
    }
    for Host { mac, ip, name } in &network.hosts {
        let name = name.as_ref().map_or(String::new(), |name| format!(",{name}"));
        args.push(format!("--dhcp-host={mac},{ip}{name}"));
    }
    args
}

/// An address that is lent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// When it ends, in seconds since 1970; 0 for never.
    pub expires: u64,
    /// To whom it is lent.
    pub mac: String,
    /// The address.
    pub ip: IpAddr,
    /// The name that the guest gives itself.
    pub name: Option<String>,
}

/// The leases in dnsmasq's file. Names are the guests' own words: what is no host name is left out.
pub fn leases(text: &str) -> Vec<Lease> {
    let lease = |line: &str| {
        let mut words = line.split(' ');
        let expires = words.next()?.parse().ok()?;
        let mac = words.next()?;
        let ip = words.next()?.parse().ok()?;
        let sound = |name: &str| {
            name.len() <= 63
                && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        };
        let name = words.next().filter(|name| *name != "*" && sound(name)).map(str::to_owned);
        Some(Lease { expires, mac: mac.chars().take(64).collect(), ip, name })
    };
    text.lines().take(2 * MAX_LEASES).filter_map(lease).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> String {
        let network = crate::network::managed::definition::parse(Path::new("x"), text).unwrap();
        arguments(&network, Path::new("/run")).join(" ")
    }

    #[test]
    fn a_network_is_told_with_ranges_hosts_and_a_domain() {
        let args =
            of(r#"{ "name": "lan", "addresses": [ "10.5.0.1/24", "fd00:5::1/64" ], "domain": "lan.example",
                 "hosts": [ { "mac": "52:54:00:00:00:01", "ip": "10.5.0.9", "name": "web1" } ] }"#);
        for part in [
            "--interface=lan ",
            "--dhcp-range=10.5.0.2,10.5.0.254,3600",
            "--dhcp-range=fd00:5::,ra-stateless",
            "--enable-ra",
            "--local=/lan.example/",
            "--dhcp-host=52:54:00:00:00:01,10.5.0.9,web1",
        ] {
            assert!(args.contains(part), "{part} is not in {args}");
        }
        assert!(!args.contains("--no-resolv"));
        let args = of(r#"{ "name": "lan", "addresses": [ "10.5.0.1/24" ], "forward": "isolated" }"#);
        assert!(args.contains("--no-resolv --dhcp-option=3 ") && !args.contains("--enable-ra"), "{args}");
    }

    #[test]
    fn leases_are_read_and_nonsense_is_left_out() {
        let text = "1700000000 52:54:00:00:00:01 10.5.0.9 web1 01:52\n0 aa 10.5.0.8 *\nduid 00:01\nx\n\n\
                    5 bb 10.5.0.7 \u{1b}[2J\n";
        let found = leases(text);
        assert_eq!(found.len(), 3);
        assert_eq!((found[0].name.as_deref(), found[0].ip.to_string()), (Some("web1"), "10.5.0.9".into()));
        assert_eq!((found[1].expires, found[1].name.clone(), found[2].name.clone()), (0, None, None));
    }
}
