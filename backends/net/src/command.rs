//! The commands of the control queue (virtio 1.3 §5.1.6.5): what one changes, and which ones are refused. No I/O.
//!
//! Refused: commands of features that were not settled on, of another length than they have, with values out of range,
//! and what the NIC's own rules forbid. A refused command changes nothing.

use shared_abi::MacAddress;
use shared_abi::steering::{HASH_ALL, KEY};

use crate::features;
use crate::settings::{Addresses, Hashing, Settings};

/// Bytes of the longest command that is looked at: both address tables with more entries than any driver has.
pub const MAX_COMMAND: usize = 16 * 1024;

/// Not a command for this NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused;

/// What a driver may set.
#[derive(Debug, Clone, Copy)]
pub struct Rights {
    /// What driver and device have settled on.
    pub features: u64,
    /// How many queue pairs there are.
    pub pairs: u16,
    /// The only address that the driver may choose; none if it may choose any.
    pub mac: Option<MacAddress>,
}

/// What the settings are after a command.
///
/// # Errors
/// [`Refused`].
pub fn obey(settings: &Settings, rights: Rights, command: &[u8]) -> Result<Settings, Refused> {
    let [class, number, data @ ..] = command else { return Err(Refused) };
    let mut settings = settings.clone();
    let needs = |feature: u64| if rights.features & feature == 0 { Err(Refused) } else { Ok(()) };
    match (*class, *number) {
        (0, number) => {
            needs(if number < 2 { features::CTRL_RX } else { features::CTRL_RX_EXTRA })?;
            *mode(&mut settings, number)? = on(data)?;
        }
        (1, 0) => {
            needs(features::CTRL_RX)?;
            let (unicast, rest) = addresses(data)?;
            let (multicast, rest) = addresses(rest)?;
            (settings.unicast, settings.multicast) = (unicast, multicast);
            whole(rest)?;
        }
        (1, 1) => {
            needs(features::CTRL_MAC_ADDR)?;
            settings.mac = Some(address(data, rights)?);
        }
        (2, 0 | 1) => {
            needs(features::CTRL_VLAN)?;
            let vlan = u16::from_le_bytes(data.try_into().map_err(|_| Refused)?);
            if vlan >= 4096 {
                return Err(Refused);
            }
            settings.set_vlan(vlan, *number == 0);
        }
        (3, 0) => {
            needs(features::GUEST_ANNOUNCE)?;
            whole(data)?;
            settings.announce = false;
        }
        (4, 0) => {
            needs(features::MQ)?;
            settings.pairs = u16::from_le_bytes(data.try_into().map_err(|_| Refused)?);
            settings.hashing = None;
        }
        (4, 1) => {
            needs(features::RSS)?;
            let (pairs, hashing) = hashing(data, rights)?;
            (settings.pairs, settings.hashing) = (pairs, Some(hashing));
        }
        (5, 0) => {
            needs(features::CTRL_GUEST_OFFLOADS)?;
            let taken = u64::from_le_bytes(data.try_into().map_err(|_| Refused)?);
            if taken & !(rights.features & features::TAKEN) != 0 {
                return Err(Refused);
            }
            settings.offloads = Some(taken);
        }
        _ => return Err(Refused),
    }
    if settings.sound(rights.pairs) { Ok(settings) } else { Err(Refused) }
}

/// What a command of `VIRTIO_NET_CTRL_RX` switches.
fn mode(settings: &mut Settings, number: u8) -> Result<&mut bool, Refused> {
    Ok(match number {
        0 => &mut settings.promiscuous,
        1 => &mut settings.all_multicast,
        2 => &mut settings.all_unicast,
        3 => &mut settings.no_multicast,
        4 => &mut settings.no_unicast,
        5 => &mut settings.no_broadcast,
        _ => return Err(Refused),
    })
}

fn on(data: &[u8]) -> Result<bool, Refused> {
    match data {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(Refused),
    }
}

fn whole(rest: &[u8]) -> Result<(), Refused> {
    if rest.is_empty() { Ok(()) } else { Err(Refused) }
}

/// A table of addresses (`struct virtio_net_ctrl_mac`), and what follows it.
fn addresses(data: &[u8]) -> Result<(Addresses, &[u8]), Refused> {
    let (entries, rest) = data.split_first_chunk::<4>().ok_or(Refused)?;
    let bytes = usize::try_from(u32::from_le_bytes(*entries)).ok().and_then(|n| n.checked_mul(6));
    let (table, rest) = bytes.and_then(|bytes| rest.split_at_checked(bytes)).ok_or(Refused)?;
    let (table, _) = table.as_chunks::<6>();
    Ok((Addresses::new(table.iter().copied()), rest))
}

fn address(data: &[u8], rights: Rights) -> Result<MacAddress, Refused> {
    let bytes: [u8; 6] = data.try_into().map_err(|_| Refused)?;
    let mac = MacAddress::new(bytes).map_err(|_| Refused)?;
    let allowed = bytes != [0; 6] && rights.mac.is_none_or(|only| only == mac);
    if allowed { Ok(mac) } else { Err(Refused) }
}

/// `struct virtio_net_rss_config`: hash types, mask, unclassified, table, number of transmit queues, key length, key.
fn hashing(data: &[u8], rights: Rights) -> Result<(u16, Hashing), Refused> {
    fn word<'a>(data: &mut &'a [u8]) -> Result<u16, Refused> {
        let (word, rest): (&'a [u8; 2], _) = data.split_first_chunk().ok_or(Refused)?;
        *data = rest;
        Ok(u16::from_le_bytes(*word))
    }
    let (types, mut rest) = data.split_first_chunk::<4>().ok_or(Refused)?;
    let hash_types = u32::from_le_bytes(*types);
    let mask = word(&mut rest)?;
    let unclassified = word(&mut rest)?;
    let table = (0..=mask).map(|_| word(&mut rest)).collect::<Result<Vec<_>, _>>()?;
    let transmitting = word(&mut rest)?;
    let (length, key) = rest.split_first().ok_or(Refused)?;
    let bounds = hash_types & !HASH_ALL == 0
        && (1..=rights.pairs).contains(&transmitting)
        && usize::from(*length) == key.len()
        && key.len() <= KEY;
    let highest = table.iter().chain([&unclassified]).max().copied().unwrap_or(0);
    // Frames come on the pairs that the table names, and go on the first ones.
    let pairs = transmitting.max(highest.saturating_add(1));
    let hashing = Hashing { hash_types, key: key.to_vec(), table, unclassified };
    if bounds { Ok((pairs, hashing)) } else { Err(Refused) }
}

#[cfg(test)]
mod tests;
