//! Drives a test guest over its console: waits for output, sends commands and receives their status.
//!
//! The guest's init prints `domus-guest: ready …`, reads lines `<id> <shell command>`, and answers each with the
//! command's output and `domus-guest: done <id> <status>`. Ids count up, so a late answer is not taken for the next
//! command's.

use std::io::{Read, Write};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// What the guest said about itself when it came up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ready {
    /// `uname -r`.
    pub kernel: String,
    /// Processors online.
    pub cpus: u32,
    /// `MemTotal`, KiB.
    pub memory_kib: u64,
}

/// The console of one guest.
pub struct Guest {
    input: Box<dyn Write + Send>,
    output: Arc<Output>,
    /// Bytes of the output already looked at.
    seen: usize,
    next_id: u32,
}

#[derive(Default)]
struct Output {
    state: Mutex<State>,
    grown: Condvar,
}

#[derive(Default)]
struct State {
    text: Vec<u8>,
    ended: bool,
}

/// More output than any test makes: a guest that floods its console ends its test, not the machine's memory.
const OUTPUT_LIMIT: usize = 8 << 20;

impl Guest {
    /// A guest whose console is read from `output` and written to `input`.
    pub fn new(mut output: impl Read + Send + 'static, input: impl Write + Send + 'static) -> Self {
        let shared = Arc::new(Output::default());
        let writer = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            loop {
                let count = output.read(&mut chunk).unwrap_or(0);
                let mut state = writer.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.text.extend(chunk[..count].iter().filter(|byte| **byte != b'\r'));
                state.ended = count == 0 || state.text.len() > OUTPUT_LIMIT;
                writer.grown.notify_all();
                if state.ended {
                    return;
                }
            }
        });
        Self { input: Box::new(input), output: shared, seen: 0, next_id: 1 }
    }

    /// Goes on where the same guest's `earlier` console stopped: a history may show again what was asked there.
    pub fn follow(&mut self, earlier: &Self) {
        self.next_id = earlier.next_id;
    }

    /// Waits for `pattern` in what has not been looked at yet, and returns the text before it and the rest of its line.
    pub fn wait_for(&mut self, pattern: &str, limit: Duration) -> Result<(String, String)> {
        let start = Instant::now();
        let mut state = self.output.state.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let fresh = state.text.get(self.seen..).unwrap_or_default();
            if let Some(at) = find(fresh, pattern.as_bytes()) {
                let after = &fresh[at + pattern.len()..];
                if let Some(end) = after.iter().position(|byte| *byte == b'\n') {
                    let before = String::from_utf8_lossy(&fresh[..at]).into_owned();
                    let rest = String::from_utf8_lossy(&after[..end]).into_owned();
                    self.seen += at + pattern.len() + end + 1;
                    return Ok((before, rest));
                }
            }
            let left = limit.saturating_sub(start.elapsed());
            if state.ended || left.is_zero() {
                let why = if state.ended { "the console ended" } else { "nothing came in time" };
                bail!(
                    "waited {:.0?} for {pattern:?}: {why}; the console's end: {}",
                    start.elapsed(),
                    tail(fresh)
                );
            }
            state = self.output.grown.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until the guest's init is there.
    pub fn wait_ready(&mut self, limit: Duration) -> Result<Ready> {
        let (_, line) = self.wait_for("domus-guest: ready ", limit)?;
        let field = |name: &str| {
            line.split(' ')
                .find_map(|word| word.strip_prefix(name)?.strip_prefix('='))
                .context("a field is missing")
        };
        let parse = || -> Result<Ready> {
            Ok(Ready {
                kernel: field("kernel")?.to_owned(),
                cpus: field("cpus")?.parse()?,
                memory_kib: field("memory")?.parse()?,
            })
        };
        parse().with_context(|| format!("the guest introduced itself with {line:?}"))
    }

    /// Writes a line to the guest's console without waiting for anything.
    pub fn send(&mut self, line: &str) -> Result<()> {
        let mut bytes = line.as_bytes().to_vec();
        bytes.push(b'\n');
        self.input
            .write_all(&bytes)
            .and_then(|()| self.input.flush())
            .context("cannot write to the guest's console")
    }

    /// Gives the guest a command whose end is not waited for (`reboot`, `poweroff`).
    pub fn start(&mut self, command: &str) -> Result<u32> {
        let id = self.next_id;
        self.next_id += 1;
        self.send(&format!("{id} {command}"))?;
        Ok(id)
    }

    /// Runs a shell command in the guest and returns what it printed; a status other than 0 is an error.
    pub fn run(&mut self, command: &str, limit: Duration) -> Result<String> {
        let id = self.start(command)?;
        self.finish(id, command, limit)
    }

    /// Waits for the end of a command begun with [`Guest::start`].
    pub fn finish(&mut self, id: u32, command: &str, limit: Duration) -> Result<String> {
        let (output, status) = self
            .wait_for(&format!("domus-guest: done {id} "), limit)
            .with_context(|| format!("in the guest: {command}"))?;
        if status.trim() != "0" {
            bail!("in the guest, status {status} of: {command}; it printed: {}", tail(output.as_bytes()));
        }
        Ok(output)
    }

    /// Everything the guest has printed so far.
    pub fn transcript(&self) -> String {
        let state = self.output.state.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&state.text).into_owned()
    }
}

fn find(text: &[u8], pattern: &[u8]) -> Option<usize> {
    text.windows(pattern.len()).position(|window| window == pattern)
}

/// The last lines of `text`, on one line.
fn tail(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    format!("{:?}", lines[lines.len().saturating_sub(6)..].join(" | "))
}
