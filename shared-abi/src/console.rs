//! The protocol of a console socket (`tty.sock` in the domain's run directory): frames of a kind, a length and a
//! payload.
//!
//! ```text
//! offset 0   1 byte   kind
//! offset 1   2 bytes  length of the payload, little endian, at most MAX_CONSOLE_FRAME
//! offset 3   payload
//! ```
//!
//! A client sends [`ClientFrame::Attach`] first. The server answers with [`ServerFrame::Welcome`], then the
//! history and all later output as [`ServerFrame::Output`]. Many clients read; one writes. Input of a client
//! that is not the writer is dropped by the server, which has told it so.
//!
//! ```text
//! client                          server
//!   │── Attach{mode} ───────────────▶│
//!   │◀─────── Welcome{writer, history} │  or Refused(why), and the server closes
//!   │◀─────────────── Output(bytes)… │  first the history, then what comes
//!   │── Input(bytes) ───────────────▶│  if it is the writer
//!   │◀──────────── Writer{you: bool} │  whenever that changes, and as the answer to a later Attach
//!   │◀──────────────── Lost{bytes}   │  the client read too slowly; output goes on after the gap
//!   │◀──────────────────────── End   │  the guest's side is gone; the server closes
//! ```
//!
//! [`Decoder`] is pure: it takes bytes in pieces of any size, holds at most one frame of
//! [`MAX_CONSOLE_FRAME`] bytes, and refuses what is no frame. After an error the stream has no meaning any more.

use crate::limits::MAX_CONSOLE_FRAME;

/// The version of this protocol, sent in [`ClientFrame::Attach`]. Another one is refused by name.
pub const CONSOLE_VERSION: u8 = 1;

/// Bytes before each payload.
pub const HEADER: usize = 3;

const ATTACH: u8 = 0x01;
const INPUT: u8 = 0x02;
const WELCOME: u8 = 0x81;
const OUTPUT: u8 = 0x82;
const WRITER: u8 = 0x83;
const LOST: u8 = 0x84;
const REFUSED: u8 = 0x85;
const END: u8 = 0x86;

/// What a client wants to do with a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Only read.
    Read,
    /// Write if nobody else does, otherwise read.
    Write,
    /// Write. Who has written so far becomes a reader and is told.
    Take,
}

/// Why a client is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// As many are attached as the server serves.
    TooManyClients,
    /// What the client sent was not understood.
    Malformed,
}

/// What a client sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientFrame {
    /// The first frame; sent again, it changes the mode.
    Attach {
        /// What the client wants to do.
        mode: Mode,
    },
    /// Bytes for the guest, 1 to [`MAX_CONSOLE_FRAME`].
    Input(Vec<u8>),
}

/// What the server sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerFrame {
    /// The client is attached.
    Welcome {
        /// Whether it is the writer.
        writer: bool,
        /// How many bytes of what follows were printed before it came.
        history: u32,
    },
    /// Bytes from the guest, 1 to [`MAX_CONSOLE_FRAME`].
    Output(Vec<u8>),
    /// Who writes has changed, or an `Attach` after the first is answered.
    Writer {
        /// Whether the client is the writer now.
        you: bool,
    },
    /// The client read so slowly that output was dropped here.
    Lost {
        /// How many bytes.
        bytes: u64,
    },
    /// The client is not served; the server closes the socket.
    Refused(Refusal),
    /// There will be no more output; the server closes the socket.
    End,
}

/// Why bytes are no frame. The stream cannot be used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this side does not receive.
    #[error("console frame of unknown kind {0:#04x}")]
    Kind(u8),
    /// Longer than a frame may be.
    #[error("console frame of {0} bytes: at most {MAX_CONSOLE_FRAME} fit")]
    TooLong(usize),
    /// Of another version.
    #[error("console protocol of version {0}: this program speaks {CONSOLE_VERSION}")]
    Version(u8),
    /// A payload that does not fit the kind.
    #[error("console frame of kind {kind:#04x} with a wrong payload of {length} bytes")]
    Payload {
        /// The kind.
        kind: u8,
        /// The payload's length.
        length: usize,
    },
}

/// A frame of one direction.
pub trait Frame: Sized {
    /// Whether this direction has frames of that kind.
    fn has_kind(kind: u8) -> bool;

    /// The frame of this kind and payload.
    ///
    /// # Errors
    /// [`FrameError`] for a payload that does not fit.
    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError>;

    /// Appends the frame to `out`. Bytes of [`ClientFrame::Input`] and [`ServerFrame::Output`] longer than one
    /// frame holds become several frames, none of them none.
    fn encode(&self, out: &mut Vec<u8>);

    /// The frame as bytes.
    fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.encode(&mut out);
        out
    }
}

/// Appends `bytes` from the guest as [`ServerFrame::Output`] frames, without a copy in between.
pub fn encode_output(bytes: &[u8], out: &mut Vec<u8>) {
    put_all(out, OUTPUT, bytes);
}

/// Appends `bytes` for the guest as [`ClientFrame::Input`] frames, without a copy in between.
pub fn encode_input(bytes: &[u8], out: &mut Vec<u8>) {
    put_all(out, INPUT, bytes);
}

fn put(out: &mut Vec<u8>, kind: u8, payload: &[u8]) {
    debug_assert!(payload.len() <= MAX_CONSOLE_FRAME);
    let [low, high, ..] = payload.len().to_le_bytes();
    out.extend_from_slice(&[kind, low, high]);
    out.extend_from_slice(payload);
}

fn put_all(out: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    for part in bytes.chunks(MAX_CONSOLE_FRAME) {
        put(out, kind, part);
    }
}

fn flag(byte: u8) -> Option<bool> {
    match byte {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

impl Frame for ClientFrame {
    fn has_kind(kind: u8) -> bool {
        matches!(kind, ATTACH | INPUT)
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let wrong = FrameError::Payload { kind, length: payload.len() };
        match (kind, payload) {
            (ATTACH, [CONSOLE_VERSION, mode]) => {
                let mode = match mode {
                    0 => Mode::Read,
                    1 => Mode::Write,
                    2 => Mode::Take,
                    _ => return Err(wrong),
                };
                Ok(Self::Attach { mode })
            }
            (ATTACH, [version, ..]) if *version != CONSOLE_VERSION => Err(FrameError::Version(*version)),
            (INPUT, [_, ..]) => Ok(Self::Input(payload.to_vec())),
            (ATTACH | INPUT, _) => Err(wrong),
            _ => Err(FrameError::Kind(kind)),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Attach { mode } => {
                let mode = match mode {
                    Mode::Read => 0,
                    Mode::Write => 1,
                    Mode::Take => 2,
                };
                put(out, ATTACH, &[CONSOLE_VERSION, mode]);
            }
            Self::Input(bytes) => encode_input(bytes, out),
        }
    }
}

impl Frame for ServerFrame {
    fn has_kind(kind: u8) -> bool {
        matches!(kind, WELCOME | OUTPUT | WRITER | LOST | REFUSED | END)
    }

    fn decode(kind: u8, payload: &[u8]) -> Result<Self, FrameError> {
        let wrong = FrameError::Payload { kind, length: payload.len() };
        match (kind, payload) {
            (WELCOME, &[writer, a, b, c, d]) => {
                let writer = flag(writer).ok_or(wrong)?;
                Ok(Self::Welcome { writer, history: u32::from_le_bytes([a, b, c, d]) })
            }
            (OUTPUT, [_, ..]) => Ok(Self::Output(payload.to_vec())),
            (WRITER, &[you]) => Ok(Self::Writer { you: flag(you).ok_or(wrong)? }),
            (LOST, _) => Ok(Self::Lost { bytes: u64::from_le_bytes(payload.try_into().map_err(|_| wrong)?) }),
            (REFUSED, [0]) => Ok(Self::Refused(Refusal::TooManyClients)),
            (REFUSED, [1]) => Ok(Self::Refused(Refusal::Malformed)),
            (END, []) => Ok(Self::End),
            _ if Self::has_kind(kind) => Err(wrong),
            _ => Err(FrameError::Kind(kind)),
        }
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Welcome { writer, history } => {
                let [a, b, c, d] = history.to_le_bytes();
                put(out, WELCOME, &[u8::from(*writer), a, b, c, d]);
            }
            Self::Output(bytes) => encode_output(bytes, out),
            Self::Writer { you } => put(out, WRITER, &[u8::from(*you)]),
            Self::Lost { bytes } => put(out, LOST, &bytes.to_le_bytes()),
            Self::Refused(Refusal::TooManyClients) => put(out, REFUSED, &[0]),
            Self::Refused(Refusal::Malformed) => put(out, REFUSED, &[1]),
            Self::End => put(out, END, &[]),
        }
    }
}

/// Cuts a stream of bytes into frames. Holds at most one frame.
#[derive(Debug, Default)]
pub struct Decoder {
    held: Vec<u8>,
}

impl Decoder {
    /// Takes bytes off the front of `input` until a frame is complete. `None` means that `input` is used up.
    ///
    /// ```
    /// use shared_abi::console::{Decoder, Frame, ServerFrame};
    /// let bytes = ServerFrame::Output(b"login: ".to_vec()).to_bytes();
    /// let (mut decoder, mut input) = (Decoder::default(), &bytes[..]);
    /// while let Some(frame) = decoder.next::<ServerFrame>(&mut input).unwrap() {
    ///     assert_eq!(frame, ServerFrame::Output(b"login: ".to_vec()));
    /// }
    /// ```
    ///
    /// # Errors
    /// [`FrameError`]: as soon as the header shows it, and before any payload is kept.
    pub fn next<F: Frame>(&mut self, input: &mut &[u8]) -> Result<Option<F>, FrameError> {
        self.take_until(HEADER, input);
        let &[kind, low, high, ..] = self.held.as_slice() else { return Ok(None) };
        if !F::has_kind(kind) {
            return Err(FrameError::Kind(kind));
        }
        let length = usize::from(u16::from_le_bytes([low, high]));
        if length > MAX_CONSOLE_FRAME {
            return Err(FrameError::TooLong(length));
        }
        self.take_until(HEADER + length, input);
        if self.held.len() < HEADER + length {
            return Ok(None);
        }
        let frame = F::decode(kind, &self.held[HEADER..]);
        self.held.clear();
        frame.map(Some)
    }

    /// Whether a frame has begun and not ended: a stream that closes now was cut.
    pub fn is_within_frame(&self) -> bool {
        !self.held.is_empty()
    }

    fn take_until(&mut self, target: usize, input: &mut &[u8]) {
        let missing = target.saturating_sub(self.held.len());
        let (taken, rest) = input.split_at(missing.min(input.len()));
        self.held.extend_from_slice(taken);
        *input = rest;
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use proptest::prelude::*;

    use super::*;

    fn payload() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            proptest::collection::vec(any::<u8>(), 1..64),
            proptest::collection::vec(any::<u8>(), MAX_CONSOLE_FRAME..=MAX_CONSOLE_FRAME),
        ]
    }

    fn client_frame() -> impl Strategy<Value = ClientFrame> {
        prop_oneof![
            prop_oneof![Just(Mode::Read), Just(Mode::Write), Just(Mode::Take)]
                .prop_map(|mode| ClientFrame::Attach { mode }),
            payload().prop_map(ClientFrame::Input),
        ]
    }

    fn server_frame() -> impl Strategy<Value = ServerFrame> {
        prop_oneof![
            (any::<bool>(), any::<u32>())
                .prop_map(|(writer, history)| ServerFrame::Welcome { writer, history }),
            payload().prop_map(ServerFrame::Output),
            any::<bool>().prop_map(|you| ServerFrame::Writer { you }),
            any::<u64>().prop_map(|bytes| ServerFrame::Lost { bytes }),
            Just(ServerFrame::Refused(Refusal::TooManyClients)),
            Just(ServerFrame::Refused(Refusal::Malformed)),
            Just(ServerFrame::End),
        ]
    }

    fn decode_in_pieces<F: Frame>(stream: &[u8], pieces: &[usize]) -> Result<Vec<F>, FrameError> {
        let (mut decoder, mut frames, mut rest) = (Decoder::default(), Vec::new(), stream);
        let mut sizes = pieces.iter().copied().cycle();
        while !rest.is_empty() {
            let (mut piece, after) = rest.split_at(sizes.next().unwrap_or(1).clamp(1, rest.len()));
            while let Some(frame) = decoder.next(&mut piece)? {
                frames.push(frame);
            }
            assert!(piece.is_empty() && decoder.held.len() <= HEADER + MAX_CONSOLE_FRAME);
            rest = after;
        }
        assert!(!decoder.is_within_frame());
        Ok(frames)
    }

    fn round_trip<F: Frame + PartialEq + Debug>(frames: &[F], pieces: &[usize]) {
        let mut stream = Vec::new();
        frames.iter().for_each(|frame| frame.encode(&mut stream));
        assert_eq!(decode_in_pieces::<F>(&stream, pieces).unwrap(), frames);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn frames_survive_any_cutting_of_the_stream(
            client in proptest::collection::vec(client_frame(), 0..6),
            server in proptest::collection::vec(server_frame(), 0..6),
            pieces in proptest::collection::vec(1_usize..5000, 1..8),
        ) {
            round_trip(&client, &pieces);
            round_trip(&server, &pieces);
        }

        #[test]
        fn no_bytes_make_the_decoder_panic_or_hold_more_than_one_frame(
            bytes in proptest::collection::vec(any::<u8>(), 0..10_000),
            kind in prop_oneof![Just(ATTACH), Just(INPUT), Just(OUTPUT), Just(LOST), any::<u8>()],
        ) {
            let mut bytes = bytes;
            if let Some(first) = bytes.first_mut() {
                *first = kind;
            }
            let (mut decoder, mut input) = (Decoder::default(), &bytes[..]);
            while let Ok(Some(_)) = decoder.next::<ClientFrame>(&mut input) {}
            prop_assert!(decoder.held.len() <= HEADER + MAX_CONSOLE_FRAME);
            let (mut decoder, mut input) = (Decoder::default(), &bytes[..]);
            while let Ok(Some(_)) = decoder.next::<ServerFrame>(&mut input) {}
            prop_assert!(decoder.held.len() <= HEADER + MAX_CONSOLE_FRAME);
        }
    }

    #[test]
    fn long_output_becomes_several_frames_and_none_becomes_none() {
        let bytes = vec![b'x'; 2 * MAX_CONSOLE_FRAME + 1];
        let frames =
            decode_in_pieces::<ServerFrame>(&ServerFrame::Output(bytes.clone()).to_bytes(), &[777]).unwrap();
        assert_eq!(frames.len(), 3);
        assert!(ServerFrame::Output(Vec::new()).to_bytes().is_empty());
        assert!(ClientFrame::Input(Vec::new()).to_bytes().is_empty());
    }

    #[test]
    fn each_broken_frame_is_refused_for_its_own_reason() {
        let wrong = |kind, length| FrameError::Payload { kind, length };
        for (bytes, error) in [
            (&[OUTPUT, 1, 0, b'x'][..], FrameError::Kind(OUTPUT)),
            (&[0, 0, 0], FrameError::Kind(0)),
            (&[INPUT, 1, 0x10], FrameError::TooLong(0x1001)),
            (&[INPUT, 0, 0], wrong(INPUT, 0)),
            (&[ATTACH, 0, 0], wrong(ATTACH, 0)),
            (&[ATTACH, 2, 0, 9, 0], FrameError::Version(9)),
            (&[ATTACH, 2, 0, CONSOLE_VERSION, 3], wrong(ATTACH, 2)),
            (&[ATTACH, 3, 0, CONSOLE_VERSION, 0, 0], wrong(ATTACH, 3)),
        ] {
            assert_eq!(Decoder::default().next::<ClientFrame>(&mut &bytes[..]).unwrap_err(), error);
        }
        for (bytes, error) in [
            (&[INPUT, 1, 0, b'x'][..], FrameError::Kind(INPUT)),
            (&[WRITER, 1, 0, 2], wrong(WRITER, 1)),
            (&[WELCOME, 5, 0, 2, 0, 0, 0, 0], wrong(WELCOME, 5)),
            (&[LOST, 1, 0, 2], wrong(LOST, 1)),
            (&[REFUSED, 1, 0, 7], wrong(REFUSED, 1)),
            (&[END, 1, 0, 7], wrong(END, 1)),
        ] {
            assert_eq!(Decoder::default().next::<ServerFrame>(&mut &bytes[..]).unwrap_err(), error);
        }
    }
}
