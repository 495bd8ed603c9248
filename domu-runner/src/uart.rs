//! A 16550A as software sees it: registers, FIFO, interrupt causes. Knows neither sockets nor KVM.
//!
//! Output leaves at once: the transmitter is always empty. Input waits in the FIFO until the driver reads it.
//! [`Uart::room`] says how much more input the FIFO takes, and no input is ever lost in it.

use std::collections::VecDeque;

/// Bytes that the receive FIFO holds. A real one has 16; drivers read until it is empty.
const FIFO: usize = 64;

const DATA: u64 = 0;
const INTERRUPT_ENABLE: u64 = 1;
const INTERRUPT_ID: u64 = 2;
const LINE_CONTROL: u64 = 3;
const MODEM_CONTROL: u64 = 4;
const LINE_STATUS: u64 = 5;
const MODEM_STATUS: u64 = 6;
const SCRATCH: u64 = 7;

/// Interrupt enable: data is there.
const ENABLE_RECEIVED: u8 = 1 << 0;
/// Interrupt enable: the transmitter is empty.
const ENABLE_EMPTY: u8 = 1 << 1;
/// Interrupt enable: something is amiss with the line, or a break is there.
const ENABLE_LINE_STATUS: u8 = 1 << 2;
/// Line status: data is there.
const DATA_READY: u8 = 1 << 0;
/// Line status: what is read next is a break.
const BREAK: u8 = 1 << 4;
/// Line status: the FIFO holds a break.
const FIFO_ERROR: u8 = 1 << 7;
/// FIFO control: enable.
const FIFO_ENABLE: u8 = 1 << 0;
/// FIFO control: clear the receive FIFO.
const FIFO_CLEAR: u8 = 1 << 1;
/// Line control: the divisor latch is at offsets 0 and 1.
const DIVISOR_LATCH: u8 = 1 << 7;
/// Modem control: what is sent comes back.
const LOOPBACK: u8 = 1 << 4;

/// The registers of one UART.
#[derive(Debug, Default)]
pub struct Uart {
    interrupt_enable: u8,
    fifo_enabled: bool,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    divisor: [u8; 2],
    received: VecDeque<Received>,
    /// "The transmitter has become empty" has not been reported yet.
    empty_unreported: bool,
}

/// What waits in the receive FIFO.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Received {
    Byte(u8),
    /// The line was held for longer than a byte; reads as zero.
    Break,
}

/// What an access leads to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Effect {
    /// The guest has sent this byte.
    pub sent: Option<u8>,
    /// A cause for an interrupt has come up: pulse the line.
    pub interrupt: bool,
}

impl Uart {
    /// How many bytes [`receive`](Self::receive) takes now.
    pub fn room(&self) -> usize {
        FIFO - self.received.len()
    }

    /// Puts bytes into the receive FIFO, as many as there is [`room`](Self::room); true if the line is to be pulsed.
    pub fn receive(&mut self, bytes: &[u8]) -> bool {
        self.received.extend(bytes.iter().take(self.room()).map(|byte| Received::Byte(*byte)));
        self.data_interrupt()
    }

    /// Receives a break and the byte that follows it. None, and nothing is received, if there is no room for both; else
    /// whether the line is to be pulsed.
    pub fn receive_break(&mut self, then: u8) -> Option<bool> {
        if self.room() < 2 {
            return None;
        }
        self.received.extend([Received::Break, Received::Byte(then)]);
        Some(self.data_interrupt())
    }

    /// Reads a register (0 to 7); true if the line is to be pulsed.
    pub fn read(&mut self, register: u64) -> (u8, bool) {
        let latch = self.line_control & DIVISOR_LATCH != 0;
        let value = match register {
            DATA | INTERRUPT_ENABLE if latch => self.divisor[register as usize],
            DATA => {
                let byte = match self.received.pop_front() {
                    Some(Received::Byte(byte)) => byte,
                    Some(Received::Break) | None => 0,
                };
                return (byte, self.data_interrupt());
            }
            INTERRUPT_ENABLE => self.interrupt_enable,
            INTERRUPT_ID => self.interrupt_id(),
            LINE_CONTROL => self.line_control,
            MODEM_CONTROL => self.modem_control,
            LINE_STATUS => 0x60 | self.received_status(),
            MODEM_STATUS if self.modem_control & LOOPBACK != 0 => {
                // DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
                let out = self.modem_control;
                (out & 1) << 5 | (out & 2) << 3 | (out & 4) << 4 | (out & 8) << 4
            }
            // The other end is there: carrier, data set ready, clear to send.
            MODEM_STATUS => 0xb0,
            SCRATCH => self.scratch,
            _ => 0xff,
        };
        (value, false)
    }

    /// Writes a register (0 to 7).
    pub fn write(&mut self, register: u64, value: u8) -> Effect {
        let latch = self.line_control & DIVISOR_LATCH != 0;
        let mut effect = Effect::default();
        match register {
            DATA | INTERRUPT_ENABLE if latch => self.divisor[register as usize] = value,
            DATA if self.modem_control & LOOPBACK != 0 => effect.interrupt = self.receive(&[value]),
            DATA => {
                effect.sent = Some(value);
                // One pulse for the bytes that a driver writes in one go.
                effect.interrupt = !self.empty_unreported && self.interrupt_enable & ENABLE_EMPTY != 0;
                self.empty_unreported = true;
            }
            INTERRUPT_ENABLE => {
                let enabled = value & !self.interrupt_enable;
                self.interrupt_enable = value & 0xf;
                if enabled & ENABLE_EMPTY != 0 {
                    self.empty_unreported = true;
                    effect.interrupt = true;
                }
                effect.interrupt |=
                    enabled & (ENABLE_RECEIVED | ENABLE_LINE_STATUS) != 0 && self.data_interrupt();
            }
            INTERRUPT_ID => {
                self.fifo_enabled = value & FIFO_ENABLE != 0;
                if value & FIFO_CLEAR != 0 {
                    self.received.clear();
                }
            }
            LINE_CONTROL => self.line_control = value,
            MODEM_CONTROL => self.modem_control = value & 0x1f,
            SCRATCH => self.scratch = value,
            _ => {}
        }
        effect
    }

    /// The bits of the line status that received bytes set. The bit of a break stays until the break is read from the
    /// FIFO, not until the first read of the line status: a driver that polls the status while it sends cannot miss a
    /// break.
    fn received_status(&self) -> u8 {
        let mut status = if self.received.is_empty() { 0 } else { DATA_READY };
        if self.breaks() {
            status |= BREAK;
        }
        if self.fifo_enabled && self.received.contains(&Received::Break) {
            status |= FIFO_ERROR;
        }
        status
    }

    /// True if what is read next is a break.
    fn breaks(&self) -> bool {
        self.received.front() == Some(&Received::Break)
    }

    fn data_interrupt(&self) -> bool {
        let enabled = self.interrupt_enable;
        (enabled & ENABLE_RECEIVED != 0 && !self.received.is_empty())
            || (enabled & ENABLE_LINE_STATUS != 0 && self.breaks())
    }

    /// The cause with the highest priority; reading "empty" reports it.
    fn interrupt_id(&mut self) -> u8 {
        let fifo = if self.fifo_enabled { 0xc0 } else { 0 };
        fifo | if self.interrupt_enable & ENABLE_LINE_STATUS != 0 && self.breaks() {
            0x06
        } else if self.data_interrupt() {
            0x04
        } else if self.interrupt_enable & ENABLE_EMPTY != 0 && std::mem::take(&mut self.empty_unreported) {
            0x02
        } else {
            0x01
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn enabling_the_empty_interrupt_reports_it_once_and_again_after_each_burst() {
        let mut uart = Uart::default();
        assert!(uart.write(INTERRUPT_ENABLE, ENABLE_EMPTY).interrupt);
        assert_eq!(uart.read(INTERRUPT_ID).0, 0x02);
        assert_eq!(uart.read(INTERRUPT_ID).0, 0x01);
        assert_eq!(uart.write(DATA, b'a'), Effect { sent: Some(b'a'), interrupt: true });
        assert_eq!(uart.write(DATA, b'b'), Effect { sent: Some(b'b'), interrupt: false });
        assert_eq!(uart.read(INTERRUPT_ID).0, 0x02);
    }

    #[test]
    fn the_driver_test_by_loopback_finds_a_16550a() {
        let mut uart = Uart::default();
        uart.write(MODEM_CONTROL, LOOPBACK | 0x0a);
        assert_eq!(uart.read(MODEM_STATUS).0 & 0xf0, 0x90);
        uart.write(MODEM_CONTROL, 0);
        uart.write(INTERRUPT_ID, FIFO_ENABLE);
        assert_eq!(uart.read(INTERRUPT_ID).0 & 0xc0, 0xc0);
        uart.write(LINE_CONTROL, DIVISOR_LATCH);
        uart.write(DATA, 12);
        uart.write(LINE_CONTROL, 3);
        assert_eq!(uart.read(LINE_STATUS).0, 0x60);
    }

    #[test]
    fn a_break_is_told_from_a_zero_byte_and_comes_before_its_key() {
        let mut uart = Uart::default();
        uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED | ENABLE_LINE_STATUS);
        assert!(uart.receive(&[0]));
        assert_eq!(uart.receive_break(b'h'), Some(true));
        assert_eq!((uart.read(LINE_STATUS).0, uart.read(INTERRUPT_ID).0), (0x61, 0x04));
        assert_eq!(uart.read(DATA), (0, true));
        assert_eq!((uart.read(LINE_STATUS).0, uart.read(INTERRUPT_ID).0), (0x71, 0x06));
        assert_eq!(uart.read(DATA), (0, true));
        assert_eq!((uart.read(LINE_STATUS).0, uart.read(INTERRUPT_ID).0), (0x61, 0x04));
        assert_eq!(uart.read(DATA), (b'h', false));
    }

    #[test]
    fn a_break_without_room_for_its_key_is_not_received() {
        let mut uart = Uart::default();
        uart.receive(&[b'x'; FIFO - 1]);
        assert_eq!(uart.receive_break(b'h'), None);
        assert_eq!(uart.room(), 1);
    }

    proptest! {
        #[test]
        fn what_is_received_is_read_in_order_and_nothing_is_lost(input in proptest::collection::vec(any::<u8>(), 0..500)) {
            let mut uart = Uart::default();
            uart.write(INTERRUPT_ENABLE, ENABLE_RECEIVED);
            let (mut given, mut read) = (0, Vec::new());
            while read.len() < input.len() {
                let end = input.len().min(given + uart.room());
                if given < end {
                    prop_assert!(uart.receive(&input[given..end]));
                    given = end;
                }
                while uart.read(LINE_STATUS).0 & 1 != 0 {
                    read.push(uart.read(DATA).0);
                }
            }
            prop_assert_eq!(read, input);
        }

        #[test]
        fn no_sequence_of_accesses_panics_or_grows_it(accesses in proptest::collection::vec((0u64..8, any::<u8>(), any::<bool>()), 0..300)) {
            let mut uart = Uart::default();
            for (register, value, write) in accesses {
                if write {
                    uart.write(register, value);
                } else {
                    uart.read(register);
                }
                prop_assert!(uart.room() <= FIFO);
            }
        }
    }
}
