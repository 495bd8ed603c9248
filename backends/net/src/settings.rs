//! The settings that a driver makes over the control queue (virtio 1.3 §5.1.6.5), and the frames that it wants by them.
//!
//! Promises: settings read back from a memory that anybody may have written ([`Settings::sound`]) are in range. A
//! driver without settings wants every frame. The filter belongs to the driver: it saves the driver work and protects
//! nobody.

use serde::{Deserialize, Serialize};
use shared_abi::MacAddress;
use shared_abi::steering::{ENTRIES, KEY, Rules};

use crate::features;

/// Most MAC addresses of each kind that are remembered; with more, all of that kind are wanted.
pub const MAX_ADDRESSES: usize = 64;
/// VLANs (IEEE 802.1Q), a bit each.
const VLAN_WORDS: usize = 4096 / 64;

/// MAC addresses of one kind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The driver has named more than are remembered.
    pub all: bool,
    /// The six bytes of each as a number, sorted.
    sorted: Vec<u64>,
}

impl Addresses {
    /// These.
    pub fn new(addresses: impl ExactSizeIterator<Item = [u8; 6]>) -> Self {
        if addresses.len() > MAX_ADDRESSES {
            return Self { all: true, sorted: Vec::new() };
        }
        let mut sorted: Vec<_> = addresses.map(number).collect();
        sorted.sort_unstable();
        Self { all: false, sorted }
    }

    fn contains(&self, address: u64) -> bool {
        self.all || self.sorted.binary_search(&address).is_ok()
    }
}

fn number(address: [u8; 6]) -> u64 {
    address.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// By which hash frames are spread over the queue pairs (`VIRTIO_NET_CTRL_MQ_RSS_CONFIG`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hashing {
    /// `VIRTIO_NET_RSS_HASH_TYPE_…`.
    pub hash_types: u32,
    /// The key, padded with zeros.
    pub key: Vec<u8>,
    /// The indirection table.
    pub table: Vec<u16>,
    /// The pair of frames without a hash.
    pub unclassified: u16,
}

/// What a driver has set.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// Frames for any address are wanted.
    pub promiscuous: bool,
    /// All multicast frames are wanted.
    pub all_multicast: bool,
    /// All unicast frames are wanted.
    pub all_unicast: bool,
    /// No multicast frames are wanted.
    pub no_multicast: bool,
    /// No unicast frames are wanted.
    pub no_unicast: bool,
    /// No broadcast frames are wanted.
    pub no_broadcast: bool,
    /// Further addresses that frames are wanted for.
    pub unicast: Addresses,
    /// Multicast addresses that frames are wanted for.
    pub multicast: Addresses,
    /// VLANs that frames are wanted from, a bit each.
    vlans: Vec<u64>,
    /// The address that the driver has chosen.
    pub mac: Option<MacAddress>,
    /// Queue pairs in use.
    pub pairs: u16,
    /// What the driver takes ([`features::TAKEN`]), if it has changed its mind about it.
    pub offloads: Option<u64>,
    /// How frames are spread, if the driver has said it.
    pub hashing: Option<Hashing>,
    /// The driver is to announce itself, and has not confirmed it yet.
    pub announce: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            promiscuous: true,
            all_multicast: false,
            all_unicast: false,
            no_multicast: false,
            no_unicast: false,
            no_broadcast: false,
            unicast: Addresses::default(),
            multicast: Addresses::default(),
            vlans: vec![0; VLAN_WORDS],
            mac: None,
            pairs: 1,
            offloads: None,
            hashing: None,
            announce: false,
        }
    }
}

impl Settings {
    /// Whether a NIC with `pairs` queue pairs can be set so.
    pub fn sound(&self, pairs: u16) -> bool {
        let few =
            |addresses: &Addresses| addresses.sorted.len() <= MAX_ADDRESSES && addresses.sorted.is_sorted();
        few(&self.unicast)
            && few(&self.multicast)
            && self.vlans.len() == VLAN_WORDS
            && (1..=pairs).contains(&self.pairs)
            && self.offloads.is_none_or(|taken| taken & !features::TAKEN == 0)
            && self.hashing.as_ref().is_none_or(|hashing| hashing.sound(self.pairs))
    }

    /// A VLAN, below 4096, is wanted or not.
    pub fn set_vlan(&mut self, vlan: u16, wanted: bool) {
        if let Some(word) = self.vlans.get_mut(usize::from(vlan / 64)) {
            let bit = 1 << (vlan % 64);
            *word = if wanted { *word | bit } else { *word & !bit };
        }
    }

    /// How a tap with a steering table is to spread frames over this many pairs.
    pub fn rules(&self, pairs: u16) -> Rules {
        match &self.hashing {
            Some(Hashing { hash_types, key, table, unclassified }) => {
                let mut padded = [0; KEY];
                padded.iter_mut().zip(key).for_each(|(to, from)| *to = *from);
                let (hash_types, unclassified) = (*hash_types, *unclassified);
                Rules { hash_types, key: padded, table: table.clone(), unclassified }
            }
            None => Rules::even(pairs),
        }
    }
}

impl Hashing {
    /// Whether frames can be spread so over this many pairs.
    pub fn sound(&self, pairs: u16) -> bool {
        self.key.len() <= KEY
            && self.table.len().is_power_of_two()
            && self.table.len() <= ENTRIES
            && self.table.iter().chain([&self.unclassified]).all(|pair| *pair < pairs)
    }
}

/// Bytes of a frame that [`Wanted::frame`] looks at: both addresses, and a VLAN tag.
pub const CHECKED_LEN: usize = 16;

/// Which frames a driver wants.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted(Option<Filter>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Filter {
    settings: Settings,
    mac: Option<u64>,
    by_vlan: bool,
}

impl Wanted {
    /// What a driver wants that has settled on these features, at a NIC whose own address is this one.
    pub fn new(settings: &Settings, features: u64, own: Option<MacAddress>) -> Self {
        if settings.promiscuous {
            return Self(None);
        }
        let mac = settings.mac.or(own).map(|mac| number(mac.bytes()));
        Self(Some(Filter { settings: settings.clone(), mac, by_vlan: features & features::CTRL_VLAN != 0 }))
    }

    /// Whether it wants the frame that starts with these bytes.
    #[inline]
    pub fn frame(&self, head: &[u8]) -> bool {
        self.0.as_ref().is_none_or(|filter| filter.frame(head))
    }
}

impl Filter {
    fn frame(&self, head: &[u8]) -> bool {
        const VLAN: [u8; 2] = [0x81, 0];
        let Some((address, rest)) = head.split_first_chunk::<6>() else { return false };
        if let (true, Some([t0, t1, v0, v1])) = (self.by_vlan, rest.get(6..10))
            && [*t0, *t1] == VLAN
            && !self.vlan(u16::from_be_bytes([v0 & 0x0f, *v1]))
        {
            return false;
        }
        let settings = &self.settings;
        let number = number(*address);
        if *address == [0xff; 6] {
            !settings.no_broadcast
        } else if address[0] & 1 != 0 {
            !settings.no_multicast && (settings.all_multicast || settings.multicast.contains(number))
        } else {
            let own = self.mac.is_none_or(|mac| mac == number);
            !settings.no_unicast && (settings.all_unicast || own || settings.unicast.contains(number))
        }
    }

    fn vlan(&self, vlan: u16) -> bool {
        let word = self.settings.vlans.get(usize::from(vlan / 64));
        word.is_some_and(|word| word >> (vlan % 64) & 1 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
    const ALL: [u8; 6] = [0xff; 6];

    fn wants(change: impl FnOnce(&mut Settings)) -> [bool; 4] {
        let mut settings = Settings { promiscuous: false, ..Settings::default() };
        change(&mut settings);
        assert!(settings.sound(1));
        let wanted = Wanted::new(&settings, u64::MAX, Some(MacAddress::new(OWN).unwrap()));
        [OWN, OTHER, GROUP, ALL].map(|to| wanted.frame(&[&to[..], &OTHER, &[8, 0, 0, 0]].concat()))
    }

    #[test]
    fn a_driver_gets_what_it_wants() {
        assert_eq!(wants(|_| {}), [true, false, false, true]);
        assert_eq!(wants(|s| s.promiscuous = true), [true; 4]);
        assert_eq!(wants(|s| s.all_unicast = true), [true, true, false, true]);
        assert_eq!(wants(|s| s.all_multicast = true), [true, false, true, true]);
        assert_eq!(wants(|s| s.no_broadcast = true), [true, false, false, false]);
        let addresses = |addresses: &[[u8; 6]]| Addresses::new(addresses.iter().copied());
        assert_eq!(wants(|s| s.unicast = addresses(&[OTHER])), [true, true, false, true]);
        assert_eq!(wants(|s| s.multicast = addresses(&[GROUP])), [true, false, true, true]);
        assert_eq!(wants(|s| s.multicast = addresses(&[GROUP; 65])), [true, false, true, true]);
        let nothing = |s: &mut Settings| {
            (s.all_multicast, s.no_multicast, s.all_unicast, s.no_unicast) = (true, true, true, true);
        };
        assert_eq!(wants(nothing), [false, false, false, true]);
        let other = |s: &mut Settings| s.mac = Some(MacAddress::new(OTHER).unwrap());
        assert_eq!(wants(other), [false, true, false, true]);
    }

    #[test]
    fn tagged_frames_come_from_the_vlans_that_were_named_only() {
        let mut settings = Settings { promiscuous: false, ..Settings::default() };
        settings.set_vlan(4095, true);
        settings.set_vlan(7, true);
        settings.set_vlan(7, false);
        let tagged = |vlan: u16| [&ALL[..], &OTHER, &[0x81, 0], &(0x6000 | vlan).to_be_bytes()].concat();
        let wanted = Wanted::new(&settings, features::CTRL_VLAN, None);
        assert!(wanted.frame(&tagged(4095)) && !wanted.frame(&tagged(7)) && !wanted.frame(&tagged(0)));
        assert!(Wanted::new(&settings, 0, None).frame(&tagged(7)), "the filter was not negotiated");
        assert!(!wanted.frame(&[]));
    }

    #[test]
    fn settings_that_no_nic_can_have_are_told_from_others() {
        let hashing = |key, entries, pair| {
            Some(Hashing { hash_types: 1, key: vec![0; key], table: vec![pair; entries], unclassified: 0 })
        };
        let with = |change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings { pairs: 2, ..Settings::default() };
            change(&mut settings);
            settings.sound(4)
        };
        assert!(with(&|_| {}) && with(&|s| s.hashing = hashing(40, 128, 1)));
        assert!(!with(&|s| s.pairs = 0) && !with(&|s| s.pairs = 5));
        assert!(!with(&|s| s.offloads = Some(1 << 15)) && !with(&|s| s.vlans.clear()));
        assert!(!with(&|s| s.unicast.sorted = vec![1; 65]) && !with(&|s| s.multicast.sorted = vec![2, 1]));
        for (key, entries, pair) in [(41, 1, 0), (0, 3, 0), (0, 256, 0), (0, 0, 0), (0, 1, 2)] {
            assert!(!with(&|s| s.hashing = hashing(key, entries, pair)), "{key} {entries} {pair}");
        }
    }
}
