//! The report: lines on COM1 that begin with `mini: `, which the host side parses. Polled, no interrupts.

use super::{irq, sys};
use core::fmt;

/// COM1.
pub const COM1: u16 = 0x3f8;

/// Writes to COM1. A transmitter that stays busy for a long time is written to anyway: a report must not hang.
pub struct Uart;

impl fmt::Write for Uart {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for &byte in text.as_bytes() {
            let mut patience = 100_000;
            while sys::inb(COM1 + 5) & 0x20 == 0 && patience > 0 {
                patience -= 1;
            }
            sys::outb(COM1, byte);
        }
        Ok(())
    }
}

/// The next byte that has arrived, if one has.
pub fn receive() -> Option<u8> {
    (sys::inb(COM1 + 5) & 1 != 0).then(|| sys::inb(COM1))
}

/// True if what [`receive`] gives next is no byte but a break.
pub fn breaks() -> bool {
    sys::inb(COM1 + 5) & 0x11 == 0x11
}

/// Lets COM1 interrupt ([`irq::UART`]) when a byte arrives, or not.
pub fn interrupts(on: bool) {
    irq::route(4, on.then(|| (irq::UART, irq::apic_id())));
    // OUT2 gates the interrupt of a PC's UART.
    sys::outb(COM1 + 4, 0x0b);
    sys::outb(COM1 + 1, u8::from(on));
}

/// Prints one line of the report.
macro_rules! say {
    ($($arg:tt)*) => {{
        use core::fmt::Write as _;
        let mut uart = $crate::body::print::Uart;
        let _ = uart.write_str("mini: ");
        let _ = uart.write_fmt(format_args!($($arg)*));
        let _ = uart.write_str("\n");
    }};
}

/// Ends a check with a reason unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($arg:tt)*) => {
        if !$condition {
            $crate::body::print::say!("reason {}", format_args!($($arg)*));
            return Err($crate::body::Failed);
        }
    };
}

pub(crate) use {ensure, say};
