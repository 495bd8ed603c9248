//! Interrupt routes: which GSI reaches the guest how.
//!
//! GSIs 0–23 are the pins of the in-kernel IOAPIC (0–15 of the two 8259 as well). GSIs from 24 on
//! are message-signalled: one for each MSI-X vector, allocated once, its message set and cleared by the
//! guest. KVM takes the whole table at once (`KVM_SET_GSI_ROUTING`), so there is one router for all.
//!
//! Promises: the number of GSIs is fixed before the guest runs; a guest changes routes, never their count,
//! and a change that changes nothing costs no system call.

use std::sync::{Arc, Mutex};

use domus_startup::lock;
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use vmm_sys_util::errno;
use vmm_sys_util::eventfd::EventFd;

/// Pins of the IOAPIC.
pub const IOAPIC_PINS: u32 = 24;
/// Most GSIs with a message: KVM takes 4096 routes, of which the pins need 40.
const MAX_MSI: usize = 4000;

/// A global system interrupt: a pin of the IOAPIC (0–23) or a message (24 and up).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gsi(u32);

impl Gsi {
    /// COM1, as on every PC.
    pub const COM1: Gsi = Gsi(4);
    /// The ACPI generic event device: beyond the sixteen that systems take for ISA's.
    pub const GED: Gsi = Gsi(16);

    /// The number KVM and ACPI know it by.
    pub fn number(self) -> u32 {
        self.0
    }
}

/// A message-signalled interrupt as the guest wrote it (PCI 3.0 §6.8.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MsiMessage {
    /// Message address.
    pub address: u64,
    /// Message data.
    pub data: u32,
}

/// Why an interrupt could not be routed.
#[derive(Debug, thiserror::Error)]
pub enum IrqError {
    /// More vectors than KVM has routes for.
    #[error("the devices ask for more than {MAX_MSI} interrupt vectors: give them fewer queues")]
    TooMany,
    /// KVM refused the table.
    #[error("KVM refuses the interrupt routes")]
    Routing(#[source] errno::Error),
    /// KVM refused to set a pin.
    #[error("KVM refuses to set the interrupt line of GSI {gsi}")]
    Line {
        /// The GSI.
        gsi: u32,
        /// What KVM said.
        source: errno::Error,
    },
    /// KVM refused to connect an eventfd.
    #[error("KVM refuses an irqfd for GSI {gsi}")]
    Irqfd {
        /// The GSI.
        gsi: u32,
        /// What KVM said.
        source: errno::Error,
    },
}

/// The routes of one VM. Shared by all devices; every method may be called from any thread.
pub struct IrqRouter {
    vm: Arc<VmFd>,
    /// The message of GSI `IOAPIC_PINS + index`; none while its vector is masked or never set.
    messages: Mutex<Vec<Option<MsiMessage>>>,
}

impl IrqRouter {
    /// Routes the pins. The VM must have its in-kernel irqchip.
    ///
    /// # Errors
    /// [`IrqError::Routing`].
    pub fn new(vm: Arc<VmFd>) -> Result<Self, IrqError> {
        let router = Self { vm, messages: Mutex::default() };
        router.commit(&[])?;
        Ok(router)
    }

    /// A new GSI for one MSI-X vector, without a message. Before the guest runs.
    ///
    /// # Errors
    /// [`IrqError::TooMany`].
    pub fn allocate_msi(&self) -> Result<Gsi, IrqError> {
        let mut messages = lock(&self.messages);
        if messages.len() >= MAX_MSI {
            return Err(IrqError::TooMany);
        }
        messages.push(None);
        Ok(Gsi(IOAPIC_PINS + messages.len() as u32 - 1))
    }

    /// Sets or, with `None`, takes away the messages of several GSIs, with one system call for all and
    /// none if nothing changes. An interrupt on a GSI without a message is lost: to keep it pending,
    /// [`disconnect`](Self::disconnect) its eventfd first.
    ///
    /// A GSI that is no message's is ignored.
    ///
    /// # Errors
    /// [`IrqError::Routing`]; the routes are then as before.
    pub fn set_msi(&self, changes: &[(Gsi, Option<MsiMessage>)]) -> Result<(), IrqError> {
        let mut messages = lock(&self.messages);
        let mut new = messages.clone();
        for &(gsi, message) in changes {
            if let Some(slot) = gsi.0.checked_sub(IOAPIC_PINS).and_then(|index| new.get_mut(index as usize)) {
                *slot = message;
            }
        }
        if new != *messages {
            self.commit(&new)?;
            *messages = new;
        }
        Ok(())
    }

    /// Delivers `gsi` whenever `event` is written (`KVM_IRQFD`); a count that is already there is delivered at once.
    ///
    /// # Errors
    /// [`IrqError::Irqfd`].
    pub fn connect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqError> {
        self.vm.register_irqfd(event, gsi.0).map_err(|source| IrqError::Irqfd { gsi: gsi.0, source })
    }

    /// Undoes [`connect`](Self::connect): what is written to `event` from now on stays in it.
    ///
    /// # Errors
    /// [`IrqError::Irqfd`].
    pub fn disconnect(&self, event: &EventFd, gsi: Gsi) -> Result<(), IrqError> {
        self.vm.unregister_irqfd(event, gsi.0).map_err(|source| IrqError::Irqfd { gsi: gsi.0, source })
    }

    /// Raises or lowers a pin (`KVM_IRQ_LINE`), for the level-triggered ones.
    ///
    /// # Errors
    /// [`IrqError::Line`].
    pub fn set_line(&self, gsi: Gsi, high: bool) -> Result<(), IrqError> {
        self.vm.set_irq_line(gsi.0, high).map_err(|source| IrqError::Line { gsi: gsi.0, source })
    }

    fn commit(&self, messages: &[Option<MsiMessage>]) -> Result<(), IrqError> {
        let entries = entries(messages);
        // `entries` has at most 40 + MAX_MSI elements, within what the wrapper and KVM take.
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| IrqError::TooMany)?;
        self.vm.set_gsi_routing(&table).map_err(IrqError::Routing)
    }
}

fn entries(messages: &[Option<MsiMessage>]) -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::with_capacity(40 + messages.len());
    for gsi in 0..IOAPIC_PINS {
        if gsi < 16 {
            let chip = if gsi < 8 { KVM_IRQCHIP_PIC_MASTER } else { KVM_IRQCHIP_PIC_SLAVE };
            entries.push(pin(gsi, chip, gsi % 8));
        }
        entries.push(pin(gsi, KVM_IRQCHIP_IOAPIC, gsi));
    }
    for (gsi, message) in (IOAPIC_PINS..).zip(messages) {
        if let Some(MsiMessage { address, data }) = *message {
            let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
            entry.u.msi.address_lo = address as u32;
            entry.u.msi.address_hi = (address >> 32) as u32;
            entry.u.msi.data = data;
            entries.push(entry);
        }
    }
    entries
}

fn pin(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_come_first_and_a_vector_without_a_message_has_no_route() {
        let message = MsiMessage { address: 0xfee0_1000, data: 0x41 };
        let entries = entries(&[None, Some(message)]);
        assert_eq!(entries.len(), 16 + 24 + 1);
        assert!(entries[..40].iter().all(|e| e.type_ == KVM_IRQ_ROUTING_IRQCHIP && e.gsi < 24));
        assert_eq!((entries[40].gsi, entries[40].type_), (25, KVM_IRQ_ROUTING_MSI));
    }
}
