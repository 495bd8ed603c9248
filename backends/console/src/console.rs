//! The console itself, without I/O: the guest's output, the clients, and who of them writes.
//!
//! Promises: what the guest prints is always taken at once; a client costs a bounded amount of memory whatever it
//! sends and however slowly it reads; input goes to the guest from one client at a time, in order, and stops
//! being read from that client while [`MAX_INPUT`] bytes wait for the guest.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use shared_abi::console::{ClientFrame, Decoder, Mode, Refusal};

use crate::history::History;
use crate::session::Session;

/// Most clients at a time. The next one is refused.
pub const MAX_CLIENTS: usize = 16;

/// While so many bytes wait for the guest, the writer is not read from.
pub const MAX_INPUT: usize = 4096;

/// A client's number: each is new.
pub type ClientId = u64;

#[derive(Debug)]
struct Client {
    session: Session,
    decoder: Decoder,
}

/// One domain's console.
#[derive(Debug)]
pub struct Console {
    history: History,
    clients: BTreeMap<ClientId, Client>,
    next: ClientId,
    writer: Option<ClientId>,
    /// For the guest, not yet taken.
    input: VecDeque<u8>,
    /// The guest takes no input any more.
    deaf: bool,
    ended: bool,
}

impl Console {
    /// A console that keeps `history` bytes.
    pub fn new(history: usize) -> Self {
        Self {
            history: History::new(history),
            clients: BTreeMap::new(),
            next: 0,
            writer: None,
            input: VecDeque::new(),
            deaf: false,
            ended: false,
        }
    }

    /// The guest has printed `bytes`.
    pub fn guest_printed(&mut self, bytes: &[u8]) {
        self.history.push(bytes);
    }

    /// The guest's side is gone: clients get what is left, then the end. Later ones too.
    pub fn guest_ended(&mut self) {
        self.ended = true;
        self.guest_deaf();
    }

    /// The guest's side takes no input any more. What waits, and what comes, is dropped.
    pub fn guest_deaf(&mut self) {
        self.deaf = true;
        self.input.clear();
    }

    /// Whether [`Console::guest_ended`] was called.
    pub fn has_ended(&self) -> bool {
        self.ended
    }

    /// Input that waits for the guest: the first part that lies together.
    pub fn input(&self) -> &[u8] {
        self.input.as_slices().0
    }

    /// The guest has taken `count` bytes of [`Console::input`].
    pub fn input_taken(&mut self, count: usize) {
        self.input.drain(..count.min(self.input.len()));
    }

    /// A client has connected. `None`: too many, it must be refused.
    pub fn connect(&mut self) -> Option<ClientId> {
        if self.clients.len() >= MAX_CLIENTS {
            return None;
        }
        let id = self.next;
        self.next += 1;
        self.clients.insert(id, Client { session: Session::default(), decoder: Decoder::default() });
        Some(id)
    }

    /// A client has gone. Nobody becomes the writer in its place.
    pub fn disconnect(&mut self, id: ClientId) {
        self.clients.remove(&id);
        if self.writer == Some(id) {
            self.writer = None;
        }
    }

    /// Whether bytes of this client can be taken now.
    pub fn wants_bytes(&self, id: ClientId) -> bool {
        !self.is_closing(id) && (self.writer != Some(id) || self.input.len() < MAX_INPUT)
    }

    /// A client has sent `bytes`.
    pub fn client_sent(&mut self, id: ClientId, mut bytes: &[u8]) {
        loop {
            let Some(client) = self.clients.get_mut(&id) else { return };
            if client.session.is_closing() {
                return;
            }
            match client.decoder.next(&mut bytes) {
                Ok(None) => return,
                Ok(Some(ClientFrame::Attach { mode })) => self.attach(id, mode),
                Ok(Some(ClientFrame::Input(_))) if !client.session.is_attached() => return self.refuse(id),
                Ok(Some(ClientFrame::Input(input))) => {
                    if self.writer == Some(id) && !self.deaf {
                        self.input.extend(input);
                    }
                }
                Err(_) => return self.refuse(id),
            }
        }
    }

    fn attach(&mut self, id: ClientId, mode: Mode) {
        let before = self.writer;
        let wants = match mode {
            Mode::Read => false,
            Mode::Write => before.is_none_or(|writer| writer == id),
            Mode::Take => true,
        };
        if wants {
            self.writer = Some(id);
        } else if before == Some(id) && mode == Mode::Read {
            self.writer = None;
        }
        if let Some(other) =
            before.filter(|&other| wants && other != id).and_then(|o| self.clients.get_mut(&o))
        {
            other.session.announce_writer();
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.session.attach(self.writer == Some(id), &self.history);
        }
    }

    fn refuse(&mut self, id: ClientId) {
        if self.writer == Some(id) {
            self.writer = None;
        }
        if let Some(client) = self.clients.get_mut(&id) {
            client.session.refuse(Refusal::Malformed);
        }
    }

    /// Whether there is something to send to this client.
    pub fn has_outgoing(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_some_and(|client| client.session.has_outgoing(&self.history, self.ended))
    }

    /// The next bytes for this client.
    pub fn outgoing(&mut self, id: ClientId) -> &[u8] {
        let writer = self.writer == Some(id);
        match self.clients.get_mut(&id) {
            Some(client) => client.session.outgoing(&self.history, writer, self.ended),
            None => &[],
        }
    }

    /// `count` bytes of [`Console::outgoing`] have been sent.
    pub fn sent(&mut self, id: ClientId, count: usize) {
        if let Some(client) = self.clients.get_mut(&id) {
            client.session.sent(count);
        }
    }

    /// Whether nothing this client sends is looked at any more.
    pub fn is_closing(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_none_or(|client| client.session.is_closing())
    }

    /// Whether this client has been told everything and must be closed.
    pub fn is_over(&self, id: ClientId) -> bool {
        self.clients.get(&id).is_none_or(|client| client.session.is_over())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use shared_abi::console::{Frame, ServerFrame};

    use super::*;

    fn send(console: &mut Console, id: ClientId, frame: &ClientFrame) {
        console.client_sent(id, &frame.to_bytes());
    }

    fn attach(console: &mut Console, mode: Mode) -> ClientId {
        let id = console.connect().unwrap();
        send(console, id, &ClientFrame::Attach { mode });
        id
    }

    fn told(console: &mut Console, id: ClientId) -> Vec<ServerFrame> {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        while console.has_outgoing(id) {
            let mut bytes = console.outgoing(id);
            let length = bytes.len();
            while let Some(frame) = decoder.next(&mut bytes).unwrap() {
                frames.push(frame);
            }
            console.sent(id, length);
        }
        frames
    }

    #[test]
    fn a_take_over_is_told_to_both_and_input_of_a_reader_is_dropped() {
        let mut console = Console::new(64);
        let first = attach(&mut console, Mode::Write);
        assert_eq!(told(&mut console, first), [ServerFrame::Welcome { writer: true, history: 0 }]);
        let second = attach(&mut console, Mode::Write);
        assert_eq!(told(&mut console, second), [ServerFrame::Welcome { writer: false, history: 0 }]);
        send(&mut console, second, &ClientFrame::Input(b"no".to_vec()));
        send(&mut console, first, &ClientFrame::Input(b"yes".to_vec()));
        send(&mut console, second, &ClientFrame::Attach { mode: Mode::Take });
        send(&mut console, first, &ClientFrame::Input(b"late".to_vec()));
        assert_eq!(console.input(), b"yes");
        assert_eq!(told(&mut console, first), [ServerFrame::Writer { you: false }]);
        assert_eq!(told(&mut console, second), [ServerFrame::Writer { you: true }]);
        console.disconnect(second);
        send(&mut console, first, &ClientFrame::Attach { mode: Mode::Write });
        assert_eq!(told(&mut console, first), [ServerFrame::Writer { you: true }]);
    }

    #[test]
    fn input_before_attach_and_nonsense_are_refused_and_closed() {
        for bytes in [&ClientFrame::Input(b"x".to_vec()).to_bytes()[..], b"GET / HTTP/1.1\r\n"] {
            let mut console = Console::new(64);
            let id = console.connect().unwrap();
            console.client_sent(id, bytes);
            assert_eq!(told(&mut console, id), [ServerFrame::Refused(Refusal::Malformed)]);
            assert!(console.is_over(id) && console.input().is_empty());
        }
    }

    #[test]
    fn one_client_too_many_is_refused() {
        let mut console = Console::new(64);
        let ids: Vec<_> = (0..MAX_CLIENTS).map(|_| console.connect().unwrap()).collect();
        assert!(console.connect().is_none());
        console.disconnect(ids[3]);
        assert!(console.connect().is_some());
    }

    #[test]
    fn a_guest_that_takes_no_input_stops_its_writer_and_no_one_else() {
        let mut console = Console::new(64);
        let (writer, reader) = (attach(&mut console, Mode::Write), attach(&mut console, Mode::Read));
        while console.wants_bytes(writer) {
            send(&mut console, writer, &ClientFrame::Input(vec![b'x'; 1000]));
        }
        assert!(console.input.len() < MAX_INPUT + 1000);
        assert!(console.wants_bytes(reader));
        console.input_taken(2000);
        assert!(console.wants_bytes(writer));
    }

    proptest! {
        #[test]
        fn at_most_one_client_believes_that_it_writes(
            acts in proptest::collection::vec((0_u64..4, 0_u8..4), 0..40),
        ) {
            let mut console = Console::new(64);
            let mut believes = BTreeMap::new();
            for _ in 0..4 {
                console.connect();
            }
            for (id, act) in acts {
                match act {
                    0 => send(&mut console, id, &ClientFrame::Attach { mode: Mode::Read }),
                    1 => send(&mut console, id, &ClientFrame::Attach { mode: Mode::Write }),
                    2 => send(&mut console, id, &ClientFrame::Attach { mode: Mode::Take }),
                    _ => {
                        console.disconnect(id);
                        believes.remove(&id);
                    }
                }
                for id in 0..4 {
                    for frame in told(&mut console, id) {
                        if let ServerFrame::Welcome { writer: you, .. } | ServerFrame::Writer { you } = frame {
                            believes.insert(id, you);
                        }
                    }
                }
                let writers: Vec<_> = believes.iter().filter(|(_, you)| **you).map(|(id, _)| *id).collect();
                prop_assert_eq!(writers.first().copied(), console.writer);
                prop_assert!(writers.len() <= 1);
            }
        }
    }
}
