//! The packet filter of one network, as text for `nft -f -`: a table of its own, put in place and removed in one step.
//!
//! Each network judges what goes in and out of its own bridge. A packet between two networks is judged by both, and the
//! one it would enter refuses it. What other tables on the host refuse stays refused.

use std::fmt::Write;
use std::net::IpAddr;

use crate::network::managed::definition::{Forward, Network, first, first_v6};

/// The group (`ip link set … group`) that the bridges of all networks are in, by which they are known to each other.
pub const GROUP: u32 = 0x646f;

/// The name of the network's table, which is of family inet.
pub fn table_name(name: &shared_abi::NetworkName) -> String {
    format!("domus-{name}")
}

fn table(name: &shared_abi::NetworkName) -> String {
    format!("inet {}", table_name(name))
}

/// What removes the table, whether it is there or not.
pub fn removal(name: &shared_abi::NetworkName) -> String {
    let table = table(name);
    format!("table {table} {{}}\ndelete table {table}\n")
}

/// What puts the table in the place of the one before it.
pub fn rules(network: &Network) -> String {
    let bridge = &network.bridge;
    let (four, six) = (networks(network, true), networks(network, false));
    let mut text = removal(&network.name);
    let mut line = |line: String| {
        // To a String it cannot fail.
        let _ = writeln!(text, "{line}");
    };
    line(format!("table {} {{", table(&network.name)));

    line(" chain input {".into());
    line("  type filter hook input priority filter; policy accept;".into());
    if !network.host_access {
        line(format!("  iifname != \"{bridge}\" accept"));
        line("  ct state established,related accept".into());
        // ICMP and ICMPv6 by number: names are in a file that small systems do not have.
        line("  meta l4proto { 1, 58 } accept".into());
        line("  udp dport { 53, 67, 547 } accept".into());
        line("  tcp dport 53 accept".into());
        line("  drop".into());
    }
    line(" }".into());

    line(" chain forward {".into());
    line("  type filter hook forward priority filter; policy accept;".into());
    line(format!("  iifname \"{bridge}\" oifname \"{bridge}\" accept"));
    match network.forward {
        Forward::Isolated => {
            line(format!("  iifname \"{bridge}\" drop"));
            line(format!("  oifname \"{bridge}\" drop"));
        }
        Forward::Nat | Forward::Routed => {
            // Nobody else's addresses go out, and none of a family that the network does not have.
            for (family, networks) in [("ip", &four), ("ip6", &six)] {
                let protocol = if family == "ip" { "ipv4" } else { "ipv6" };
                match networks {
                    Some(set) => line(format!("  iifname \"{bridge}\" {family} saddr != {set} drop")),
                    None => line(format!("  iifname \"{bridge}\" meta nfproto {protocol} drop")),
                }
            }
            if network.forward == Forward::Nat {
                line(format!("  oifname \"{bridge}\" ct state established,related accept"));
                line(format!("  oifname \"{bridge}\" drop"));
            } else {
                // Another network's guests are no strangers that may come in.
                line(format!("  oifname \"{bridge}\" meta iifgroup {GROUP} drop"));
            }
        }
    }
    line(" }".into());

    if network.forward == Forward::Nat {
        line(" chain postrouting {".into());
        line("  type nat hook postrouting priority srcnat; policy accept;".into());
        for (family, networks) in [("ip", &four), ("ip6", &six)] {
            if let Some(set) = networks {
                line(format!(
                    "  {family} saddr {set} {family} daddr != {set} oifname != \"{bridge}\" masquerade"
                ));
            }
        }
        line(" }".into());
    }
    line("}".into());
    text
}

/// A set of the network's prefixes of a family.
fn networks(network: &Network, four: bool) -> Option<String> {
    let prefixes = network.addresses.iter().filter_map(|range| match range.address {
        IpAddr::V4(address) if four => Some(format!("{}/{}", first(address, range.prefix), range.prefix)),
        IpAddr::V6(address) if !four => {
            Some(format!("{}/{}, fe80::/10", first_v6(address, range.prefix), range.prefix))
        }
        _ => None,
    });
    let prefixes: Vec<_> = prefixes.collect();
    if prefixes.is_empty() { None } else { Some(format!("{{ {} }}", prefixes.join(", "))) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn of(more: &str) -> String {
        let text = format!(r#"{{ "name": "lan", "bridge": "br7", "addresses": [ "10.5.0.1/24" ]{more} }}"#);
        rules(&crate::network::managed::definition::parse(Path::new("x"), &text).unwrap())
    }

    #[test]
    fn each_way_out_has_its_rules() {
        let nat = of("");
        assert!(nat.starts_with("table inet domus-lan {}\ndelete table inet domus-lan\n"));
        assert!(
            nat.contains(
                "ip saddr { 10.5.0.0/24 } ip daddr != { 10.5.0.0/24 } oifname != \"br7\" masquerade"
            )
        );
        assert!(
            nat.contains("iifname \"br7\" meta nfproto ipv6 drop")
                && nat.contains("iifname != \"br7\" accept")
        );
        let isolated = of(r#", "forward": "isolated""#);
        assert!(isolated.contains("iifname \"br7\" drop") && !isolated.contains("masquerade"));
        let routed = of(r#", "forward": "routed", "host_access": true"#);
        assert!(!routed.contains("masquerade") && !routed.contains("dport"));
    }
}
