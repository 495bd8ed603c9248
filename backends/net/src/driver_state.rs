//! The settings of a NIC's driver, in a memory file that outlives this process.
//!
//! ```text
//!   0  generation u64: 0 for no settings, odd for the first slot, even for the second
//!   4096, 10240  two slots: length u32, then the settings as JSON
//! ```
//!
//! A save writes the settings to the unused slot, and then the generation that selects it: if the process is killed in
//! between, the file still selects the settings from before. The format is JSON because the process that takes over may
//! be another version of this program. The file may hold anything: contents that make no sense count as no settings.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use shared_abi::limits::NIC_STATE_LEN;

use crate::settings::Settings;

const SLOTS_START: u64 = 4096;
/// Bytes of each slot, its length included.
const SLOT_LEN: u64 = (NIC_STATE_LEN - SLOTS_START) / 2;

/// All that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Whether the tap cuts datagrams, once it was asked.
    pub datagrams: Option<bool>,
    /// What the driver has set.
    pub settings: Settings,
}

/// The file; none for a NIC whose settings need not outlive this process.
#[derive(Debug)]
pub struct DriverState(Option<File>);

impl DriverState {
    /// In this file, which has [`NIC_STATE_LEN`] bytes.
    pub fn new(file: Option<File>) -> Self {
        Self(file)
    }

    /// Whether there is a file.
    pub fn is_kept(&self) -> bool {
        self.0.is_some()
    }

    /// What is kept for a NIC with `pairs` queue pairs; none if there is nothing that makes sense.
    pub fn load(&self, pairs: u16) -> Option<Memory> {
        let file = self.0.as_ref()?;
        let slot = slot(generation(file).ok().filter(|generation| *generation != 0)?);
        let mut length = [0; 4];
        file.read_exact_at(&mut length, slot).ok()?;
        let length = u64::from(u32::from_le_bytes(length));
        if length > SLOT_LEN - 4 {
            return None;
        }
        let mut text = vec![0; length as usize];
        file.read_exact_at(&mut text, slot + 4).ok()?;
        let memory: Memory = serde_json::from_slice(&text).ok()?;
        memory.settings.sound(pairs).then_some(memory)
    }

    /// Keeps this.
    ///
    /// # Errors
    /// What the file says; what was kept before is kept still.
    pub fn save(&self, memory: &Memory) -> io::Result<()> {
        let Some(file) = &self.0 else { return Ok(()) };
        let text = serde_json::to_vec(memory)?;
        // The bounds of the settings are such that they fit; a test says so.
        let fits = u32::try_from(text.len()).ok().filter(|length| u64::from(*length) <= SLOT_LEN - 4);
        let length = fits.ok_or(io::ErrorKind::FileTooLarge)?;
        let next = generation(file)?.checked_add(1).unwrap_or(1);
        file.write_all_at(&[&length.to_le_bytes()[..], &text].concat(), slot(next))?;
        file.write_all_at(&next.to_le_bytes(), 0)
    }
}

fn generation(file: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(u64::from_le_bytes(bytes))
}

fn slot(generation: u64) -> u64 {
    if generation % 2 == 1 { SLOTS_START } else { SLOTS_START + SLOT_LEN }
}

#[cfg(test)]
mod tests {
    use domus_startup::memfd;
    use proptest::prelude::*;
    use shared_abi::MacAddress;

    use crate::command::{Rights, obey};

    use super::*;

    fn file() -> File {
        memfd::sealed("kept", NIC_STATE_LEN).unwrap()
    }

    /// As long as settings can become.
    fn longest() -> Memory {
        let any = Rights { features: u64::MAX, pairs: 31, mac: None };
        let mut settings = Settings::default();
        let mut table = vec![1, 0];
        for _ in 0..2 {
            table.extend([64, 0, 0, 0]);
            table.extend([0xff; 6 * 64]);
        }
        settings = obey(&settings, any, &table).unwrap();
        let mut hashing = vec![4, 1, 0x3f, 0, 0, 0, 127, 0, 30, 0];
        hashing.extend([30, 0].repeat(128));
        hashing.extend([31, 0, 40]);
        hashing.extend([255; 40]);
        settings = obey(&settings, any, &hashing).unwrap();
        (0..4096).for_each(|vlan| settings.set_vlan(vlan, true));
        settings.mac = Some(MacAddress::new([0xfe; 6]).unwrap());
        settings.offloads = Some(crate::features::TAKEN);
        settings.announce = true;
        Memory { datagrams: Some(false), settings }
    }

    #[test]
    fn what_is_saved_is_loaded_by_the_next_and_the_longest_fits() {
        let (file, longest) = (file(), longest());
        let kept = DriverState::new(Some(file.try_clone().unwrap()));
        assert_eq!(kept.load(31), None, "an empty file");
        for memory in [&Memory::default(), &longest, &Memory::default(), &longest] {
            kept.save(memory).unwrap();
            let next = DriverState::new(Some(file.try_clone().unwrap()));
            assert_eq!(next.load(31).as_ref(), Some(memory));
        }
        assert_eq!(kept.load(30), None, "a NIC with fewer pairs");
    }

    #[test]
    fn a_process_killed_while_it_writes_leaves_what_was_there() {
        let file = file();
        let kept = DriverState::new(Some(file.try_clone().unwrap()));
        kept.save(&longest()).unwrap();
        file.write_all_at(&[0xff; 100], slot(2)).unwrap();
        assert_eq!(kept.load(31), Some(longest()));
    }

    proptest! {
        #[test]
        fn whatever_is_in_the_file_what_is_loaded_is_sound(
            changes in proptest::collection::vec((0_u64..6000, any::<u8>()), 1..20),
            generation: u64,
        ) {
            let file = file();
            let kept = DriverState::new(Some(file.try_clone().unwrap()));
            kept.save(&longest()).unwrap();
            for (at, byte) in changes {
                file.write_all_at(&[byte], SLOTS_START + at).unwrap();
            }
            if generation % 3 == 0 {
                file.write_all_at(&generation.to_le_bytes(), 0).unwrap();
            }
            if let Some(memory) = kept.load(31) {
                prop_assert!(memory.settings.sound(31));
            }
            prop_assert!(kept.save(&Memory::default()).is_ok());
            prop_assert_eq!(kept.load(31), Some(Memory::default()));
        }
    }
}
