//! Fixtures of this crate's tests: the real `domus-block` at a path, and an image for it.
#![allow(dead_code, reason = "each test program uses a part")]

pub mod dom0;

use std::fs::File;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use domus_driver::event;
use domus_driver::process::Running;

/// A running `domus-block`, killed when dropped.
pub struct Backend {
    pub process: Running,
    pub socket: PathBuf,
}

impl Backend {
    /// Of an image.
    pub fn start(dir: &Path, image: &Path, more: &[&str]) -> Self {
        Self::of(dir, &[&["--blk-file", image.to_str().unwrap()], more].concat())
    }

    /// Of what the arguments say.
    pub fn of(dir: &Path, args: &[&str]) -> Self {
        Self::logged(dir, args, Stdio::inherit())
    }

    /// The same, with its words going there.
    pub fn logged(dir: &Path, args: &[&str], words: Stdio) -> Self {
        let socket = dir.join("block.sock");
        let mut program = Command::new(env!("CARGO_BIN_EXE_domus-block"));
        program.arg("--socket-path").arg(&socket).args(args).stdin(Stdio::null()).stderr(words);
        Self { process: Running::start("domus-block", &mut program).unwrap(), socket }
    }

    /// Connects, as soon as it listens.
    pub fn connect(&mut self) -> UnixStream {
        self.process.connect(&self.socket).unwrap()
    }

    pub fn assert_alive(&mut self) {
        assert!(self.process.ended().unwrap().is_none(), "domus-block has ended");
    }
}

/// An image of `len` bytes in which every sector says its number.
pub fn image(dir: &Path, len: usize) -> PathBuf {
    let path = dir.join("image.raw");
    let mut bytes = vec![0; len];
    for (number, sector) in bytes.chunks_mut(512).enumerate() {
        let (word, _) = sector.split_at_mut(8.min(sector.len()));
        word.copy_from_slice(&(number as u64).to_le_bytes()[..word.len()]);
    }
    File::create(&path).unwrap().write_all(&bytes).unwrap();
    path
}

/// Takes what `fd` counts, once it counts anything; 0 if it does not within `ms`.
pub fn counted(fd: &File, ms: u64) -> u64 {
    event::counted(fd, Duration::from_millis(ms)).unwrap()
}
