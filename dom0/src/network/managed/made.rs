//! What a running network is made of in the host's kernel: a bridge with addresses, forwarding, a table of the packet
//! filter. Made, looked at, and made again where it is not as it was made.

use std::cell::Cell;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use shared_abi::MacAddress;
use shared_abi::control::AddressRange;
use uuid::Uuid;

use crate::host::links::{Kind, Link, Links};
use crate::host::{nftables, programs};
use crate::network::managed::definition::{Forward, Network};
use crate::network::managed::error::NetworkError;
use crate::network::managed::rules;
use crate::process::run::run;

/// Within this time nft has loaded a table.
const NFT: Duration = Duration::from_secs(10);

/// Attempts to load a table while others change tables.
const ATTEMPTS: u32 = 5;

thread_local! {
    /// Texts that this dom0 has loaded: each is one change of the packet filter.
    static LOADED: Cell<u32> = const { Cell::new(0) };
}

/// The number of changes of the packet filter that are not this dom0's.
async fn others_changes() -> io::Result<u32> {
    Ok(nftables::generation().await?.wrapping_sub(LOADED.get()))
}

/// The MTU of a bridge without ports. With ports it is the least of theirs.
const MTU: u32 = 1500;

/// Switches of the kernel that let packets pass on, and whether they are IPv4's.
const FORWARDING: [(&str, bool); 2] =
    [("/proc/sys/net/ipv4/ip_forward", true), ("/proc/sys/net/ipv6/conf/all/forwarding", false)];

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// The bridge's index, which another bridge of the same name does not have.
    pub bridge: u32,
    /// What is in the table.
    rules: Vec<u8>,
}

impl Network {
    /// An error of the system's.
    pub fn io(&self, act: &str, source: impl Into<io::Error>) -> NetworkError {
        NetworkError::Io { network: self.name.clone(), act: act.into(), source: source.into() }
    }

    /// The address of its bridge: locally administered, always the same.
    pub fn mac(&self) -> Result<MacAddress, NetworkError> {
        const NETWORKS: Uuid = uuid::uuid!("6f0a7f0d-58f4-4b7a-9a53-2f1f8a0d7c11");
        let [a, b, c, d, e, g, ..] = Uuid::new_v5(&NETWORKS, self.name.as_str().as_bytes()).into_bytes();
        MacAddress::new([a & 0xfc | 0x02, b, c, d, e, g])
            .map_err(|_| self.io("make an address", io::ErrorKind::InvalidData))
    }

    /// The switches of the kernel that let its packets pass on and are off.
    fn forwarding_off(&self) -> impl Iterator<Item = (&'static str, bool)> {
        let needed = move |four| self.addresses.iter().any(|range| range.address.is_ipv4() == four);
        let on = |switch: &str| fs::read_to_string(switch).is_ok_and(|text| text.trim() != "0");
        FORWARDING
            .into_iter()
            .filter(move |(switch, four)| self.forward != Forward::Isolated && needed(*four) && !on(switch))
    }
}

/// The bridge and its ports.
struct Found {
    bridge: Option<Link>,
    /// The least MTU of its ports, or that of a bridge without.
    mtu: u32,
}

async fn find(bridge: &str, links: &Links) -> io::Result<Found> {
    let all = links.named("").await?;
    let bridge = all.iter().find(|link| link.name == bridge).cloned();
    let index = bridge.as_ref().map(|bridge| bridge.index);
    let ports = all.iter().filter(|link| index.is_some() && link.bridge == index);
    Ok(Found { mtu: ports.map(|port| port.mtu).min().unwrap_or(MTU), bridge })
}

fn is_own(link: &Link) -> bool {
    (link.kind, link.group) == (Kind::Bridge, rules::GROUP)
}

/// What is not as it was made, for people; empty if everything is.
///
/// # Errors
/// It cannot be looked at.
pub async fn amiss(network: &Network, made: &Made, links: &Links) -> Result<Vec<String>, NetworkError> {
    let name = &network.bridge;
    let look = |error| network.io("look at the bridge", error);
    let Found { bridge, mtu } = find(name, links).await.map_err(look)?;
    let mut amiss = Vec::new();
    match bridge {
        Some(link) if link.index == made.bridge => {
            if link.mac != network.mac()?.bytes() {
                amiss.push(format!("the bridge {name} had another MAC address"));
            }
            if link.mtu != mtu {
                amiss.push(format!("the bridge {name} had the MTU {}", link.mtu));
            }
            if !link.up {
                amiss.push(format!("the bridge {name} was switched off"));
            }
            let there = links.addresses(link.index).await.map_err(look)?;
            for range in network.addresses.iter().filter(|range| !has(&there, range)) {
                amiss.push(format!("the bridge {name} had lost {}/{}", range.address, range.prefix));
            }
        }
        _ => amiss.push(format!("the bridge {name} was removed")),
    }
    let table = rules::table_name(&network.name);
    let rules = nftables::contents(&table).await.map_err(|e| network.io("look at the packet filter", e))?;
    if rules.is_empty() {
        amiss.push("its packet filter was removed".into());
    } else if rules != made.rules {
        amiss.push("its packet filter was changed".into());
    }
    amiss.extend(network.forwarding_off().map(|(switch, _)| format!("{switch} was switched off")));
    Ok(amiss)
}

fn has(there: &[(IpAddr, u8)], range: &AddressRange) -> bool {
    there.contains(&(range.address, range.prefix))
}

/// Makes all of it. What there is already stays, and is as it should be afterwards.
///
/// # Errors
/// [`NetworkError`]; what was made stays.
pub async fn make(network: &Network, links: &Links) -> Result<Made, NetworkError> {
    let name = &network.bridge;
    // Looked for before anything is made.
    let nft = programs::find("nft", "nftables")?;
    let look = |error| network.io("look for the bridge", error);
    let found = find(name, links).await.map_err(look)?;
    let mac = network.mac()?;
    let link = match found.bridge {
        None => {
            let made = links.add_bridge(name, mac, rules::GROUP).await;
            made.map_err(|error| network.io(&format!("make the bridge {name}"), error))?;
            let made = links.find(name).await.map_err(look)?;
            made.ok_or_else(|| network.io("find the bridge", io::ErrorKind::NotFound))?
        }
        // One of ours, left by a dom0 that was killed.
        Some(link) if is_own(&link) => link,
        Some(_) => return Err(NetworkError::BridgeTaken(network.name.clone(), name.clone())),
    };
    let index = link.index;
    if (link.mac.as_slice(), link.mtu, link.up) != (&mac.bytes()[..], found.mtu, true) {
        let set = links.set(index, mac, found.mtu).await;
        set.map_err(|error| network.io(&format!("set up the bridge {name}"), error))?;
    }
    let there = links.addresses(index).await.map_err(look)?;
    for range @ AddressRange { address, prefix } in &network.addresses {
        if has(&there, range) {
            continue;
        }
        match links.add_address(index, *address, *prefix).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            other => {
                other.map_err(|error| {
                    network.io(&format!("give {name} the address {address}/{prefix}"), error)
                })?;
            }
        }
    }
    forward_packets(network)?;
    let filter = |error| network.io("load the packet filter", error);
    let rules = load_table(&nft, network).await.map_err(filter)?;
    Ok(Made { bridge: index, rules })
}

/// Loads the table, and says what is in it then. What somebody else puts there in between must not be taken for ours:
/// it is loaded once more if anything has been changed beside it.
async fn load_table(nft: &Path, network: &Network) -> io::Result<Vec<u8>> {
    let table = rules::table_name(&network.name);
    let mut attempts = 0;
    loop {
        let before = others_changes().await?;
        load(nft, &rules::rules(network)).await?;
        let contents = nftables::contents(&table).await?;
        attempts += 1;
        if others_changes().await? == before || attempts == ATTEMPTS {
            return Ok(contents);
        }
    }
}

/// Removes what there is of it. What fails is said: nobody waits for more.
pub async fn remove(network: &Network, links: &Links) {
    let Network { name, bridge, .. } = network;
    if let Ok(nft) = programs::find("nft", "nftables")
        && let Err(error) = load(&nft, &rules::removal(name)).await
    {
        crate::log::stderr::line(format_args!("network {name}: its packet filter stays: {error}"));
    }
    if let Ok(Some(link)) = links.find(bridge).await
        && is_own(&link)
        && let Err(error) = links.remove(link.index).await
    {
        crate::log::stderr::line(format_args!("network {name}: the bridge {bridge} stays: {error}"));
    }
}

/// Gives nft a text.
async fn load(nft: &Path, text: &str) -> io::Result<()> {
    run(nft, &["-f", "-"], text, NFT).await?;
    LOADED.set(LOADED.get().wrapping_add(1));
    Ok(())
}

/// Lets the host pass packets on, and says so: it concerns more than this network, and stays so.
fn forward_packets(network: &Network) -> Result<(), NetworkError> {
    for (switch, four) in network.forwarding_off() {
        fs::write(switch, "1").map_err(|error| network.io(&format!("switch {switch} on"), error))?;
        let more =
            if four { "" } else { "; if it takes its own addresses from a router, set accept_ra to 2" };
        crate::log::stderr::line(format_args!(
            "network {}: this host passes packets on from now on ({switch} is 1{more})",
            network.name
        ));
    }
    Ok(())
}
