//! A client of a console socket, for the tests of this crate.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use domus_driver::PATIENCE;
use shared_abi::console::{ClientFrame, Decoder, Frame, Mode, ServerFrame, encode_input};

/// One attached client.
pub struct Client {
    pub stream: UnixStream,
    decoder: Decoder,
    frames: std::collections::VecDeque<ServerFrame>,
}

impl Client {
    /// Connects, tries again while nobody listens, and attaches.
    pub fn attach(path: &Path, mode: Mode) -> Self {
        let until = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(error) if Instant::now() > until => panic!("{}: {error}", path.display()),
                Err(_) => std::thread::sleep(Duration::from_millis(5)),
            }
        };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut client = Self { stream, decoder: Decoder::default(), frames: Default::default() };
        client.send(&ClientFrame::Attach { mode });
        client
    }

    pub fn send(&mut self, frame: &ClientFrame) {
        self.stream.write_all(&frame.to_bytes()).unwrap();
    }

    pub fn input(&mut self, bytes: &[u8]) {
        let mut out = Vec::new();
        encode_input(bytes, &mut out);
        self.stream.write_all(&out).unwrap();
    }

    /// The next frame; `None` when the server has closed.
    pub fn next(&mut self) -> Option<ServerFrame> {
        while self.frames.is_empty() {
            let mut buffer = [0; 5000];
            let count = self.stream.read(&mut buffer).expect("a frame in time");
            if count == 0 {
                return None;
            }
            let mut bytes = &buffer[..count];
            while let Some(frame) = self.decoder.next(&mut bytes).unwrap() {
                self.frames.push_back(frame);
            }
        }
        self.frames.pop_front()
    }

    /// Output up to `count` bytes; any other frame is a failure.
    pub fn output(&mut self, count: usize) -> Vec<u8> {
        let mut output = Vec::new();
        while output.len() < count {
            match self.next() {
                Some(ServerFrame::Output(bytes)) => output.extend(bytes),
                other => panic!("{other:?} after {} bytes of output", output.len()),
            }
        }
        output
    }
}
