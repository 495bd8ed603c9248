//! The console's I/O: one thread, one `poll`, and nothing in it that waits for anybody.
//!
//! Whatever is sent is sent with `MSG_DONTWAIT`; whoever cannot take it is asked again when it can. With
//! nobody attached and a guest that is quiet, the thread is not woken at all.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, SockFlag, accept4, recv, sendmsg};
use shared_abi::console::{Frame, Refusal, ServerFrame};

use crate::console::{ClientId, Console};
use crate::log::Logger;

/// Bytes read from one socket at a time: nobody keeps the others waiting for long.
const READ: usize = 16 * 1024;

/// A console and its sockets.
#[derive(Debug)]
pub struct Server {
    console: Console,
    /// To the guest's side; `None` when it is gone.
    serial: Option<OwnedFd>,
    /// `None` when nobody can be accepted any more.
    listener: Option<OwnedFd>,
    clients: BTreeMap<ClientId, Socket>,
    log: Option<Logger>,
}

#[derive(Debug)]
struct Socket {
    fd: OwnedFd,
    /// It has closed its reading side: nothing is sent any more, but what it wrote before is read.
    deaf: bool,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Serial,
    Listener,
    Client(ClientId),
}

impl Server {
    /// A console between `serial`, a connected stream socket, and whoever connects to `listener`, a
    /// listening stream socket in non-blocking mode.
    pub fn new(console: Console, serial: OwnedFd, listener: OwnedFd, log: Option<Logger>) -> Self {
        let clients = BTreeMap::new();
        Self { console, serial: Some(serial), listener: Some(listener), clients, log }
    }

    /// Serves for ever.
    ///
    /// # Errors
    /// `poll` itself has failed.
    pub fn run(mut self) -> io::Result<std::convert::Infallible> {
        let mut buffer = vec![0; READ];
        loop {
            for (source, events) in self.wait()? {
                match source {
                    Source::Serial => self.serial_ready(events, &mut buffer),
                    Source::Listener => self.accept(),
                    Source::Client(id) => self.client_ready(id, events, &mut buffer),
                }
            }
        }
    }

    /// Waits until a socket is ready. One in which there is no interest is left out, since poll would report
    /// for ever that its peer has hung up.
    fn wait(&self) -> io::Result<Vec<(Source, PollFlags)>> {
        let mut sources = Vec::with_capacity(self.clients.len() + 2);
        let mut fds = Vec::with_capacity(self.clients.len() + 2);
        let mut add = |source, fd, read, write| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, read);
            events.set(PollFlags::POLLOUT, write);
            if !events.is_empty() {
                sources.push(source);
                fds.push(PollFd::new(fd, events));
            }
        };
        if let Some(serial) = &self.serial {
            add(Source::Serial, serial.as_fd(), true, !self.console.input().is_empty());
        }
        for (&id, socket) in &self.clients {
            let write = !socket.deaf && self.console.has_outgoing(id);
            add(Source::Client(id), socket.fd.as_fd(), self.console.wants_bytes(id), write);
        }
        // Last: a place that a client leaves is there for the next one in the same round.
        if let Some(listener) = &self.listener {
            add(Source::Listener, listener.as_fd(), true, false);
        }
        while let Err(errno) = poll(&mut fds, PollTimeout::NONE) {
            if errno != Errno::EINTR {
                return Err(errno.into());
            }
        }
        let ready = sources.into_iter().zip(&fds).filter_map(|(source, fd)| Some((source, fd.revents()?)));
        Ok(ready.filter(|(_, events)| !events.is_empty()).collect())
    }

    fn serial_ready(&mut self, events: PollFlags, buffer: &mut [u8]) {
        let Some(serial) = &self.serial else { return };
        if events.intersects(PollFlags::POLLOUT | PollFlags::POLLERR) {
            match send(serial, self.console.input()) {
                Ok(count) => self.console.input_taken(count),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => self.console.guest_deaf(),
            }
        }
        if !events.intersects(PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR) {
            return;
        }
        match recv(serial.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
            Ok(count) if count > 0 => {
                let bytes = &buffer[..count];
                self.console.guest_printed(bytes);
                if let Some(log) = &self.log {
                    log.append(bytes);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            _ => {
                self.serial = None;
                self.console.guest_ended();
            }
        }
    }

    fn accept(&mut self) {
        let Some(listener) = &self.listener else { return };
        let fd = match accept4(listener.as_raw_fd(), SockFlag::SOCK_CLOEXEC) {
            Ok(fd) => own(fd),
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ECONNABORTED) => return,
            // The host is short of something just now. The client waits; so does everyone, for a moment.
            Err(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => {
                std::thread::sleep(Duration::from_millis(100));
                return;
            }
            Err(errno) => {
                domus_startup::say(format_args!(
                    "domus-console: nobody else can attach, the listening socket failed: {errno}"
                ));
                self.listener = None;
                return;
            }
        };
        match self.console.connect() {
            Some(id) => drop(self.clients.insert(id, Socket { fd, deaf: false })),
            // A new socket's buffer is empty, so this arrives; if not, the client sees that it was closed.
            None => drop(send(&fd, &ServerFrame::Refused(Refusal::TooManyClients).to_bytes())),
        }
    }

    fn client_ready(&mut self, id: ClientId, events: PollFlags, buffer: &mut [u8]) {
        let Some(socket) = self.clients.get_mut(&id) else { return };
        let mut gone = false;
        if events.contains(PollFlags::POLLOUT) {
            match send(&socket.fd, self.console.outgoing(id)) {
                Ok(count) => self.console.sent(id, count),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => socket.deaf = true,
            }
        }
        let readable = PollFlags::POLLIN | PollFlags::POLLHUP | PollFlags::POLLERR;
        if events.intersects(readable) && self.console.wants_bytes(id) {
            match recv(socket.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(count) if count > 0 => self.console.client_sent(id, &buffer[..count]),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                _ => gone = true,
            }
        }
        if gone || self.console.is_over(id) || (socket.deaf && self.console.is_closing(id)) {
            self.console.disconnect(id);
            self.clients.remove(&id);
        }
    }
}

fn send(fd: &OwnedFd, bytes: &[u8]) -> nix::Result<usize> {
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(bytes)], &[], flags, None)
}

#[expect(unsafe_code, reason = "takes ownership of a descriptor that accept4 has just returned")]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: accept4 has just returned this descriptor to us; nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}
