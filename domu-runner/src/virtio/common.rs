//! The common configuration structure of virtio-pci (virtio 1.3 §4.1.4.3) and the device status (§2.1). Pure.
//!
//! ```text
//! 0 ─▶ ACKNOWLEDGE ─▶ DRIVER ─▶ FEATURES_OK ─▶ DRIVER_OK      any ─ write 0 ─▶ 0
//!                               (if acceptable)   │ Start        │ Reset: reads NEEDS_RESET until it is finished
//!                                                 └ needs FEATURES_OK and no NEEDS_RESET
//! ```
//!
//! Reads of any width work; a write counts only if it is exactly one field (64-bit fields: whole or by halves),
//! and only when the driver may make it: features before FEATURES_OK, a queue while it is disabled and before
//! DRIVER_OK. Any other is ignored. A queue that is enabled with a ring outside RAM, misaligned or wrapping is
//! not enabled, and the device asks to be reset.

use crate::memory::RamRegion;
use crate::pci::msix::NO_VECTOR;

/// Bytes of the structure.
pub const LENGTH: usize = 56;

/// Device status bits.
pub mod status {
    /// The driver has finished setting up.
    pub const DRIVER_OK: u8 = 4;
    /// The features are settled.
    pub const FEATURES_OK: u8 = 8;
    /// The device cannot go on without a reset.
    pub const NEEDS_RESET: u8 = 64;
    /// What a driver may set: the two above, ACKNOWLEDGE, DRIVER, FAILED.
    pub const DRIVERS: u8 = 1 | 2 | DRIVER_OK | FEATURES_OK | 128;
}

/// `VIRTIO_F_VERSION_1`: without it there is no modern device.
pub const VERSION_1: u64 = 1 << 32;

/// The features that this transport can carry (virtio 1.3 §6): all that belong to the device type, and of the
/// general ones INDIRECT_DESC, EVENT_IDX, VERSION_1, IN_ORDER and ORDER_PLATFORM. Not ACCESS_PLATFORM (there is no
/// IOMMU), RING_PACKED, SR_IOV, NOTIFICATION_DATA, RING_RESET or what the specification will add.
pub const PASSED_FEATURES: u64 =
    0x00ff_ffff | 1 << 28 | 1 << 29 | VERSION_1 | 1 << 35 | 1 << 36 | 0xfffc_0000_0000_0000;

/// What a write asks the transport to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    None,
    /// A queue's or the configuration's vector has changed.
    Vectors,
    /// DRIVER_OK was set: let the backend run the enabled queues.
    Start,
    /// The driver resets the device: stop the backend, then [finish](Common::finish_reset). Until then the registers
    /// read as new but for the status, and are not written.
    Reset,
}

/// One queue's registers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Queue {
    /// Ring size, a power of two up to what the device offers.
    pub size: u16,
    /// MSI-X vector, or [`NO_VECTOR`].
    pub vector: u16,
    /// Enabled: size and addresses are sound from here on.
    pub enabled: bool,
    /// Guest physical address of the descriptor table.
    pub desc: u64,
    /// Of the available ring.
    pub driver: u64,
    /// Of the used ring.
    pub device: u64,
}

/// The rings of a queue as host addresses, for vhost-user (`SET_VRING_ADDR`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rings {
    /// The descriptor table.
    pub desc: u64,
    /// The available ring.
    pub avail: u64,
    /// The used ring.
    pub used: u64,
}

impl Queue {
    fn new(size: u16) -> Self {
        Self { size, vector: NO_VECTOR, enabled: false, desc: 0, driver: 0, device: 0 }
    }

    /// Where the rings are in this process; none unless each is aligned (virtio 1.3 §2.7) and in one piece of RAM.
    pub fn rings(&self, ram: &[RamRegion]) -> Option<Rings> {
        let size = u64::from(self.size);
        Some(Rings {
            desc: host(ram, self.desc, 16 * size, 16)?,
            avail: host(ram, self.driver, 6 + 2 * size, 2)?,
            used: host(ram, self.device, 6 + 8 * size, 4)?,
        })
    }
}

fn host(ram: &[RamRegion], gpa: u64, length: u64, alignment: u64) -> Option<u64> {
    let end = gpa.checked_add(length).filter(|_| gpa.is_multiple_of(alignment))?;
    let region = ram.iter().find(|region| gpa >= region.gpa && end <= region.gpa + region.size)?;
    Some(region.host + (gpa - region.gpa))
}

/// The registers of one device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Common {
    offered: u64,
    queue_size: u16,
    /// Number of MSI-X vectors.
    vectors: u16,
    device_feature_select: u32,
    driver_feature_select: u32,
    accepted: u64,
    config_vector: u16,
    config_generation: u8,
    status: u8,
    queue_select: u16,
    queues: Vec<Queue>,
    /// A reset is under way.
    resetting: bool,
}

impl Common {
    /// A device that offers `features`, and `queues` queues of up to `queue_size` (a power of two) entries.
    pub fn new(features: u64, queues: u16, queue_size: u16, vectors: u16) -> Self {
        Self {
            offered: features,
            queue_size,
            vectors,
            device_feature_select: 0,
            driver_feature_select: 0,
            accepted: 0,
            config_vector: NO_VECTOR,
            config_generation: 0,
            status: 0,
            queue_select: 0,
            queues: vec![Queue::new(queue_size); usize::from(queues)],
            resetting: false,
        }
    }

    /// The features are these, before a driver has looked at them.
    pub fn offer(&mut self, features: u64) {
        self.offered = features;
    }

    /// The reset is over: the status reads 0 (§2.1.2).
    pub fn finish_reset(&mut self) {
        (self.resetting, self.status) = (false, 0);
    }

    /// The queues.
    pub fn queues(&self) -> &[Queue] {
        &self.queues
    }

    /// The vector that tells of a changed configuration, or [`NO_VECTOR`].
    pub fn config_vector(&self) -> u16 {
        self.config_vector
    }

    /// The device's configuration is another one: a driver that reads it just now notices (§4.1.4.3.1).
    pub fn config_changed(&mut self) {
        self.config_generation = self.config_generation.wrapping_add(1);
    }

    /// The features that a backend must have: those agreed on, and before that, those offered.
    pub fn needed(&self) -> u64 {
        if self.status & status::FEATURES_OK != 0 { self.accepted } else { self.offered }
    }

    /// The features both sides agreed on; they count from FEATURES_OK.
    pub fn features(&self) -> u64 {
        self.accepted
    }

    /// Reads `data.len()` bytes at `offset`; zero beyond the structure.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let image = self.image();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = image.get(offset + i).copied().unwrap_or(0);
        }
    }

    fn image(&self) -> [u8; LENGTH] {
        let mut image = [0; LENGTH];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &self.device_feature_select.to_le_bytes());
        put(4, &half(self.offered, self.device_feature_select).to_le_bytes());
        put(8, &self.driver_feature_select.to_le_bytes());
        put(12, &half(self.accepted, self.driver_feature_select).to_le_bytes());
        put(16, &self.config_vector.to_le_bytes());
        put(18, &(self.queues.len() as u16).to_le_bytes());
        put(20, &[self.status, self.config_generation]);
        put(22, &self.queue_select.to_le_bytes());
        // A queue that does not exist has size 0 (§4.1.4.3.1).
        if let Some(queue) = self.queues.get(usize::from(self.queue_select)) {
            put(24, &queue.size.to_le_bytes());
            put(26, &queue.vector.to_le_bytes());
            put(28, &u16::from(queue.enabled).to_le_bytes());
            put(30, &self.queue_select.to_le_bytes());
            put(32, &queue.desc.to_le_bytes());
            put(40, &queue.driver.to_le_bytes());
            put(48, &queue.device.to_le_bytes());
        }
        image
    }

    /// Writes one field. `ram` is where rings may be.
    pub fn write(&mut self, offset: usize, data: &[u8], ram: &[RamRegion]) -> Action {
        // A driver waits (§4.1.4.3.2).
        if self.resetting {
            return Action::None;
        }
        if let Ok(value) = data.try_into().map(u64::from_le_bytes) {
            // A driver should use halves (§4.1.3.1); the whole is no different.
            if matches!(offset, 32 | 40 | 48) {
                self.write(offset, &(value as u32).to_le_bytes(), ram);
                return self.write(offset + 4, &((value >> 32) as u32).to_le_bytes(), ram);
            }
        } else if let Ok(value) = data.try_into().map(u32::from_le_bytes) {
            match offset {
                0 => self.device_feature_select = value,
                8 => self.driver_feature_select = value,
                12 if self.status & status::FEATURES_OK == 0 && self.driver_feature_select < 2 => {
                    set_half(&mut self.accepted, self.driver_feature_select, value);
                }
                32 | 36 => self.set_address(|queue| &mut queue.desc, offset, value),
                40 | 44 => self.set_address(|queue| &mut queue.driver, offset, value),
                48 | 52 => self.set_address(|queue| &mut queue.device, offset, value),
                _ => {}
            }
        } else if let Ok(value) = data.try_into().map(u16::from_le_bytes) {
            return self.write16(offset, value, ram);
        } else if let (20, &[value]) = (offset, data) {
            return self.set_status(value);
        }
        Action::None
    }

    fn write16(&mut self, offset: usize, value: u16, ram: &[RamRegion]) -> Action {
        // A vector that does not exist reads back as none (§4.1.5.1.2.1).
        let vector = if value < self.vectors { value } else { NO_VECTOR };
        match offset {
            16 => {
                self.config_vector = vector;
                return Action::Vectors;
            }
            22 => self.queue_select = value,
            26 => {
                if let Some(queue) = self.queues.get_mut(usize::from(self.queue_select)) {
                    queue.vector = vector;
                    return Action::Vectors;
                }
            }
            24 if value.is_power_of_two() && value <= self.queue_size => {
                if let Some(queue) = self.open_queue() {
                    queue.size = value;
                }
            }
            28 if value == 1 => {
                if let Some(queue) = self.open_queue() {
                    queue.enabled = queue.rings(ram).is_some();
                    if !queue.enabled {
                        self.status |= status::NEEDS_RESET;
                    }
                }
            }
            _ => {}
        }
        Action::None
    }

    /// The selected queue, if its registers may be written.
    fn open_queue(&mut self) -> Option<&mut Queue> {
        let running = self.status & status::DRIVER_OK != 0;
        self.queues.get_mut(usize::from(self.queue_select)).filter(|queue| !running && !queue.enabled)
    }

    fn set_address(&mut self, field: impl Fn(&mut Queue) -> &mut u64, offset: usize, value: u32) {
        if let Some(queue) = self.open_queue() {
            set_half(field(queue), (offset as u32 >> 2) & 1, value);
        }
    }

    fn set_status(&mut self, value: u8) -> Action {
        if value == 0 {
            *self = Self::new(self.offered, self.queues.len() as u16, self.queue_size, self.vectors);
            (self.resetting, self.status) = (true, status::NEEDS_RESET);
            return Action::Reset;
        }
        // A driver must not clear bits (§2.1.1): it cannot.
        let mut new = (value & status::DRIVERS) & !self.status;
        if new & status::FEATURES_OK != 0 && !self.acceptable() {
            new &= !status::FEATURES_OK;
        }
        let settled =
            (self.status | new) & (status::FEATURES_OK | status::NEEDS_RESET) == status::FEATURES_OK;
        if !settled {
            new &= !status::DRIVER_OK;
        }
        self.status |= new;
        if new & status::DRIVER_OK != 0 { Action::Start } else { Action::None }
    }

    fn acceptable(&self) -> bool {
        self.accepted & !self.offered == 0 && self.accepted & VERSION_1 != 0
    }
}

fn half(value: u64, select: u32) -> u32 {
    match select {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, select: u32, half: u32) {
    let shift = 32 * (select & 1);
    *value = *value & !(0xffff_ffff << shift) | u64::from(half) << shift;
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RAM: [RamRegion; 2] = [
        RamRegion { gpa: 0, size: 0x10_0000, host: 0x7000_0000, offset: 0 },
        RamRegion { gpa: 1 << 32, size: 0x10_0000, host: 0x9000_0000, offset: 0x10_0000 },
    ];
    const FEATURES: u64 = VERSION_1 | 1 << 29 | 1 << 9;

    fn device() -> Common {
        Common::new(FEATURES, 2, 256, 3)
    }

    fn write(device: &mut Common, offset: usize, data: &[u8]) -> Action {
        device.write(offset, data, &RAM)
    }

    fn accept(device: &mut Common, features: u64) {
        for select in 0..2u32 {
            write(device, 8, &select.to_le_bytes());
            write(device, 12, &half(features, select).to_le_bytes());
        }
    }

    fn enable(device: &mut Common, index: u16, desc: u64, driver: u64, used: u64) {
        write(device, 22, &index.to_le_bytes());
        write(device, 32, &desc.to_le_bytes());
        write(device, 40, &driver.to_le_bytes());
        write(device, 48, &used.to_le_bytes());
        write(device, 28, &1u16.to_le_bytes());
    }

    fn peek<const N: usize>(device: &Common, offset: usize) -> [u8; N] {
        let mut data = [0xaa; N];
        device.read(offset, &mut data);
        data
    }

    #[test]
    fn a_driver_that_follows_the_book_starts_the_device_and_resets_it() {
        let mut device = device();
        for status in [1, 3] {
            assert_eq!(write(&mut device, 20, &[status]), Action::None);
        }
        accept(&mut device, FEATURES);
        assert_eq!(write(&mut device, 20, &[11]), Action::None);
        assert_eq!(peek(&device, 20), [11]);
        enable(&mut device, 1, 1 << 32, 0x2000, 0x3000);
        assert_eq!(write(&mut device, 26, &[1, 0]), Action::Vectors);
        assert_eq!(write(&mut device, 20, &[15]), Action::Start);
        let queue = device.queues()[1];
        let rings = Rings { desc: 0x9000_0000, avail: 0x7000_2000, used: 0x7000_3000 };
        assert_eq!((queue.enabled, queue.vector, queue.rings(&RAM)), (true, 1, Some(rings)));
        assert_eq!(write(&mut device, 20, &[15]), Action::None, "it runs already");
        assert_eq!(write(&mut device, 20, &[0]), Action::Reset);
        // Until it is over the driver sees that, and can do nothing.
        for status in [0, 1, 15] {
            assert_eq!(write(&mut device, 20, &[status]), Action::None);
            assert_eq!(peek(&device, 20), [status::NEEDS_RESET]);
        }
        enable(&mut device, 1, 1 << 32, 0x2000, 0x3000);
        device.finish_reset();
        assert_eq!(device, self::device());
    }

    #[test]
    fn features_that_were_not_offered_or_lack_version_1_are_not_agreed_on() {
        for features in [0, FEATURES | 1 << 34, FEATURES & !VERSION_1] {
            let mut device = device();
            accept(&mut device, features);
            assert_eq!(write(&mut device, 20, &[15]), Action::None);
            assert_eq!(peek(&device, 20), [3]);
        }
    }

    #[test]
    fn features_are_settled_by_features_ok() {
        let mut device = device();
        accept(&mut device, VERSION_1);
        write(&mut device, 20, &[11]);
        accept(&mut device, FEATURES);
        assert_eq!(device.features(), VERSION_1);
    }

    #[test]
    fn a_ring_outside_ram_misaligned_or_wrapping_asks_for_a_reset_and_never_starts() {
        let top = !0xf;
        for (desc, driver, used) in [
            (0x10_0000, 0x2000, 0x3000),
            (0xf_f010, 0x2000, 0x3000),
            (0x1008, 0x2000, 0x3000),
            (0x1000, 0x2001, 0x3000),
            (0x1000, 0x2000, 0x3002),
            (top, 0x2000, 0x3000),
            (0x1000, top, 0x3000),
            (0x1000, 0x2000, (1 << 32) - 16),
        ] {
            let mut device = device();
            accept(&mut device, FEATURES);
            write(&mut device, 20, &[11]);
            enable(&mut device, 0, desc, driver, used);
            assert_eq!(peek(&device, 28), [0u8, 0], "{desc:#x} {driver:#x} {used:#x}");
            assert_eq!(write(&mut device, 20, &[15]), Action::None);
            assert_eq!(peek(&device, 20), [11 | status::NEEDS_RESET]);
            assert_eq!(write(&mut device, 20, &[0]), Action::Reset);
            device.finish_reset();
            assert_eq!(peek(&device, 20), [0]);
        }
    }

    #[test]
    fn queue_registers_are_fixed_once_it_is_enabled_and_a_queue_that_is_not_there_reads_as_zero() {
        let mut device = device();
        enable(&mut device, 0, 0x1000, 0x2000, 0x3000);
        let before = device.queues()[0];
        write(&mut device, 24, &16u16.to_le_bytes());
        write(&mut device, 32, &0x8000u64.to_le_bytes());
        write(&mut device, 28, &[0, 0]);
        assert_eq!(device.queues()[0], before);
        write(&mut device, 22, &2u16.to_le_bytes());
        enable(&mut device, 0xffff, 0x1000, 0x2000, 0x3000);
        assert_eq!(peek(&device, 24), [0u8; 32]);
    }

    #[test]
    fn only_powers_of_two_up_to_the_offered_size_and_existing_vectors_are_taken() {
        let mut device = device();
        for (size, then) in [(0u16, 256u16), (3, 256), (512, 256), (0x8000, 256), (1, 1), (256, 256)] {
            write(&mut device, 24, &size.to_le_bytes());
            assert_eq!(peek(&device, 24), then.to_le_bytes());
        }
        for (vector, then) in [(2u16, 2u16), (3, NO_VECTOR), (NO_VECTOR, NO_VECTOR)] {
            write(&mut device, 26, &vector.to_le_bytes());
            write(&mut device, 16, &vector.to_le_bytes());
            assert_eq!((peek(&device, 26), peek(&device, 16)), (then.to_le_bytes(), then.to_le_bytes()));
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_a_started_device_has_agreed_features_and_sound_rings(
            writes in proptest::collection::vec(prop_oneof![
                // Registers of this structure, with the values a driver would use nearly as often as others.
                (0usize..64, prop_oneof![Just(0u64), Just(1), Just(2), Just(11), Just(15), Just(0x1000), any::<u64>()],
                 prop_oneof![Just(1usize), Just(2), Just(4), Just(8)]),
                Just((20, 15, 1)), Just((20, 0, 1)), Just((28, 1, 2)), Just((8, 1, 4)), Just((12, 1, 4)),
            ], 0..120)) {
            let mut device = device();
            for (offset, value, width) in writes {
                let before = device.status;
                let action = write(&mut device, offset, &value.to_le_bytes()[..width]);
                match action {
                    Action::Start => {
                        prop_assert!(device.accepted & !FEATURES == 0 && device.accepted & VERSION_1 != 0);
                        prop_assert_eq!(before & (status::DRIVER_OK | status::NEEDS_RESET), 0);
                    }
                    Action::Reset => {
                        device.finish_reset();
                        prop_assert_eq!(&device, &self::device());
                    }
                    _ => prop_assert_eq!(device.status & before, before, "bits were cleared"),
                }
                for queue in device.queues().iter().filter(|queue| queue.enabled) {
                    prop_assert!(queue.rings(&RAM).is_some());
                    prop_assert!(queue.size.is_power_of_two() && queue.size <= 256);
                }
            }
        }
    }
}
