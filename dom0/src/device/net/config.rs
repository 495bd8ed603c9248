//! NICs: what a config may say of one, and what that comes to.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use shared_abi::control::{AddressRange, NicFilter, NicLimits};
use shared_abi::limits::{MAX_FDS, MAX_QUEUE_PAIRS};
use shared_abi::{DeviceId, MacAddress, NetworkName, SwitchName};
use uuid::Uuid;

use crate::device::net::forward::Forward;
use crate::value::address::range;
use crate::value::place::{ConfigError, Context};
use crate::value::rate::NicLimitsFile;

/// Most addresses that a NIC's filter may list: the message that carries all NICs of a domain has a bound.
const MAX_ADDRESSES: usize = 32;

/// Most ports of the host that lead to a guest.
const MAX_FORWARDS: usize = 64;

/// A NIC and what is at the other end of its cable: one of `bridge`, `tap`, `macvtap`, `network`, `switch`,
/// `vhost_user_socket` and `user`. With none of them it is on `user`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct NetFile {
    /// Unique in the domain: 1 to 20 of a-z A-Z 0-9 _ -, the first a letter or digit.
    pub id: String,
    /// The bridge that a tap made for the NIC is put on.
    #[serde(default)]
    pub bridge: Option<String>,
    /// A persistent tap to use as it is.
    #[serde(default)]
    pub tap: Option<String>,
    /// The interface that a macvtap made for the NIC is put on, in mode bridge.
    #[serde(default)]
    pub macvtap: Option<String>,
    /// A network that dom0 manages (domus network-define).
    #[serde(default)]
    pub network: Option<String>,
    /// A switch in user space that the domains which name it share.
    #[serde(default)]
    pub switch: Option<String>,
    /// The listening socket of a vhost-user-net backend that Domus does not start, such as Open vSwitch's.
    #[serde(default)]
    pub vhost_user_socket: Option<String>,
    /// A network in user space (passt), which needs no rights on the host.
    #[serde(default)]
    pub user: Option<UserFile>,
    /// Number of queue pairs, 1 to 31.
    #[serde(default)]
    #[schemars(range(min = 1, max = 31))]
    pub queues: Option<u64>,
    /// The guest's MAC address.
    #[serde(default)]
    pub mac: Option<String>,
    /// The MTU in bytes, 68 to 65535.
    #[serde(default)]
    #[schemars(range(min = 68, max = 65535))]
    pub mtu: Option<u64>,
    /// The guest may send in the name of any MAC address, and what bridges say to each other (spanning tree, LLDP).
    #[serde(default)]
    pub spoof: Option<bool>,
    /// The guest may send frames with VLAN tags. As spoof, if this is left out.
    #[serde(default)]
    pub tagged: Option<bool>,
    /// The guest may be a router and a DHCP server: send what only these send. As spoof, if this and addresses are left
    /// out.
    #[serde(default)]
    pub router: Option<bool>,
    /// On a bridge or network: the guest does not reach other guests there whose NICs are isolated, too.
    #[serde(default)]
    pub isolated: Option<bool>,
    /// The IP addresses that the guest may use, each with or without a prefix length. If this is left out: on a network
    /// the one that it lends, elsewhere any.
    #[serde(default)]
    pub addresses: Option<Vec<String>>,
    /// What it may carry a second.
    #[serde(default)]
    pub limits: NicLimitsFile,
    /// Whether its cable is plugged in.
    #[serde(default)]
    pub link: Option<LinkFile>,
}

/// A network in user space.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum UserFile {
    /// Without ports that lead to the guest: `true`.
    Plain(bool),
    /// With what there is to say of it.
    Detailed(UserDetails),
}

/// What there is to say of a network in user space.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UserDetails {
    /// Ports of the host that lead to the guest, each `tcp:[ADDRESS:]HOST-PORT:GUEST-PORT` or the same with `udp`.
    #[serde(default)]
    pub ports: Vec<String>,
}

/// Whether a cable is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum LinkFile {
    /// It is.
    Up,
    /// It is not.
    Down,
}

/// A NIC.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Nic {
    /// Its id.
    pub id: DeviceId,
    /// What is at the other end of its cable.
    pub link: NicLink,
    /// Number of queue pairs.
    pub pairs: u16,
    /// The config says so; otherwise a wire that has fewer is no error.
    pub pairs_given: bool,
    /// The guest's address.
    pub mac: MacAddress,
    /// 68 to 65535 bytes.
    pub mtu: u16,
    /// What the guest may send.
    pub filter: NicFilter,
    /// How much it may carry, to begin with.
    pub limits: NicLimits,
    /// The cable is plugged in, to begin with.
    pub up: bool,
    /// It does not reach what is isolated, too.
    #[serde(default)]
    pub isolated: bool,
}

/// What is at the other end of a NIC's cable. Interface names are at most 15 bytes, without `/` and white space.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NicLink {
    /// A tap `vif<domid>.<n>` is made and put on this bridge.
    Bridge(String),
    /// This persistent tap is used as it is.
    Tap(String),
    /// A macvtap `vif<domid>.<n>` is made on this interface.
    Macvtap(String),
    /// A tap is made as for a bridge, and put on that of this network.
    Network(NetworkName),
    /// A port of this switch.
    Switch(SwitchName),
    /// A vhost-user-net backend that listens on this socket.
    VhostUser(PathBuf),
    /// passt, with these ports of the host that lead to the guest.
    User(Vec<Forward>),
}

impl NicLink {
    /// The key in the config that names it.
    pub fn key(&self) -> &'static str {
        match self {
            Self::Bridge(_) => "bridge",
            Self::Tap(_) => "tap",
            Self::Macvtap(_) => "macvtap",
            Self::Network(_) => "network",
            Self::Switch(_) => "switch",
            Self::VhostUser(_) => "vhost_user_socket",
            Self::User(_) => "user",
        }
    }

    /// It can have more than one queue pair.
    fn is_wide(&self) -> bool {
        matches!(self, Self::Bridge(_) | Self::Tap(_) | Self::Macvtap(_) | Self::Network(_))
    }
}

impl Nic {
    /// `domus-net` serves it.
    pub fn is_own(&self) -> bool {
        !matches!(self.link, NicLink::Switch(_) | NicLink::VhostUser(_))
    }

    /// Number of virtqueues with so many pairs: two of each, and that for control where the backend has one.
    pub fn virtqueues(&self, pairs: u16) -> u16 {
        match self.is_own() {
            true => 2 * pairs + CONTROL_QUEUES,
            false => 2,
        }
    }

    /// Descriptors that its backend is given.
    fn descriptors(&self) -> usize {
        // Its socket and its state, and the wire: what chooses a tap's queues comes with the queues.
        match self.link.is_wide() {
            true => 3 + usize::from(self.pairs),
            false => 3,
        }
    }
}

/// Checks NIC `n`, which has this id, of a domain with this UUID.
pub fn check(
    context: &Context<'_>,
    n: usize,
    id: DeviceId,
    net: NetFile,
    vcpus: u8,
    uuid: Uuid,
) -> Result<Nic, ConfigError> {
    let at = |key: &str| format!("nets[{n}].{key}");
    let link = link(context, n, &net)?;
    if let (NicLink::VhostUser(_), Some(key)) = (&link, source_key(&net)) {
        let problem = "is the backend's to decide when vhost_user_socket is given: leave it out";
        return Err(context.refuse(at(key), problem));
    }
    let most = if link.is_wide() { MAX_PAIRS } else { 1 };
    let pairs = match net.queues {
        Some(queues @ 2..) if !link.is_wide() => {
            let problem = format!("{queues} is too many: a NIC on {} has one queue pair", link.key());
            return Err(context.refuse(at("queues"), problem));
        }
        Some(queues) => context.range(&at("queues"), queues, 1, most.into())?,
        None => u16::from(vcpus.min(4)).min(most),
    };
    let mac = match &net.mac {
        Some(text) => text.parse().map_err(|error| context.refuse(at("mac"), error))?,
        None => stable_mac(uuid, &id).map_err(|error| context.refuse(at("mac"), error))?,
    };
    let usual = if matches!(link, NicLink::User(_)) { USER_MTU } else { 1500 };
    let mtu = context.range(&at("mtu"), net.mtu.unwrap_or(usual), 68, 65535)?;
    if matches!(link, NicLink::User(_)) && u64::from(mtu) > USER_MTU {
        return Err(context.refuse(at("mtu"), format!("{mtu} is more than passt takes: at most {USER_MTU}")));
    }
    if net.isolated == Some(true) && !matches!(link, NicLink::Bridge(_) | NicLink::Network(_)) {
        let problem = format!("is for NICs on a bridge or a network: leave it out on {}", link.key());
        return Err(context.refuse(at("isolated"), problem));
    }
    let any_mac = net.spoof.unwrap_or(false);
    let addresses = addresses(context, n, net.addresses)?;
    let filter = NicFilter {
        any_mac,
        tags: net.tagged.unwrap_or(any_mac),
        router: net.router.unwrap_or(any_mac && addresses.is_none()),
        addresses,
        except: Vec::new(),
    };
    let isolated = net.isolated.unwrap_or(false);
    let limits = net.limits.over(NicLimits::default());
    let up = net.link != Some(LinkFile::Down);
    Ok(Nic { id, link, pairs, pairs_given: net.queues.is_some(), mac, mtu, filter, limits, up, isolated })
}

/// Checks what concerns all NICs of a domain.
pub fn check_all(context: &Context<'_>, nets: &[Nic]) -> Result<(), ConfigError> {
    let mut macs = BTreeMap::new();
    for (n, net) in nets.iter().enumerate() {
        if let Some(first) = macs.insert(net.mac.bytes(), n) {
            let problem = format!("{} is taken by nets[{first}]: each NIC needs its own address", net.mac);
            return Err(context.refuse(format!("nets[{n}].mac"), problem));
        }
    }
    let descriptors = nets.iter().filter(|net| net.is_own()).map(Nic::descriptors).sum::<usize>();
    if descriptors > MAX_FDS {
        let problem = format!(
            "need {descriptors} open files: at most {MAX_FDS} can be handed to a backend; give them fewer queues"
        );
        return Err(context.refuse("nets", problem));
    }
    Ok(())
}

fn link(context: &Context<'_>, n: usize, net: &NetFile) -> Result<NicLink, ConfigError> {
    let at = |key: &str| format!("nets[{n}].{key}");
    let kinds = [
        ("bridge", net.bridge.is_some()),
        ("tap", net.tap.is_some()),
        ("macvtap", net.macvtap.is_some()),
        ("network", net.network.is_some()),
        ("switch", net.switch.is_some()),
        ("vhost_user_socket", net.vhost_user_socket.is_some()),
        ("user", net.user.is_some()),
    ];
    let mut given = kinds.into_iter().filter(|(_, given)| *given).map(|(key, _)| key);
    let first = given.next().unwrap_or("user");
    if let Some(second) = given.next() {
        return Err(context.refuse(at(second), format!("excludes {first}: give one of them")));
    }
    let interface =
        |key: &str, name: &Option<String>| context.interface(&at(key), name.clone().unwrap_or_default());
    Ok(match first {
        "bridge" => NicLink::Bridge(interface(first, &net.bridge)?),
        "tap" => NicLink::Tap(interface(first, &net.tap)?),
        "macvtap" => NicLink::Macvtap(interface(first, &net.macvtap)?),
        "network" => {
            let name = net.network.clone().unwrap_or_default();
            NicLink::Network(name.parse().map_err(|error| context.refuse(at(first), error))?)
        }
        "switch" => {
            let name = net.switch.clone().unwrap_or_default();
            NicLink::Switch(name.parse().map_err(|error| context.refuse(at(first), error))?)
        }
        "vhost_user_socket" => {
            let path = net.vhost_user_socket.clone().unwrap_or_default();
            NicLink::VhostUser(context.path(&at(first), &path)?)
        }
        _ => NicLink::User(forwards(context, n, net.user.as_ref())?),
    })
}

fn forwards(context: &Context<'_>, n: usize, user: Option<&UserFile>) -> Result<Vec<Forward>, ConfigError> {
    let ports = match user {
        None | Some(UserFile::Plain(true)) => return Ok(Vec::new()),
        Some(UserFile::Plain(false)) => {
            let problem =
                "is false, which leaves the NIC without a network: name one, or set link to \"down\"";
            return Err(context.refuse(format!("nets[{n}].user"), problem));
        }
        Some(UserFile::Detailed(UserDetails { ports })) => ports,
    };
    let at = |k: usize| format!("nets[{n}].user.ports[{k}]");
    if ports.len() > MAX_FORWARDS {
        let problem = format!("lists {} ports: at most {MAX_FORWARDS} would do", ports.len());
        return Err(context.refuse(format!("nets[{n}].user.ports"), problem));
    }
    let mut forwards: Vec<Forward> = Vec::new();
    for (k, text) in ports.iter().enumerate() {
        let forward: Forward = text.parse().map_err(|error| context.refuse(at(k), error))?;
        if let Some(first) = forwards.iter().position(|other| other.clashes(&forward)) {
            return Err(context.refuse(at(k), format!("\"{text}\" takes the port of {}", at(first))));
        }
        forwards.push(forward);
    }
    Ok(forwards)
}

/// The first key given that only Domus' own backends can obey.
fn source_key(net: &NetFile) -> Option<&'static str> {
    let given = [
        ("spoof", net.spoof.is_some()),
        ("tagged", net.tagged.is_some()),
        ("router", net.router.is_some()),
        ("isolated", net.isolated.is_some()),
        ("addresses", net.addresses.is_some()),
        ("limits", net.limits != NicLimitsFile::default()),
        ("link", net.link.is_some()),
    ];
    given.into_iter().find(|(_, given)| *given).map(|(key, _)| key)
}

fn addresses(
    context: &Context<'_>,
    n: usize,
    given: Option<Vec<String>>,
) -> Result<Option<Vec<AddressRange>>, ConfigError> {
    let Some(given) = given else { return Ok(None) };
    if given.is_empty() || given.len() > MAX_ADDRESSES {
        let count = given.len();
        let problem = format!("lists {count} addresses: 1 to {MAX_ADDRESSES} would do, or leave it out");
        return Err(context.refuse(format!("nets[{n}].addresses"), problem));
    }
    let ranges = given.iter().enumerate().map(|(k, text)| {
        range(text).ok_or_else(|| {
            let problem =
                format!("{text:?} is no IP address, with or without a prefix such as \"10.0.0.8/29\"");
            context.refuse(format!("nets[{n}].addresses[{k}]"), problem)
        })
    });
    ranges.collect::<Result<_, _>>().map(Some)
}

/// A MAC address that is the same at each start: locally administered, unicast, of the domain's UUID and the NIC's id.
fn stable_mac(uuid: Uuid, id: &DeviceId) -> Result<MacAddress, shared_abi::ids::IdError> {
    let [a, b, c, d, e, g, ..] = Uuid::new_v5(&uuid, id.as_str().as_bytes()).into_bytes();
    MacAddress::new([a & 0xfc | 0x02, b, c, d, e, g])
}

/// The MTU of a NIC on passt, as passt itself has it: TCP over it needs no segments.
const USER_MTU: u64 = 65520;

/// Most queue pairs of a NIC on a tap.
const MAX_PAIRS: u16 = MAX_QUEUE_PAIRS;

/// Virtqueues of a NIC of `domus-net` beside those of its pairs.
const CONTROL_QUEUES: u16 = 1;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_a_prefix_that_fits_it_or_none() {
        let shown = |text| range(text).map(|range| format!("{}/{}", range.address, range.prefix));
        assert_eq!(shown("10.0.0.1").as_deref(), Some("10.0.0.1/32"));
        assert_eq!(shown("fd00::/8").as_deref(), Some("fd00::/8"));
        for bad in ["", "10.0.0.1/33", "::1/129", "10.0.0/8", "10.0.0.1/", "/8", "10.0.0.1/-1"] {
            assert_eq!(range(bad), None, "{bad}");
        }
    }
}
