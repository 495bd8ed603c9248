//! MSI-X of one function (PCI 3.0 §6.8.2): the table and pending bits, and the irqfds that follow from them.
//!
//! A *source* is an eventfd that somebody else writes (a queue's call eventfd); the guest binds it to a vector,
//! and several sources may share one. While the vector can be delivered, the source is an irqfd on the
//! vector's GSI and no exit happens. While it is masked, the irqfd is taken away, so the eventfd's
//! count grows: that is the pending bit, and it is delivered when the vector is unmasked.
//!
//! Promises: no interrupt is lost by masking; KVM's routes are rewritten only when the message of an unmasked,
//! bound vector changes; whatever a guest writes costs a bounded number of system calls.

use std::sync::Arc;

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::irq::{Gsi, IrqError, IrqRouter, MsiMessage};

/// The capability's id.
pub const CAPABILITY: u8 = 0x11;
/// Message control: MSI-X enable.
const ENABLE: u16 = 1 << 15;
/// Message control: function mask.
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of a table entry: address, data, vector control.
pub const ENTRY: usize = 16;
/// A source that is bound to no vector (virtio 1.3 §4.1.5.1.2: `VIRTIO_MSI_NO_VECTOR`).
pub const NO_VECTOR: u16 = 0xffff;

/// The capability's body for `vectors` (1 to 2048) entries, with table and pending bits in BAR 0; and its write mask.
pub fn capability(vectors: u16, table: u32, pending: u32) -> ([u8; 10], [u8; 2]) {
    let mut body = [0; 10];
    body[..2].copy_from_slice(&(vectors - 1).to_le_bytes());
    body[2..6].copy_from_slice(&table.to_le_bytes());
    body[6..].copy_from_slice(&pending.to_le_bytes());
    (body, (ENABLE | FUNCTION_MASK).to_le_bytes())
}

/// The table and the function's own switches. Pure.
#[derive(Debug, Clone)]
pub struct Table {
    entries: Vec<[u8; ENTRY]>,
    control: u16,
}

impl Table {
    /// All vectors masked, as after a reset.
    pub fn new(vectors: u16) -> Self {
        let mut entry = [0; ENTRY];
        entry[12] = 1;
        Self { entries: vec![entry; usize::from(vectors)], control: 0 }
    }

    /// Reads the table; zero beyond its end.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        let bytes = self.entries.as_flattened();
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bytes.get(offset + i).copied().unwrap_or(0);
        }
    }

    /// Writes the table. Of the vector control only the mask bit exists. True if something changed.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let bytes = self.entries.as_flattened_mut();
        let mut changed = false;
        for (i, &byte) in data.iter().enumerate() {
            let at = offset + i;
            let Some(old) = bytes.get_mut(at) else { break };
            let new = match at % ENTRY {
                12 => byte & 1,
                13.. => 0,
                _ => byte,
            };
            changed |= *old != new;
            *old = new;
        }
        changed
    }

    /// Sets message control. True if something changed.
    pub fn set_control(&mut self, control: u16) -> bool {
        let old = self.control;
        self.control = control & (ENABLE | FUNCTION_MASK);
        self.control != old
    }

    /// The message to send for `vector`; none while it, the function or MSI-X as a whole is masked.
    pub fn message(&self, vector: u16) -> Option<MsiMessage> {
        let entry = self.entries.get(usize::from(vector))?;
        let [a0, a1, a2, a3, a4, a5, a6, a7, d0, d1, d2, d3, mask, ..] = *entry;
        (self.control == ENABLE && mask & 1 == 0).then_some(MsiMessage {
            address: u64::from_le_bytes([a0, a1, a2, a3, a4, a5, a6, a7]),
            data: u32::from_le_bytes([d0, d1, d2, d3]),
        })
    }

    /// Number of vectors.
    pub fn vectors(&self) -> u16 {
        self.entries.len() as u16
    }
}

/// The table together with its sources and irqfds.
pub struct Interrupts {
    router: Arc<IrqRouter>,
    table: Table,
    /// One for each vector.
    gsis: Vec<Gsi>,
    sources: Vec<Source>,
}

struct Source {
    event: Arc<EventFd>,
    vector: u16,
    /// The GSI whose irqfd the event is now.
    connected: Option<Gsi>,
}

/// Why a function's interrupts could not be made.
#[derive(Debug, thiserror::Error)]
pub enum MsixError {
    /// No GSI left.
    #[error(transparent)]
    Irq(#[from] IrqError),
    /// No eventfd.
    #[error("cannot make an eventfd for an interrupt")]
    EventFd(#[source] std::io::Error),
}

impl Interrupts {
    /// `sources` eventfds, unbound, and `vectors` masked vectors.
    ///
    /// # Errors
    /// [`MsixError`].
    pub fn new(router: Arc<IrqRouter>, vectors: u16, sources: u16) -> Result<Self, MsixError> {
        let gsis = (0..vectors).map(|_| router.allocate_msi()).collect::<Result<_, _>>()?;
        let source = |_| {
            let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(MsixError::EventFd)?;
            Ok(Source { event: Arc::new(event), vector: NO_VECTOR, connected: None })
        };
        let sources = (0..sources).map(source).collect::<Result<_, MsixError>>()?;
        Ok(Self { router, table: Table::new(vectors), gsis, sources })
    }

    /// The eventfds of the sources: writing one raises its interrupt.
    pub fn events(&self) -> Vec<Arc<EventFd>> {
        self.sources.iter().map(|source| source.event.clone()).collect()
    }

    /// Binds each source to the vector in `vectors`, [`NO_VECTOR`] for none.
    pub fn bind(&mut self, vectors: impl Iterator<Item = u16>) {
        for (source, vector) in self.sources.iter_mut().zip(vectors) {
            source.vector = vector;
        }
        self.update();
    }

    /// Forgets what is pending.
    pub fn drain(&mut self) {
        for source in &self.sources {
            let _ = source.event.read();
        }
    }

    /// Reads the table.
    pub fn read_table(&self, offset: usize, data: &mut [u8]) {
        self.table.read(offset, data);
    }

    /// Writes the table.
    pub fn write_table(&mut self, offset: usize, data: &[u8]) {
        if self.table.write(offset, data) {
            self.update();
        }
    }

    /// Takes a new value of message control.
    pub fn set_control(&mut self, control: u16) {
        if self.table.set_control(control) {
            self.update();
        }
    }

    /// Reads the pending bits: vectors that were raised while masked.
    pub fn read_pending(&self, offset: usize, data: &mut [u8]) {
        let mut bits = vec![0u8; self.gsis.len().div_ceil(64) * 8];
        for source in self.sources.iter().filter(|s| s.connected.is_none() && s.vector < self.table.vectors())
        {
            // A read takes the count away: put it back. Nobody else reads an event that is no irqfd.
            if let Ok(count) = source.event.read() {
                let _ = source.event.write(count);
                bits[usize::from(source.vector / 8)] |= 1 << (source.vector % 8);
            }
        }
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = bits.get(offset + i).copied().unwrap_or(0);
        }
    }

    /// Makes routes and irqfds what table and bindings say. What KVM refuses stays pending.
    fn update(&mut self) {
        let Self { router, table, gsis, sources } = self;
        let wanted =
            |source: &Source| table.message(source.vector).map(|m| (gsis[usize::from(source.vector)], m));
        // First off, so that what comes while the route changes is kept.
        for source in sources.iter_mut() {
            if let Some(gsi) = source.connected
                && wanted(source).is_none_or(|(wanted, _)| wanted != gsi)
                && router.disconnect(&source.event, gsi).is_ok()
            {
                source.connected = None;
            }
        }
        let routes: Vec<_> =
            sources.iter().filter_map(wanted).map(|(gsi, message)| (gsi, Some(message))).collect();
        if router.set_msi(&routes).is_err() {
            return;
        }
        for source in sources.iter_mut().filter(|source| source.connected.is_none()) {
            let Some((gsi, _)) = wanted(source) else { continue };
            // KVM delivers what is in the eventfd when it is connected, but leaves the count there, and it would be
            // taken for pending at the next mask. So the count is taken out and raised again.
            let pending = source.event.read().is_ok();
            if router.connect(&source.event, gsi).is_ok() {
                source.connected = Some(gsi);
            }
            if pending {
                let _ = source.event.write(1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use kvm_ioctls::Kvm;
    use proptest::prelude::*;

    use super::*;

    const UNMASKED: [u8; 16] = [0, 0, 0xe0, 0xfe, 0, 0, 0, 0, 0x41, 0, 0, 0, 0, 0, 0, 0];

    #[test]
    fn a_vector_has_a_message_only_while_nothing_masks_it() {
        let mut table = Table::new(2);
        table.write(16, &UNMASKED);
        assert_eq!(table.message(1), None, "MSI-X is off");
        table.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(table.message(1), None, "the function is masked");
        table.set_control(ENABLE);
        assert_eq!(table.message(1), Some(MsiMessage { address: 0xfee0_0000, data: 0x41 }));
        assert_eq!(table.message(0), None, "vector 0 is masked");
        table.write(16 + 12, &[0xff; 4]);
        assert_eq!(table.message(1), None, "vector 1 is masked");
        let mut control = [0; 4];
        table.read(16 + 12, &mut control);
        assert_eq!(control, [1, 0, 0, 0]);
        assert_eq!(table.message(NO_VECTOR), None);
    }

    proptest! {
        #[test]
        fn any_write_to_the_table_stays_within_it(writes in proptest::collection::vec(
            (0usize..2000, proptest::collection::vec(any::<u8>(), 0..9)), 0..60), control: u16) {
            let mut table = Table::new(5);
            table.set_control(control);
            for (offset, data) in writes {
                table.write(offset, &data);
                let mut back = vec![0xaa; data.len()];
                table.read(offset, &mut back);
                for vector in 0..5 {
                    let masked = table.entries[usize::from(vector)][12] & 1 == 1;
                    prop_assert_eq!(table.message(vector).is_some(), !masked && control & 0xc000 == 0x8000);
                }
            }
        }
    }

    fn interrupts(vectors: u16, sources: u16) -> Interrupts {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        Interrupts::new(Arc::new(IrqRouter::new(Arc::new(vm)).unwrap()), vectors, sources).unwrap()
    }

    fn pending(interrupts: &Interrupts) -> u64 {
        let mut bits = [0; 8];
        interrupts.read_pending(0, &mut bits);
        u64::from_le_bytes(bits)
    }

    #[test]
    fn what_is_raised_while_masked_is_pending_until_it_is_unmasked() {
        let mut interrupts = interrupts(3, 2);
        // Both sources share vector 2.
        interrupts.bind([2, 2].into_iter());
        let event = interrupts.events().swap_remove(1);
        event.write(1).unwrap();
        assert_eq!(pending(&interrupts), 4);
        assert_eq!(pending(&interrupts), 4, "reading it does not clear it");
        interrupts.write_table(32, &UNMASKED);
        interrupts.set_control(ENABLE | FUNCTION_MASK);
        assert_eq!(pending(&interrupts), 4);
        interrupts.set_control(ENABLE);
        assert_eq!(pending(&interrupts), 0);
        assert!(event.read().is_err(), "KVM has taken it");
        event.write(1).unwrap();
        assert!(event.read().is_err(), "KVM has taken it");
        interrupts.write_table(32 + 12, &[1]);
        assert_eq!(pending(&interrupts), 0);
        event.write(1).unwrap();
        assert_eq!(pending(&interrupts), 4);
        interrupts.bind([2, NO_VECTOR].into_iter());
        assert_eq!(pending(&interrupts), 0, "no vector, no pending bit");
    }

    #[test]
    fn wild_messages_of_one_function_harm_no_other_route() {
        let mut interrupts = interrupts(2, 2);
        interrupts.bind([0, 1].into_iter());
        interrupts.set_control(ENABLE);
        interrupts.write_table(0, &UNMASKED);
        interrupts.write_table(16, &[0xff; 12]);
        interrupts.write_table(28, &[0; 4]);
        let event = interrupts.events().swap_remove(0);
        event.write(1).unwrap();
        assert!(event.read().is_err(), "vector 0 is delivered");
    }
}
