//! One attachment to a console: the guest's output goes to the terminal, the terminal's input to the guest.
//!
//! On a terminal, Ctrl-] leaves. Otherwise standard input is a pipe: its end ends only the writing, and the output is
//! followed until the guest's side is gone, so that `echo reboot | domus console web1` and
//! `domus console --read-only web1 </dev/null` do what they say.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use domus_startup::say;
use shared_abi::console::{ClientFrame, Decoder, Frame, Mode, Refusal, ServerFrame, encode_input};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// Ctrl-], as telnet and xl have it.
const ESCAPE: u8 = 0x1d;

/// A console that has not answered within this time is told of.
const SILENT: Duration = Duration::from_secs(2);

/// How an attachment ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The user has left.
    Left,
    /// The guest's side is gone.
    Ended,
    /// The console's process is gone, without a word: another one may take its place.
    Lost,
}

/// A file that everything shown is appended to, too.
#[derive(Debug)]
pub struct Copy {
    file: File,
    path: PathBuf,
}

impl Copy {
    /// Opens or makes it: for its owner only, since a console shows secrets.
    ///
    /// # Errors
    /// One line.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(path);
        let file =
            file.with_context(|| format!("cannot open {} to append to it: name a file", path.display()))?;
        Ok(Self { file, path: path.into() })
    }

    fn append(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        let path = &self.path;
        self.file.write_all(bytes).with_context(|| format!("cannot append to {}: make room", path.display()))
    }
}

/// What is typed, chunk by chunk; shared by the attachments that follow each other when a guest reboots.
#[derive(Debug)]
pub struct Keys {
    chunks: mpsc::Receiver<Vec<u8>>,
    terminal: bool,
    open: bool,
}

impl Keys {
    /// Reads standard input in a thread of its own. With `terminal`, Ctrl-] is the user's wish to leave.
    pub fn read(terminal: bool) -> Self {
        let (sender, chunks) = mpsc::channel(4);
        // Not tokio's stdin: it would hold up the end of the program. This thread ends with the process.
        thread::spawn(move || {
            let mut stdin = io::stdin().lock();
            let mut buffer = [0; 1024];
            while let Ok(count @ 1..) = io::Read::read(&mut stdin, &mut buffer) {
                if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { chunks, terminal, open: true }
    }

    /// Nobody types.
    pub fn none() -> Self {
        Self { chunks: mpsc::channel(1).1, terminal: false, open: false }
    }

    /// The next chunk; None when the user wants to leave. Never returns after the end of a pipe.
    pub async fn next(&mut self) -> Option<Vec<u8>> {
        if self.open {
            match self.chunks.recv().await {
                Some(chunk) if self.terminal && chunk.contains(&ESCAPE) => return None,
                Some(chunk) => return Some(chunk),
                // A terminal that has gone is a user who has left.
                None if self.terminal => return None,
                None => self.open = false,
            }
        }
        std::future::pending().await
    }
}

/// Attaches until the user leaves or the guest's side is gone.
///
/// # Errors
/// That the console cannot be reached or refuses, or that standard output or the copy cannot be written to.
pub async fn attach(
    path: &Path,
    mode: Mode,
    keys: &mut Keys,
    mut copy: Option<&mut Copy>,
) -> anyhow::Result<End> {
    let stream = UnixStream::connect(path).await;
    let mut stream = stream.with_context(|| format!("cannot connect to the console {}", path.display()))?;
    stream.write_all(&ClientFrame::Attach { mode }.to_bytes()).await.context("the console has hung up")?;
    let mut decoder = Decoder::default();
    let mut buffer = vec![0; 16 * 1024];
    let mut silent = Some(Instant::now() + SILENT);
    loop {
        tokio::select! {
            () = sleep_until(silent.unwrap_or_else(Instant::now)), if silent.is_some() => {
                say("the console does not answer: it is shown as soon as it does; domus why says more");
                silent = None;
            }
            count = stream.read(&mut buffer) => {
                let mut input = match count {
                    Ok(count @ 1..) => {
                        silent = None;
                        &buffer[..count]
                    }
                    Ok(_) | Err(_) => return Ok(End::Lost),
                };
                while let Some(frame) = decoder.next::<ServerFrame>(&mut input)? {
                    if let (ServerFrame::Output(bytes), Some(copy)) = (&frame, &mut copy) {
                        copy.append(bytes)?;
                    }
                    if let Some(end) = show(frame, mode)? {
                        return Ok(end);
                    }
                }
            }
            chunk = keys.next() => match chunk {
                None => return Ok(End::Left),
                Some(_) if mode == Mode::Read => {}
                Some(chunk) => {
                    let mut frames = Vec::with_capacity(chunk.len() + 16);
                    encode_input(&chunk, &mut frames);
                    if stream.write_all(&frames).await.is_err() {
                        return Ok(End::Lost);
                    }
                }
            },
        }
    }
}

fn show(frame: ServerFrame, mode: Mode) -> anyhow::Result<Option<End>> {
    let say = |text: &str| domus_startup::say(text);
    match frame {
        ServerFrame::Output(bytes) => {
            let mut out = io::stdout().lock();
            match out.write_all(&bytes).and_then(|()| out.flush()) {
                // Nobody is left to see it.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(Some(End::Left)),
                written => written.context("cannot write to standard output")?,
            }
        }
        ServerFrame::Welcome { writer: false, .. } if mode != Mode::Read => {
            say("somebody else writes to this console: you can read; --take takes it over");
        }
        ServerFrame::Writer { you: false } if mode != Mode::Read => {
            say("somebody else writes to this console now")
        }
        ServerFrame::Writer { you: true } => say("you write to this console now"),
        ServerFrame::Welcome { .. } | ServerFrame::Writer { .. } => {}
        ServerFrame::Lost { bytes } => {
            say(&format!("{bytes} bytes were lost: the console was read too slowly"))
        }
        ServerFrame::Refused(Refusal::TooManyClients) => {
            bail!("the console serves no more: leave it elsewhere first")
        }
        ServerFrame::Refused(Refusal::Malformed) => {
            bail!("the console does not understand this domus: use the same version")
        }
        ServerFrame::End => return Ok(Some(End::Ended)),
    }
    Ok(None)
}
