//! The configuration space of one PCI function: bytes, which of them a guest may change, and what that means.
//!
//! Pure: no device and no KVM is known here. Every byte has a mask of writable bits, so any width at any offset
//! is well defined; BAR sizing falls out of it (a size's low bits stay zero). A function has one 32-bit memory
//! BAR or none. The extended space (0x100–0xfff) reads as zero: no extended capabilities.

use std::ops::Range;

/// Offsets in the type 0 header (PCI 3.0 §6.1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// Memory decoding and bus mastering on. Bus mastering is not enforced: the backend's rings are checked anyway.
const COMMAND_WRITABLE: u16 = COMMAND_MEMORY | 1 << 2 | 1 << 10;
const COMMAND_MEMORY: u16 = 1 << 1;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// End of the configuration space that exists.
const SIZE: usize = 0x100;

/// What a function says it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor id.
    pub vendor: u16,
    /// Device id.
    pub device: u16,
    /// Revision id.
    pub revision: u8,
    /// Base class, subclass, interface: 24 bits.
    pub class: u32,
    /// Subsystem vendor id.
    pub subsystem_vendor: u16,
    /// Subsystem id.
    pub subsystem: u16,
}

/// One function's configuration space.
#[derive(Debug, Clone)]
pub struct Config {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    /// Where the `next` field of the last capability is.
    link: usize,
    /// Where the next capability goes.
    free: usize,
    bar_size: u32,
}

impl Config {
    /// A function without BAR and capabilities.
    pub fn new(identity: Identity) -> Self {
        let mut config =
            Self { bytes: [0; SIZE], writable: [0; SIZE], link: CAPABILITIES, free: 0x40, bar_size: 0 };
        config.set(0x00, &identity.vendor.to_le_bytes());
        config.set(0x02, &identity.device.to_le_bytes());
        config.set(0x08, &(identity.class << 8 | u32::from(identity.revision)).to_le_bytes());
        config.set(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.set(0x2e, &identity.subsystem.to_le_bytes());
        config.writable[COMMAND..STATUS].copy_from_slice(&COMMAND_WRITABLE.to_le_bytes());
        config.writable[INTERRUPT_LINE] = 0xff;
        config
    }

    /// Gives the function a memory BAR (number 0) of `size` bytes, a power of two of at least 4096, at `base`.
    pub fn set_bar(&mut self, base: u32, size: u32) {
        self.bar_size = size;
        self.set(BAR0, &base.to_le_bytes());
        self.writable[BAR0..BAR0 + 4].copy_from_slice(&(!(size - 1)).to_le_bytes());
    }

    /// Appends a capability: `body` follows its two header bytes, `writable` masks the body's first bytes.
    /// Returns its offset. All capabilities of a function must fit 192 bytes.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        self.bytes[self.link] = at as u8;
        self.bytes[STATUS] |= STATUS_CAPABILITIES as u8;
        self.bytes[at] = id;
        self.set(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// Reads `data.len()` bytes at `offset`; zero beyond the space.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = offset.checked_add(i).and_then(|at| self.bytes.get(at)).copied().unwrap_or(0);
        }
    }

    /// Writes `data` at `offset`, as far as it is writable.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, byte) in data.iter().enumerate() {
            let Some(at) = offset.checked_add(i).filter(|&at| at < SIZE) else { return };
            let mask = self.writable[at];
            self.bytes[at] = self.bytes[at] & !mask | byte & mask;
        }
    }

    /// Where the BAR decodes: nowhere without memory decoding, and nowhere if it does not lie in `window`
    /// as a whole, wherever the guest has put it.
    pub fn decoded(&self, window: &Range<u64>) -> Option<u64> {
        let base = u64::from(u32::from_le_bytes(self.word(BAR0)));
        let on = u16::from_le_bytes(self.word(COMMAND)) & COMMAND_MEMORY != 0 && self.bar_size != 0;
        (on && base >= window.start && base + u64::from(self.bar_size) <= window.end).then_some(base)
    }

    /// `N` bytes at `at`, which the caller knows to be within the space.
    pub fn word<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut word = [0; N];
        self.read(at, &mut word);
        word
    }

    fn set(&mut self, at: usize, data: &[u8]) {
        self.bytes[at..at + data.len()].copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const WINDOW: Range<u64> = 0xc000_0000..0xe000_0000;

    fn function() -> Config {
        let mut config = Config::new(Identity {
            vendor: 0x1af4,
            device: 0x1042,
            revision: 1,
            class: 0x01_8000,
            subsystem_vendor: 0x1af4,
            subsystem: 2,
        });
        config.set_bar(0xc000_8000, 0x8000);
        config.add_capability(0x11, &[0; 10], &[0, 0xc0]);
        config.add_capability(0x09, &[1, 2, 3], &[]);
        config
    }

    #[test]
    fn all_ones_in_the_bar_read_back_as_its_size_and_decode_nowhere() {
        let mut config = function();
        config.write(COMMAND, &[2, 0]);
        assert_eq!(config.decoded(&WINDOW), Some(0xc000_8000));
        config.write(BAR0, &[0xff; 4]);
        assert_eq!(config.word(BAR0), 0xffff_8000u32.to_le_bytes());
        assert_eq!(config.decoded(&WINDOW), None);
        config.write(BAR0, &0xd000_0000u32.to_le_bytes());
        assert_eq!(config.decoded(&WINDOW), Some(0xd000_0000));
        config.write(COMMAND, &[0]);
        assert_eq!(config.decoded(&WINDOW), None);
    }

    #[test]
    fn a_bar_over_ram_or_across_the_end_of_the_window_decodes_nowhere() {
        let mut config = function();
        config.write(COMMAND, &[2]);
        for base in [0u32, 0x10_0000, 0xbfff_8000, 0xe000_0000, 0xfee0_0000] {
            config.write(BAR0, &base.to_le_bytes());
            assert_eq!(config.decoded(&WINDOW), None, "{base:#x}");
        }
        config.write(BAR0, &0xdfff_8000u32.to_le_bytes());
        assert_eq!(config.decoded(&WINDOW), Some(0xdfff_8000));
    }

    #[test]
    fn capabilities_are_linked_in_order_and_end() {
        let config = function();
        let first = usize::from(config.word::<1>(CAPABILITIES)[0]);
        let [id, next] = config.word(first);
        assert_eq!((id, config.word::<1>(STATUS)[0] & 0x10), (0x11, 0x10));
        assert_eq!(config.word(usize::from(next)), [0x09, 0]);
    }

    proptest! {
        #[test]
        fn no_write_changes_a_byte_that_is_not_writable(writes in proptest::collection::vec(
            (0usize..5000, proptest::collection::vec(any::<u8>(), 0..9)), 0..50)) {
            let mut config = function();
            for (offset, data) in writes {
                config.write(offset, &data);
            }
            let fresh = function();
            for at in 0..SIZE {
                prop_assert_eq!(config.bytes[at] & !config.writable[at], fresh.bytes[at] & !fresh.writable[at]);
            }
            let mut beyond = [1; 8];
            config.read(0x100, &mut beyond);
            prop_assert_eq!(beyond, [0; 8]);
        }
    }
}
