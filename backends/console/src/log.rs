//! The log file: everything the guest prints, up to a limit, since a guest must not fill the host's disk.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};

use domus_startup::lock;

/// Longest log, in bytes. What comes later is not logged, and the log's last line says so.
pub const MAX_LOG: u64 = 64 << 20;

const FULL: &[u8] = b"\n[domus-console: the log is full, later output is not kept here]\n";

/// How long the log's file becomes at most.
pub const MAX_FILE: u64 = MAX_LOG + FULL.len() as u64;

/// An append-only file. Promises: never longer than its limit and one line; no failure stops the console.
#[derive(Debug)]
pub struct Log {
    file: File,
    room: u64,
    failing: bool,
}

impl Log {
    /// Appends to `file`, which must have been opened to append.
    ///
    /// # Errors
    /// The file's length cannot be read.
    pub fn new(file: File) -> io::Result<Self> {
        let length = file.metadata()?.len();
        Ok(Self::with_length(file, length))
    }

    /// Appends to a file of this length. Makes no system call.
    pub fn with_length(file: File, length: u64) -> Self {
        Self { file, room: MAX_LOG.saturating_sub(length), failing: false }
    }

    /// Appends `bytes`. A failure is printed to standard error once, until a later write succeeds.
    pub fn append(&mut self, bytes: &[u8]) {
        if self.room == 0 {
            return;
        }
        let kept = &bytes[..bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX))];
        self.room -= kept.len() as u64;
        let mut result = self.file.write_all(kept);
        if self.room == 0 {
            result = result.and_then(|()| self.file.write_all(FULL));
        }
        match result {
            Ok(()) => self.failing = false,
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    domus_startup::say(format_args!(
                        "domus-console: cannot append to the console log: {error}"
                    ));
                }
            }
        }
    }
}

/// Hands the console's thread another log. The thread never waits for whoever does.
#[derive(Debug, Clone, Default)]
pub struct NextLog(Arc<Mutex<Option<Log>>>);

impl NextLog {
    /// What the guest prints from now on goes there.
    pub fn hand(&self, log: Log) {
        *lock(&self.0) = Some(log);
    }

    /// The log that was handed since the last look.
    pub fn take(&self) -> Option<Log> {
        lock(&self.0).take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_ends_with_a_line_that_says_so() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_LOG - 3).unwrap();
        let append = std::fs::OpenOptions::new().append(true).open(file.path()).unwrap();
        let mut log = Log::new(append).unwrap();
        log.append(b"abcdef");
        log.append(b"ghi");
        assert_eq!(file.as_file().metadata().unwrap().len(), MAX_LOG + FULL.len() as u64);
        io::Seek::seek(&mut file, io::SeekFrom::Start(MAX_LOG - 3)).unwrap();
        assert_eq!(io::read_to_string(&mut file).unwrap().as_bytes(), [b"abc", FULL].concat());
    }
}
