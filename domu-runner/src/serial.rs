//! COM1: the UART between the guest and a stream socket.
//!
//! The guest's output goes into a buffer of fixed size, and a thread of its own sends it on, so that no vCPU ever waits
//! for the other end. If the other end does not read, or is gone, the oldest output is lost and the guest loses no
//! time; the newest output waits for the next connection. Input is read from the socket only when the FIFO has room, so
//! none is lost.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use domus_startup::lock;
use domus_startup::threads;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd as Wake};
use nix::sys::socket::{MsgFlags, recv, send};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::rules::{Gate, SERIAL};
use crate::timeline::Mark;
use crate::uart::Uart;

/// Bytes of output kept for an end that does not read.
const BUFFER: usize = 64 << 10;

/// COM1 of one machine.
pub struct Serial {
    state: Mutex<State>,
    /// Written to interrupt the guest.
    interrupt: EventFd,
    /// Written to wake the thread: there is output, or room for input.
    wake: Wake,
    first_output: Mark,
}

#[derive(Default)]
struct State {
    uart: Uart,
    output: VecDeque<u8>,
    socket: Option<Arc<OwnedFd>>,
    /// The other end takes no more.
    deaf: bool,
    /// The other end says no more.
    mute: bool,
}

impl State {
    /// With this other end, if any.
    fn attach(&mut self, socket: Option<OwnedFd>) {
        self.socket = socket.map(Arc::new);
        (self.deaf, self.mute) = (self.socket.is_none(), self.socket.is_none());
    }
}

impl Serial {
    /// COM1 that interrupts through `interrupt`; without a socket there is no input, and output waits for one.
    ///
    /// # Errors
    /// If the system has no eventfd left.
    pub fn new(socket: Option<OwnedFd>, interrupt: EventFd) -> io::Result<Self> {
        let mut state = State::default();
        state.attach(socket);
        let wake = Wake::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self { state: Mutex::new(state), interrupt, wake, first_output: Mark::default() })
    }

    /// Starts the thread that moves bytes.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start(self: &Arc<Self>, gate: &Gate) -> io::Result<()> {
        let (serial, ticket) = (self.clone(), gate.ticket(SERIAL));
        threads::start("serial".into(), move || ticket.run(|| serial.pump())).map(drop)
    }

    /// Goes on with another end.
    pub fn attach(&self, socket: OwnedFd) {
        self.lock().attach(Some(socket));
        let _ = self.wake.write(1);
    }

    /// Has the guest receive a break and then `key`; false if it does not read what it has received before.
    pub fn send_break(&self, key: u8) -> bool {
        let pulse = self.lock().uart.receive_break(key);
        if pulse == Some(true) {
            self.pulse();
        }
        pulse.is_some()
    }

    /// Sends what is buffered, waiting for the other end at most so long.
    pub fn flush(&self, longest: Duration) {
        let end = Instant::now() + longest;
        loop {
            let mut state = self.lock();
            Self::drain(&mut state);
            let left = end.saturating_duration_since(Instant::now());
            let Some(socket) = state.socket.clone() else { return };
            if state.output.is_empty() || state.deaf || left.is_zero() {
                return;
            }
            drop(state);
            let mut fds = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
            let _ = poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO));
        }
    }

    /// `CLOCK_MONOTONIC` in nanoseconds when the guest had sent its first byte; none before it.
    pub fn first_output(&self) -> Option<u64> {
        self.first_output.get()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Moves bytes for ever.
    fn pump(&self) {
        loop {
            let (room, output, deaf, mute, socket) = {
                let state = self.lock();
                let State { uart, output, socket, deaf, mute } = &*state;
                (uart.room(), !output.is_empty(), *deaf, *mute, socket.clone())
            };
            let mut wanted = PollFlags::empty();
            wanted.set(PollFlags::POLLIN, room > 0 && !mute);
            wanted.set(PollFlags::POLLOUT, output && !deaf);
            let wake = PollFd::new(self.wake.as_fd(), PollFlags::POLLIN);
            // A socket that has hung up is ready always: it is polled only for what is wanted of it.
            let polled = socket.as_ref().filter(|_| !wanted.is_empty());
            let ready = match polled {
                Some(socket) => poll(&mut [wake, PollFd::new(socket.as_fd(), wanted)], PollTimeout::NONE),
                None => poll(&mut [wake], PollTimeout::NONE),
            };
            match ready {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(_) => return,
            }
            let _ = self.wake.read();
            if let (Some(socket), true) = (&socket, wanted.contains(PollFlags::POLLIN)) {
                self.receive(socket, room);
            }
            if output {
                Self::drain(&mut self.lock());
            }
        }
    }

    /// Reads at most `room` bytes.
    fn receive(&self, socket: &Arc<OwnedFd>, room: usize) {
        let mut bytes = [0; 64];
        let wanted = room.min(bytes.len());
        match recv(socket.as_raw_fd(), &mut bytes[..wanted], MsgFlags::MSG_DONTWAIT) {
            Ok(count @ 1..) => {
                if self.lock().uart.receive(&bytes[..count]) {
                    self.pulse();
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(0) | Err(_) => {
                let mut state = self.lock();
                // Another end may have come meanwhile.
                if state.socket.as_ref().is_some_and(|now| Arc::ptr_eq(now, socket)) {
                    state.mute = true;
                }
            }
        }
    }

    fn drain(state: &mut State) {
        let Some(socket) = state.socket.clone().filter(|_| !state.deaf) else { return };
        while !state.output.is_empty() {
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
            match send(socket.as_raw_fd(), state.output.as_slices().0, flags) {
                Ok(count) => drop(state.output.drain(..count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return,
                Err(_) => {
                    state.deaf = true;
                    return;
                }
            }
        }
    }

    fn pulse(&self) {
        // The counter of an eventfd is full only if nobody reads it; KVM does.
        let _ = self.interrupt.write(1);
    }
}

impl BusDevice for Serial {
    fn read(&self, offset: u64, data: &mut [u8]) {
        // Registers are a byte wide; the rest of a wider access reads as ones.
        let Some(byte) = data.first_mut() else { return };
        let mut state = self.lock();
        let before = state.uart.room();
        let (value, interrupt) = state.uart.read(offset);
        *byte = value;
        let drained = state.uart.room() > before;
        drop(state);
        if interrupt {
            self.pulse();
        }
        if drained {
            let _ = self.wake.write(1);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        let Some(&value) = data.first() else { return };
        let mut state = self.lock();
        let before = state.uart.room();
        let effect = state.uart.write(offset, value);
        // The guest may have cleared its FIFO.
        let mut wake = state.uart.room() > before;
        if let Some(byte) = effect.sent {
            self.first_output.set();
            if state.output.len() == BUFFER {
                state.output.pop_front();
            }
            wake |= state.output.is_empty() && !state.deaf;
            state.output.push_back(byte);
        }
        drop(state);
        if effect.interrupt {
            self.pulse();
        }
        if wake {
            let _ = self.wake.write(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn output_reaches_the_other_end_and_input_is_never_lost() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let serial =
            Arc::new(Serial::new(Some(guest.into()), EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap());
        serial.start(&Gate::none()).unwrap();
        for byte in b"hello" {
            serial.write(0, &[*byte]);
        }
        let mut hello = [0; 5];
        host.read_exact(&mut hello).unwrap();
        assert_eq!(&hello, b"hello");

        let input: Vec<u8> = (0..5000).map(|i| i as u8).collect();
        host.write_all(&input).unwrap();
        let mut got = Vec::new();
        while got.len() < input.len() {
            let mut byte = [0];
            serial.read(5, &mut byte);
            if byte[0] & 1 != 0 {
                serial.read(0, &mut byte);
                got.push(byte[0]);
            }
        }
        assert_eq!(got, input);
    }

    #[test]
    fn input_goes_on_after_the_guest_has_cleared_a_full_fifo() {
        let (mut host, guest) = UnixStream::pair().unwrap();
        let serial =
            Arc::new(Serial::new(Some(guest.into()), EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap());
        serial.start(&Gate::none()).unwrap();
        host.write_all(&[b'x'; 1000]).unwrap();
        let wait = |done: &dyn Fn() -> bool| {
            let start = Instant::now();
            while !done() {
                assert!(start.elapsed() < Duration::from_secs(20), "the input stands still");
                std::thread::sleep(Duration::from_millis(1));
            }
        };
        wait(&|| serial.lock().uart.room() == 0);
        // FIFO control: enable, clear the receiver's.
        serial.write(2, &[0x03]);
        wait(&|| serial.lock().uart.room() == 0);
    }

    #[test]
    fn what_is_sent_while_nobody_is_there_reaches_the_end_that_comes_next() {
        let (first, guest) = UnixStream::pair().unwrap();
        let serial =
            Arc::new(Serial::new(Some(guest.into()), EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap());
        serial.start(&Gate::none()).unwrap();
        drop(first);
        for byte in b"nobody hears" {
            serial.write(0, &[*byte]);
        }
        let (mut second, guest) = UnixStream::pair().unwrap();
        serial.attach(guest.into());
        let mut heard = [0; 12];
        second.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"nobody hears");
        second.write_all(b"x").unwrap();
        let mut byte = [0];
        while byte[0] & 1 == 0 {
            serial.read(5, &mut byte);
        }
        serial.read(0, &mut byte);
        assert_eq!(&byte, b"x");
    }

    #[test]
    fn an_end_that_does_not_read_costs_old_output_and_never_blocks() {
        let (_host, guest) = UnixStream::pair().unwrap();
        let serial =
            Arc::new(Serial::new(Some(guest.into()), EventFd::new(libc::EFD_NONBLOCK).unwrap()).unwrap());
        serial.start(&Gate::none()).unwrap();
        for _ in 0..4 * BUFFER {
            serial.write(0, b"x");
        }
        serial.flush(Duration::from_millis(10));
        assert!(serial.lock().output.len() <= BUFFER);
    }
}
