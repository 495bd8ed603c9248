//! Requests in flight at an NBD server, and what becomes of them when it goes away.
//!
//! ```text
//!            ┌──────────────── a new socket, size the same or larger: send all again, in order ───────────────┐
//!            ▼                                                                                                 │
//!   Handshake ─▶ Connected ──hung up, protocol broken──▶ Waiting ──error_after──▶ Failing (requests fail at once) ┘
//! ```
//!
//! A request stays in flight until a server has answered it, and is sent again where that has not come: whoever waits
//! for it has not been answered, so nothing that depends on it was begun. What depends on it later waits at the
//! [`fence`](super::fence).

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::future::pending;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::future::{Either, select};
use imago::io_buffers::IoBuffer;
use tokio::sync::{Notify, oneshot};

use super::fence::Fence;
use super::handshake::{self, Export, HandshakeError};
use super::stream::{self, Receiver, Sender};
use super::wire::{self, Command, Request};
use crate::async_io::reactor::Reactor;
use crate::async_io::{AsyncDisk, write_zeros};
use crate::worker_command::Offer;

/// How long a server may take for the handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Most bytes of one request without data: what every server takes.
const MAX_RANGE: u64 = 1 << 30;

/// What the config says of a disk at a server.
#[derive(Debug, Clone)]
pub struct Remote {
    /// The export's name; empty for the default one.
    pub export: String,
    /// The guest may write.
    pub writable: bool,
    /// How long requests wait for a server; none for ever.
    pub error_after: Option<Duration>,
    /// For so long after a loss a server may still be about what it was sent:
    /// [`fence::PATIENCE`](super::fence::PATIENCE).
    pub fence: Duration,
}

/// Why a connection is over.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error("the NBD server is gone: {0}")]
    Socket(#[from] io::Error),
    #[error("the NBD server is shutting down")]
    ShuttingDown,
    #[error("the NBD server breaks the protocol: {0}")]
    Broken(&'static str),
}

type Answer = (IoBuffer, io::Result<()>);

/// A request in flight.
struct Entry {
    request: Request,
    /// None while it is being sent or filled.
    buffer: Option<IoBuffer>,
    sent: bool,
    /// It was answered before all of it was sent.
    early: Option<io::Result<()>>,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct State {
    /// What the server said last.
    export: Option<Export>,
    /// The size the guest knows.
    known: u64,
    connection: Option<(Sender, Receiver)>,
    offer: Option<Offer>,
    cookie: u64,
    requests: BTreeMap<u64, Entry>,
    unsent: VecDeque<u64>,
    failing: bool,
    fence: Fence,
}

/// A disk at an NBD server.
pub struct NbdDisk {
    reactor: Arc<Reactor>,
    remote: Remote,
    /// Told once each time that the connection is lost.
    lost: Box<dyn Fn(&str)>,
    state: RefCell<State>,
    work: Notify,
    offered: Notify,
}

impl NbdDisk {
    /// A disk that is not connected yet.
    pub fn new(reactor: &Arc<Reactor>, remote: Remote, lost: Box<dyn Fn(&str)>) -> Self {
        let (work, offered) = (Notify::new(), Notify::new());
        let state = State { fence: Fence::new(remote.fence), ..State::default() };
        Self { reactor: reactor.clone(), remote, lost, state: state.into(), work, offered }
    }

    /// Makes the first connection; without a socket it waits for one to be [`offer`](AsyncDisk::offer)ed.
    ///
    /// # Errors
    /// [`HandshakeError`] of the socket given.
    pub async fn connect(&self, socket: Option<OwnedFd>) -> Result<Export, HandshakeError> {
        let connection = match socket {
            Some(socket) => self.handshake(socket).await?,
            None => {
                (self.lost)("the NBD server could not be reached yet");
                self.next_connection().await
            }
        };
        let mut state = self.state.borrow_mut();
        state.connection = Some(connection);
        state.export.ok_or(HandshakeError::Broken("no size of the export"))
    }

    async fn handshake(&self, socket: OwnedFd) -> Result<(Sender, Receiver), HandshakeError> {
        let (to, mut from) = stream::split(&self.reactor, socket);
        let found = {
            let go = pin!(handshake::go(&to, &mut from, &self.remote.export));
            match select(go, pin!(self.reactor.sleep(HANDSHAKE))).await {
                Either::Left((found, _)) => found?,
                Either::Right(_) => return Err(HandshakeError::Silent(HANDSHAKE.as_secs())),
            }
        };
        if self.remote.writable && found.flags.read_only() {
            return Err(HandshakeError::ReadOnly);
        }
        let mut state = self.state.borrow_mut();
        if found.bytes < state.known {
            return Err(HandshakeError::Shrunk { now: found.bytes, before: state.known });
        }
        if state.export.replace(found).is_none() {
            state.known = found.bytes;
        }
        drop(state);
        Ok((to, from))
    }

    /// Waits for a socket that works. Requests fail meanwhile once their time is over.
    async fn next_connection(&self) -> (Sender, Receiver) {
        let since = Instant::now();
        loop {
            let offer = self.state.borrow_mut().offer.take();
            let Some(Offer { socket, answer }) = offer else {
                let left = self.remote.error_after.map(|time| time.saturating_sub(since.elapsed()));
                match left.filter(|_| !self.state.borrow().failing) {
                    None => self.offered.notified().await,
                    Some(Duration::ZERO) => self.fail_all(),
                    Some(left) => {
                        select(pin!(self.offered.notified()), pin!(self.reactor.sleep(left))).await;
                    }
                }
                continue;
            };
            let connection = self.handshake(socket).await;
            // Whoever offered it may not wait any more.
            let _ = answer.send(match &connection {
                Ok(_) => Ok(()),
                Err(error) => Err(domus_startup::control::chain(error)),
            });
            if let Ok(connection) = connection {
                self.state.borrow_mut().failing = false;
                return connection;
            }
        }
    }

    fn fail_all(&self) {
        let requests = {
            let mut state = self.state.borrow_mut();
            state.failing = true;
            state.unsent.clear();
            std::mem::take(&mut state.requests)
        };
        for entry in requests.into_values() {
            if let Some(buffer) = entry.buffer {
                let _ = entry.answer.send((buffer, Err(no_server())));
            }
        }
    }

    /// Sends and receives until that fails. None: a newer socket was offered.
    async fn converse(&self, to: &Sender, from: &mut Receiver) -> Option<Lost> {
        let (sending, receiving) = (pin!(self.send_all(to)), pin!(self.receive_all(from)));
        match select(select(sending, receiving), pin!(self.another())).await {
            Either::Left((Either::Left((lost, _)) | Either::Right((lost, _)), _)) => Some(lost),
            Either::Right(_) => None,
        }
    }

    /// Waits until there is an offer. What wakes it may be an older one, which was looked at already.
    async fn another(&self) {
        while self.state.borrow().offer.is_none() {
            self.offered.notified().await;
        }
    }

    async fn send_all(&self, to: &Sender) -> Lost {
        loop {
            let next = self.state.borrow_mut().next_to_send();
            let Some((cookie, request)) = next else {
                self.work.notified().await;
                continue;
            };
            let lent = (request.command == Command::Write).then(|| self.lend(cookie)).flatten();
            let data = lent.as_ref().map_or(&[][..], |lent| lent.data(request.len));
            if let Err(error) = to.send(&request.encode(cookie), data).await {
                return error.into();
            }
        }
    }

    async fn receive_all(&self, from: &mut Receiver) -> Lost {
        loop {
            if let Err(lost) = self.receive_one(from).await {
                return lost;
            }
        }
    }

    async fn receive_one(&self, from: &mut Receiver) -> Result<(), Lost> {
        let mut bytes = [0; wire::REPLY_LEN];
        from.receive(&mut bytes).await?;
        let (cookie, error) = wire::reply(bytes).ok_or(Lost::Broken("a reply without its magic number"))?;
        let request =
            self.state.borrow().awaited(cookie).ok_or(Lost::Broken("an answer that nobody awaits"))?;
        let result = match error {
            0 if request.command == Command::Read => {
                let mut lent = self.lend(cookie).ok_or(Lost::Broken("an answer that nobody awaits"))?;
                from.receive(lent.data_mut(request.len)).await?;
                Ok(())
            }
            0 => Ok(()),
            wire::ESHUTDOWN => return Err(Lost::ShuttingDown),
            error => Err(io::Error::from_raw_os_error(wire::errno(error))),
        };
        self.state.borrow_mut().answer(cookie, result);
        Ok(())
    }

    fn lend(&self, cookie: u64) -> Option<Lent<'_>> {
        let buffer = self.state.borrow_mut().requests.get_mut(&cookie)?.buffer.take()?;
        Some(Lent { state: &self.state, cookie, buffer: Some(buffer) })
    }

    async fn submit(&self, request: Request, buffer: IoBuffer) -> Answer {
        while let Some(wait) = request.changes().and_then(|bytes| self.state.borrow_mut().fence.wait(&bytes))
        {
            self.reactor.sleep(wait).await;
        }
        let (answer, answered) = oneshot::channel();
        {
            let mut state = self.state.borrow_mut();
            if state.failing {
                return (buffer, Err(no_server()));
            }
            state.cookie += 1;
            let cookie = state.cookie;
            let entry = Entry { request, buffer: Some(buffer), sent: false, early: None, answer };
            state.requests.insert(cookie, entry);
            state.unsent.push_back(cookie);
        }
        self.work.notify_one();
        match answered.await {
            Ok(answer) => answer,
            // Cannot be: an entry goes away with its answer only.
            Err(_) => pending().await,
        }
    }

    /// A command without data, in pieces that every server takes.
    async fn ranges(&self, command: Command, flags: u16, offset: u64, len: u64) -> io::Result<()> {
        let mut done = 0;
        while done < len {
            let piece = (len - done).min(MAX_RANGE);
            let request = Request { command, flags, offset: offset + done, len: piece as u32 };
            self.submit(request, IoBuffer::new(0, 1)?).await.1?;
            done += piece;
        }
        Ok(())
    }

    fn flags(&self) -> wire::Flags {
        self.state.borrow().export.map_or(wire::Flags(0), |export| export.flags)
    }
}

fn no_server() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOTCONN)
}

impl State {
    fn next_to_send(&mut self) -> Option<(u64, Request)> {
        let cookie = self.unsent.pop_front()?;
        let entry = self.requests.get_mut(&cookie)?;
        entry.sent = true;
        Some((cookie, entry.request))
    }

    /// The connection is lost: nothing is sent, and what was is in doubt.
    fn send_again(&mut self) {
        for entry in self.requests.values_mut().filter(|entry| entry.sent) {
            entry.sent = false;
            if let Some(bytes) = entry.request.changes() {
                self.fence.doubt(bytes);
            }
        }
        self.unsent = self.requests.keys().copied().collect();
    }

    /// The request that an answer may come for.
    fn awaited(&self, cookie: u64) -> Option<Request> {
        let entry = self.requests.get(&cookie)?;
        (entry.sent && entry.early.is_none()).then_some(entry.request)
    }

    fn answer(&mut self, cookie: u64, result: io::Result<()>) {
        match self.requests.get_mut(&cookie) {
            Some(entry) if entry.buffer.is_none() => entry.early = Some(result),
            Some(_) => {
                let entry = self.requests.remove(&cookie);
                if let Some(Entry { buffer: Some(buffer), answer, .. }) = entry {
                    let _ = answer.send((buffer, result));
                }
            }
            None => {}
        }
    }
}

/// The buffer of a request, for as long as the socket works with it.
struct Lent<'a> {
    state: &'a RefCell<State>,
    cookie: u64,
    buffer: Option<IoBuffer>,
}

impl Lent<'_> {
    fn data(&self, len: u32) -> &[u8] {
        self.buffer.as_ref().map_or(&[], |buffer| buffer.as_ref_range(0..len as usize).into_slice())
    }

    fn data_mut(&mut self, len: u32) -> &mut [u8] {
        self.buffer.as_mut().map_or(&mut [], |buffer| buffer.as_mut_range(0..len as usize).into_slice())
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.state.borrow_mut();
        let Some(entry) = state.requests.get_mut(&self.cookie) else { return };
        entry.buffer = self.buffer.take();
        if let Some(result) = entry.early.take() {
            state.answer(self.cookie, result);
        }
    }
}

impl AsyncDisk for NbdDisk {
    async fn read(&self, buffer: IoBuffer, len: usize, offset: u64) -> Answer {
        self.submit(Request { command: Command::Read, flags: 0, offset, len: len as u32 }, buffer).await
    }

    async fn write(&self, buffer: IoBuffer, len: usize, offset: u64, durable: bool) -> Answer {
        let fua = durable && self.flags().fua();
        let flags = if fua { wire::FUA } else { 0 };
        let request = Request { command: Command::Write, flags, offset, len: len as u32 };
        let (buffer, mut written) = self.submit(request, buffer).await;
        if durable && !fua && written.is_ok() {
            written = self.flush().await;
        }
        (buffer, written)
    }

    fn doubt(&self, offset: u64, len: u64) {
        self.state.borrow_mut().fence.doubt(offset..offset.saturating_add(len));
    }

    /// A server without the command has nothing that a flush would change.
    async fn flush(&self) -> io::Result<()> {
        if !self.flags().flush() {
            return Ok(());
        }
        let request = Request { command: Command::Flush, flags: 0, offset: 0, len: 0 };
        self.submit(request, IoBuffer::new(0, 1)?).await.1
    }

    async fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        match self.flags().trim() {
            true => self.ranges(Command::Trim, 0, offset, len).await,
            false => Ok(()),
        }
    }

    async fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        if self.flags().write_zeroes() {
            let flags = if unmap { 0 } else { wire::NO_HOLE };
            return self.ranges(Command::WriteZeroes, flags, offset, len).await;
        }
        write_zeros(self, offset, len).await
    }

    /// The size is the server's: the guest gets what was said in the last handshake.
    async fn resize(&self, bytes: Option<u64>) -> io::Result<u64> {
        let mut state = self.state.borrow_mut();
        let now = state.export.map_or(state.known, |export| export.bytes);
        if bytes.is_some_and(|bytes| bytes != now) {
            let text = format!("an NBD disk has the size that its server says: {now} bytes");
            return Err(io::Error::new(io::ErrorKind::Unsupported, text));
        }
        state.known = now;
        Ok(now)
    }

    fn offer(&self, offer: Offer) {
        // One that was offered before and not looked at yet is hung up on.
        let older = self.state.borrow_mut().offer.replace(offer);
        if let Some(older) = older {
            let _ = older.answer.send(Err("another connection was given meanwhile".into()));
        }
        self.offered.notify_one();
    }

    async fn drive(&self) -> Infallible {
        let mut connection = self.state.borrow_mut().connection.take();
        loop {
            if let Some((to, mut from)) = connection.take() {
                let lost = self.converse(&to, &mut from).await;
                self.state.borrow_mut().send_again();
                if let Some(lost) = lost {
                    (self.lost)(&domus_startup::control::chain(&lost));
                }
            }
            connection = Some(self.next_connection().await);
            self.work.notify_one();
        }
    }
}
