//! The ports through which a guest switches itself off and resets itself, and through which it is asked to.
//!
//! | offset | register | source |
//! |---|---|---|
//! | 0 | sleep control: sleep type 5 and the enable bit switch the machine off | ACPI 6.5 §4.8.3.7 |
//! | 1 | sleep status: reads 0 | ACPI 6.5 §4.8.3.7 |
//! | 2 | reset: 1 resets | FADT `RESET_REG` |
//! | 3 | buttons pressed since the last read; reading lowers the interrupt | `_EVT` of the DSDT's GED |
//!
//! The button interrupt is level-triggered: a press before the guest has a driver is not lost.

use std::sync::{Arc, Mutex};

use domus_startup::lock;
use shared_abi::control::StopReason;

use crate::bus::BusDevice;
use crate::irq::{Gsi, IrqRouter};
use crate::stop::Stop;

/// Offset of the sleep control register.
pub const SLEEP_CONTROL: u64 = 0;
/// Offset of the sleep status register.
pub const SLEEP_STATUS: u64 = 1;
/// Offset of the reset register.
pub const RESET: u64 = 2;
/// Offset of the register of pressed buttons.
pub const BUTTONS: u64 = 3;
/// How many registers there are.
pub const REGISTERS: u64 = 4;

/// What the DSDT's `\_S5` says to write for soft-off.
pub const SLEEP_TYPE_S5: u8 = 5;
/// What resets, in the FADT's `RESET_VALUE`.
pub const RESET_VALUE: u8 = 1;
/// The power button's bit in [`BUTTONS`].
pub const POWER_BUTTON: u8 = 1;
/// The sleep button's bit in [`BUTTONS`].
pub const SLEEP_BUTTON: u8 = 2;

/// `SLP_EN` of the sleep control register.
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers.
pub struct PowerRegisters {
    stop: Stop,
    irq: Arc<IrqRouter>,
    pressed: Mutex<u8>,
}

impl PowerRegisters {
    /// Registers that end the machine through `stop` and press buttons through `irq`.
    pub fn new(stop: Stop, irq: Arc<IrqRouter>) -> Self {
        Self { stop, irq, pressed: Mutex::new(0) }
    }

    /// Presses [`POWER_BUTTON`] or [`SLEEP_BUTTON`].
    ///
    /// # Errors
    /// What KVM says to `KVM_IRQ_LINE`.
    pub fn press(&self, button: u8) -> Result<(), crate::irq::IrqError> {
        let mut pressed = lock(&self.pressed);
        *pressed |= button;
        self.irq.set_line(Gsi::GED, true)
    }

    fn take_pressed(&self) -> u8 {
        let mut pressed = lock(&self.pressed);
        // The line exists: if KVM refused it, the press did.
        let _ = self.irq.set_line(Gsi::GED, false);
        std::mem::take(&mut *pressed)
    }
}

impl BusDevice for PowerRegisters {
    fn read(&self, offset: u64, data: &mut [u8]) {
        for (register, byte) in (offset..).zip(data) {
            *byte = if register == BUTTONS { self.take_pressed() } else { 0 };
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (SLEEP_CONTROL, &[value]) if value == SLEEP_TYPE_S5 << 2 | SLEEP_ENABLE => {
                self.stop.request(StopReason::PowerOff);
            }
            (RESET, &[RESET_VALUE]) => self.stop.request(StopReason::Reboot),
            _ => {}
        }
    }
}

/// The one command of the keyboard controller that guests without a keyboard use: reset, 0xfe to port 0x64.
pub struct I8042(pub Stop);

/// Ports 0x60 to 0x64.
pub const I8042_PORTS: u64 = 5;

impl BusDevice for I8042 {
    fn read(&self, _offset: u64, data: &mut [u8]) {
        // Status 0: no data, and ready for a command.
        data.fill(0);
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if offset == 4 && data == [0xfe] {
            self.0.request(StopReason::Reboot);
        }
    }
}
