//! The log file: everything the guest prints, up to a limit, since a guest must not fill the host's disk.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use domus_startup::{lock, threads};

/// Longest log, in bytes. What comes later is not logged, and the log's last line says so.
pub const MAX_LOG: u64 = 64 << 20;

const FULL: &[u8] = b"\n[domus-console: the log is full, later output is not kept here]\n";

/// How long the log's file becomes at most.
pub const MAX_FILE: u64 = MAX_LOG + FULL.len() as u64;

/// Bytes that wait for storage at most.
const MOST_PENDING: usize = 256 << 10;

/// A write that takes longer than this is told.
const LONG: Duration = Duration::from_secs(2);

/// An append-only file. Promise: never longer than its limit and one line.
#[derive(Debug)]
pub struct Log {
    file: File,
    room: u64,
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
        Self { file, room: MAX_LOG.saturating_sub(length) }
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.room == 0 {
            return Ok(());
        }
        let kept = &bytes[..bytes.len().min(usize::try_from(self.room).unwrap_or(usize::MAX))];
        self.room -= kept.len() as u64;
        self.file.write_all(kept)?;
        if self.room == 0 { self.file.write_all(FULL) } else { Ok(()) }
    }
}

/// Appends to a log on a thread of its own: storage that hangs holds up neither the guest nor those who watch it. What
/// there is no room for is lost, and counted.
#[derive(Debug, Clone, Default)]
pub struct Logger(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// There is something to write.
    more: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Where to append from now on.
    next: Option<Log>,
    /// There is a log: without one nothing is kept.
    is_kept: bool,
    pending: Vec<u8>,
    /// Bytes that are being written, and since when.
    writing: Option<(usize, Instant)>,
    /// Bytes that nobody will write, since the last write that succeeded.
    lost: u64,
    /// Why the last write failed.
    error: Option<String>,
}

impl Logger {
    /// Starts the thread; a log is [handed](Self::hand) to it.
    ///
    /// # Errors
    /// If the system has no thread left.
    pub fn start() -> io::Result<Self> {
        let logger = Self::default();
        let own = logger.clone();
        threads::start("log".into(), move || own.run())?;
        Ok(logger)
    }

    /// What the guest prints from now on goes there.
    pub fn hand(&self, log: Log) {
        let mut state = lock(&self.0.state);
        (state.next, state.is_kept) = (Some(log), true);
    }

    /// Has bytes appended. Does not wait.
    pub fn append(&self, bytes: &[u8]) {
        let mut state = lock(&self.0.state);
        if !state.is_kept {
            return;
        }
        if state.pending.len() + bytes.len() > MOST_PENDING {
            state.lost += bytes.len() as u64;
            return;
        }
        state.pending.extend_from_slice(bytes);
        self.0.more.notify_one();
    }

    /// Bytes that have not been written yet.
    pub fn unwritten(&self) -> u64 {
        let state = lock(&self.0.state);
        (state.pending.len() + state.writing.map_or(0, |(bytes, _)| bytes)) as u64
    }

    /// What is amiss, in one line.
    pub fn trouble(&self) -> Option<String> {
        let state = lock(&self.0.state);
        let lost = if state.lost > 0 { format!("; {} bytes are lost", state.lost) } else { String::new() };
        match (&state.error, state.writing) {
            (_, Some((_, since))) if since.elapsed() >= LONG => Some(format!(
                "its storage has not finished a write for {} s{lost}",
                since.elapsed().as_secs()
            )),
            (Some(error), _) => Some(format!("cannot be appended to: {error}{lost}")),
            _ => None,
        }
    }

    fn run(&self) {
        let Shared { state, more } = &*self.0;
        let mut log = None;
        let mut held = lock(state);
        loop {
            while held.pending.is_empty() {
                held = more.wait(held).unwrap_or_else(PoisonError::into_inner);
            }
            log = held.next.take().or(log);
            let bytes = std::mem::take(&mut held.pending);
            held.writing = Some((bytes.len(), Instant::now()));
            drop(held);
            let written = log.as_mut().map_or(Ok(()), |log| log.append(&bytes));
            held = lock(state);
            held.writing = None;
            match written {
                Ok(()) => (held.error, held.lost) = (None, 0),
                Err(error) => {
                    held.lost += bytes.len() as u64;
                    if held.error.is_none() {
                        domus_startup::say(format_args!(
                            "domus-console: cannot append to the console log: {error}"
                        ));
                    }
                    held.error = Some(error.to_string());
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::fcntl::{FcntlArg, fcntl};

    use super::*;

    #[test]
    fn a_full_log_ends_with_a_line_that_says_so() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(MAX_LOG - 3).unwrap();
        let append = std::fs::OpenOptions::new().append(true).open(file.path()).unwrap();
        let mut log = Log::new(append).unwrap();
        log.append(b"abcdef").unwrap();
        log.append(b"ghi").unwrap();
        assert_eq!(file.as_file().metadata().unwrap().len(), MAX_LOG + FULL.len() as u64);
        io::Seek::seek(&mut file, io::SeekFrom::Start(MAX_LOG - 3)).unwrap();
        assert_eq!(io::read_to_string(&mut file).unwrap().as_bytes(), [b"abc", FULL].concat());
    }

    #[test]
    fn a_log_that_cannot_be_written_is_told_and_one_that_is_handed_later_goes_on() {
        let logger = Logger::start().unwrap();
        let done = || {
            while logger.unwritten() > 0 {
                std::thread::yield_now();
            }
        };
        logger.append(b"nobody keeps this");
        assert_eq!(logger.unwritten(), 0);
        let full = std::fs::OpenOptions::new().append(true).open("/dev/full").unwrap();
        logger.hand(Log::with_length(full, 0));
        logger.append(b"abc");
        done();
        assert!(logger.trouble().unwrap().ends_with("; 3 bytes are lost"), "{:?}", logger.trouble());
        let mut file = tempfile::NamedTempFile::new().unwrap();
        logger.hand(Log::with_length(file.reopen().unwrap(), 0));
        logger.append(b"def");
        done();
        assert_eq!(logger.trouble(), None);
        assert_eq!(io::read_to_string(&mut file).unwrap(), "def");
    }

    #[test]
    fn storage_that_hangs_holds_nobody_up_and_what_has_no_room_is_counted() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        // There is no room in it: the first write hangs.
        let room = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).unwrap();
        writer.write_all(&vec![0; room as usize]).unwrap();
        let logger = Logger::start().unwrap();
        logger.hand(Log::with_length(std::os::fd::OwnedFd::from(writer).into(), 0));
        for _ in 0..100 {
            logger.append(&[b'x'; 16 << 10]);
        }
        assert!(lock(&logger.0.state).lost > 0);
        assert!(logger.unwritten() >= MOST_PENDING as u64);
        let trouble = loop {
            match logger.trouble() {
                Some(trouble) => break trouble,
                None => std::thread::sleep(LONG / 10),
            }
        };
        assert!(trouble.contains("has not finished a write"), "{trouble}");
        drop(reader);
    }
}
