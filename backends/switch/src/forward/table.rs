//! The forwarding table: which MAC address is behind which port. Pure.
//!
//! An address that dom0 has given to a port is fixed to that port. Others are learnt from frames of the ports that may
//! use any address: at most [`MAX_LEARNT`] from one port, kept for [`AGE`] after their last frame. When a port has that
//! many, frames to further ones are flooded until old ones have aged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use crate::MAX_PORTS;

/// Most addresses learnt from one port.
pub const MAX_LEARNT: usize = 256;

/// How long an address is remembered, in nanoseconds: what bridges do.
pub const AGE: u64 = 300 * SECOND;

const SECOND: u64 = 1_000_000_000;

/// A MAC address.
pub type Mac = [u8; 6];

#[derive(Debug, Clone, Copy)]
struct Place {
    port: usize,
    /// When it was last seen; none if it is fixed.
    seen: Option<u64>,
}

/// The addresses of all ports.
#[derive(Debug)]
pub struct Table {
    places: HashMap<Mac, Place>,
    /// How many were learnt from each port.
    learnt: [usize; MAX_PORTS],
    /// When old addresses were last looked for.
    swept: u64,
}

impl Default for Table {
    fn default() -> Self {
        Self { places: HashMap::new(), learnt: [0; MAX_PORTS], swept: 0 }
    }
}

impl Table {
    /// From now on this address leads to `port`, whoever has it been learnt from.
    pub fn fix(&mut self, mac: Mac, port: usize) {
        if let Some(Place { port, seen: Some(_) }) = self.places.insert(mac, Place { port, seen: None }) {
            self.learnt[port] -= 1;
        }
    }

    /// Forgets all addresses of a port.
    pub fn forget(&mut self, port: usize) {
        self.places.retain(|_, place| place.port != port);
        self.learnt[port] = 0;
    }

    /// A frame has come from this address.
    pub fn learn(&mut self, mac: Mac, port: usize, now: u64) {
        if self.learnt[port] >= MAX_LEARNT && now.saturating_sub(self.swept) > SECOND {
            self.sweep(now);
        }
        let full = self.learnt[port] >= MAX_LEARNT;
        match self.places.entry(mac) {
            Entry::Occupied(mut found) => match *found.get() {
                Place { seen: None, .. } => {}
                Place { port: before, .. } if before == port || !full => {
                    self.learnt[before] -= 1;
                    self.learnt[port] += 1;
                    found.insert(Place { port, seen: Some(now) });
                }
                _ => {}
            },
            Entry::Vacant(free) if !full => {
                self.learnt[port] += 1;
                free.insert(Place { port, seen: Some(now) });
            }
            Entry::Vacant(_) => {}
        }
    }

    /// The port that this address leads to, if that is known.
    #[inline]
    pub fn find(&self, mac: Mac, now: u64) -> Option<usize> {
        let place = self.places.get(&mac)?;
        let young = place.seen.is_none_or(|seen| now.saturating_sub(seen) <= AGE);
        young.then_some(place.port)
    }

    fn sweep(&mut self, now: u64) {
        self.swept = now;
        let learnt = &mut self.learnt;
        self.places.retain(|_, place| {
            let young = place.seen.is_none_or(|seen| now.saturating_sub(seen) <= AGE);
            if !young {
                learnt[place.port] -= 1;
            }
            young
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mac(number: usize) -> Mac {
        let [a, b, ..] = number.to_le_bytes();
        [2, 0, 0, 0, a, b]
    }

    #[test]
    fn a_fixed_address_cannot_be_stolen_and_is_free_when_its_port_goes() {
        let mut table = Table::default();
        table.learn(mac(1), 3, 0);
        table.fix(mac(1), 0);
        table.learn(mac(1), 3, 1);
        assert_eq!((table.find(mac(1), AGE * 9), table.learnt[3]), (Some(0), 0));
        table.forget(0);
        assert_eq!(table.find(mac(1), 2), None);
        table.learn(mac(1), 3, 3);
        assert_eq!(table.find(mac(1), 4), Some(3));
    }

    #[test]
    fn a_learnt_address_moves_with_its_owner_and_ages() {
        let mut table = Table::default();
        table.learn(mac(1), 0, 0);
        table.learn(mac(1), 1, 5);
        assert_eq!((table.find(mac(1), AGE + 5), table.find(mac(1), AGE + 6)), (Some(1), None));
        assert_eq!((table.learnt[0], table.learnt[1]), (0, 1));
    }

    #[test]
    fn a_port_that_floods_the_table_fills_its_own_share_only() {
        let mut table = Table::default();
        (0..5000).for_each(|number| table.learn(mac(number), 0, 1));
        assert_eq!((table.places.len(), table.find(mac(MAX_LEARNT), 1)), (MAX_LEARNT, None));
        table.learn(mac(6000), 1, 1);
        assert_eq!(table.find(mac(6000), 1), Some(1));
        // It takes no address over either, but its own addresses go to others.
        table.learn(mac(6000), 0, 1);
        table.learn(mac(0), 1, 1);
        assert_eq!((table.find(mac(6000), 1), table.find(mac(0), 1)), (Some(1), Some(1)));
        // When the old ones have aged there is room again.
        (0..500).for_each(|number| table.learn(mac(7000 + number), 0, AGE + 2 * SECOND));
        assert_eq!(table.find(mac(7000), AGE + 2 * SECOND), Some(0));
        assert!(table.places.len() <= 2 * MAX_LEARNT);
    }

    proptest! {
        #[test]
        fn the_shares_are_counted_right(
            steps in prop::collection::vec((0..400_usize, 0..4_usize, 0..4_u8, 0..AGE), 0..400),
        ) {
            let mut table = Table::default();
            let mut now = 0;
            for (number, port, act, pause) in steps {
                match act {
                    0 => now += pause,
                    1 if number < 4 => table.fix(mac(number), port),
                    2 if number < 2 => table.forget(port),
                    _ => table.learn(mac(number), port, now),
                }
                for port in 0..4 {
                    let learnt = table.places.values().filter(|place| place.port == port && place.seen.is_some());
                    prop_assert_eq!(learnt.count(), table.learnt[port]);
                    prop_assert!(table.learnt[port] <= MAX_LEARNT);
                }
            }
        }
    }
}
