//! One client's session: the frames it has been sent and those it is still owed. No I/O.
//!
//! ```text
//! Waiting ──Attach──▶ Attached ──end of the guest's output, all of it sent──▶ Closing
//!    └──────────────no frame────────┴───────────────────────────────────────────┘
//! ```
//!
//! A session holds at most [`CHUNK`] bytes of output, framed, however slowly its client reads: what is not
//! yet framed stays in the shared history, and what leaves the history before it is framed is reported as lost.

use shared_abi::console::{Frame, Refusal, ServerFrame, encode_output};

use crate::history::History;

/// Most bytes of output framed at a time.
pub const CHUNK: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    #[default]
    Waiting,
    Attached,
    Closing,
}

/// What the server owes one client; at first one that has not said anything yet.
#[derive(Debug, Default)]
pub struct Session {
    state: State,
    /// The next byte of output to frame.
    position: u64,
    /// The client must be told whether it writes. One flag, however often that changes.
    announce: bool,
    /// Framed and not yet sent, from `sent` on.
    out: Vec<u8>,
    sent: usize,
}

impl Session {
    /// The client has attached, or attaches again.
    pub fn attach(&mut self, writer: bool, history: &History) {
        match self.state {
            State::Waiting => {
                self.state = State::Attached;
                self.position = history.start();
                // At most the ring's length, which is bounded far below 4 GiB.
                let kept = (history.end() - history.start()).min(u32::MAX.into()) as u32;
                ServerFrame::Welcome { writer, history: kept }.encode(&mut self.out);
            }
            State::Attached => self.announce = true,
            State::Closing => {}
        }
    }

    /// Whether the client has attached and is served.
    pub fn is_attached(&self) -> bool {
        self.state == State::Attached
    }

    /// Whether it writes has changed.
    pub fn announce_writer(&mut self) {
        self.announce = true;
    }

    /// The client is told why, and nothing after that.
    pub fn refuse(&mut self, why: Refusal) {
        if self.state != State::Closing {
            self.state = State::Closing;
            ServerFrame::Refused(why).encode(&mut self.out);
        }
    }

    /// Whether what is framed is the last the client will be told.
    pub fn is_closing(&self) -> bool {
        self.state == State::Closing
    }

    /// Whether everything the client will ever be told has been sent.
    pub fn is_over(&self) -> bool {
        self.state == State::Closing && self.sent == self.out.len()
    }

    /// Whether [`Session::outgoing`] would give bytes.
    pub fn has_outgoing(&self, history: &History, ended: bool) -> bool {
        let owed = self.announce || self.position < history.end() || ended;
        self.sent < self.out.len() || (self.state == State::Attached && owed)
    }

    /// The next bytes to send, framed when the last ones have gone. `ended`: the history will not grow any more.
    pub fn outgoing(&mut self, history: &History, writer: bool, ended: bool) -> &[u8] {
        if self.sent == self.out.len() && self.state == State::Attached {
            self.out.clear();
            self.sent = 0;
            self.frame_more(history, writer, ended);
        }
        &self.out[self.sent..]
    }

    fn frame_more(&mut self, history: &History, writer: bool, ended: bool) {
        if std::mem::take(&mut self.announce) {
            ServerFrame::Writer { you: writer }.encode(&mut self.out);
        }
        let lost = history.start().saturating_sub(self.position);
        if lost > 0 {
            ServerFrame::Lost { bytes: lost }.encode(&mut self.out);
            self.position += lost;
        }
        let part = history.read(self.position);
        let part = &part[..part.len().min(CHUNK)];
        encode_output(part, &mut self.out);
        self.position += part.len() as u64;
        if ended && self.position == history.end() {
            ServerFrame::End.encode(&mut self.out);
            self.state = State::Closing;
        }
    }

    /// `count` of the bytes that [`Session::outgoing`] gave have been sent.
    pub fn sent(&mut self, count: usize) {
        self.sent = (self.sent + count).min(self.out.len());
    }
}

#[cfg(test)]
mod tests {
    use shared_abi::console::{Decoder, HEADER};

    use super::*;

    fn drain(session: &mut Session, history: &History, ended: bool) -> Vec<ServerFrame> {
        let (mut decoder, mut frames) = (Decoder::default(), Vec::new());
        while session.has_outgoing(history, ended) {
            let bytes = session.outgoing(history, false, ended);
            let (mut some, length) = (&bytes[..bytes.len().min(1000)], bytes.len().min(1000));
            while let Some(frame) = decoder.next(&mut some).unwrap() {
                frames.push(frame);
            }
            session.sent(length);
        }
        frames
    }

    #[test]
    fn a_late_client_gets_the_history_and_then_the_end() {
        let mut history = History::new(64);
        history.push(b"booting");
        let mut session = Session::default();
        assert!(!session.has_outgoing(&history, false));
        session.attach(false, &history);
        assert_eq!(
            drain(&mut session, &history, false),
            [ServerFrame::Welcome { writer: false, history: 7 }, ServerFrame::Output(b"booting".to_vec())]
        );
        history.push(b"!");
        assert_eq!(
            drain(&mut session, &history, true),
            [ServerFrame::Output(b"!".to_vec()), ServerFrame::End]
        );
        assert!(session.is_over());
    }

    #[test]
    fn a_client_that_reads_too_slowly_learns_how_much_it_lost_and_goes_on() {
        let mut history = History::new(10);
        let mut session = Session::default();
        session.attach(false, &history);
        drain(&mut session, &history, false);
        history.push(&[b'a'; 25]);
        let mut output = Vec::new();
        for frame in drain(&mut session, &history, false) {
            match frame {
                ServerFrame::Output(bytes) => output.extend(bytes),
                other => assert_eq!(other, ServerFrame::Lost { bytes: 15 }),
            }
        }
        assert_eq!(output, [b'a'; 10]);
    }

    #[test]
    fn a_client_that_never_reads_costs_one_chunk() {
        let mut history = History::new(1 << 20);
        let mut session = Session::default();
        session.attach(true, &history);
        for _ in 0..10_000 {
            history.push(&[b'a'; 1000]);
            session.announce_writer();
            session.attach(false, &history);
            session.outgoing(&history, false, false);
        }
        assert!(session.out.len() <= CHUNK + 64 * HEADER, "{}", session.out.len());
    }
}
