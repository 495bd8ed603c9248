//! The PCI slots of one machine: which device has which.
//!
//! A device keeps its slot for as long as the machine lives, so slots are written down and never counted again.

use std::collections::BTreeSet;

use shared_abi::Slot;

/// The slots that are taken.
#[derive(Debug, Default)]
pub struct SlotMap(BTreeSet<Slot>);

impl SlotMap {
    /// Takes the lowest free slot. None if all 31 are taken.
    pub fn take(&mut self) -> Option<Slot> {
        let free = Slot::all().find(|slot| !self.0.contains(slot))?;
        self.0.insert(free);
        Some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_slot_is_given_once_and_a_full_bus_has_none() {
        let mut slots = SlotMap::default();
        let taken: Vec<u8> = std::iter::from_fn(|| slots.take()).map(Slot::number).collect();
        assert_eq!(taken, (1..=31).collect::<Vec<_>>());
        assert_eq!(slots.take(), None);
    }
}
