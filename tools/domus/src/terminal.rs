//! The terminal in raw mode, for a console. It is put back when this is dropped, on a panic too.

use std::io::{self, IsTerminal, Stdin};

use domus_startup::to_raw_terminal;
use nix::sys::termios::{self, SetArg, Termios};

/// A terminal in raw mode.
#[derive(Debug)]
pub struct Raw {
    stdin: Stdin,
    before: Termios,
}

impl Raw {
    /// Puts standard input into raw mode; none if it is no terminal.
    ///
    /// # Errors
    /// What `tcsetattr(3)` said.
    pub fn enter() -> io::Result<Option<Self>> {
        let stdin = io::stdin();
        if !stdin.is_terminal() {
            return Ok(None);
        }
        let before = termios::tcgetattr(&stdin)?;
        let mut raw = before.clone();
        termios::cfmakeraw(&mut raw);
        termios::tcsetattr(&stdin, SetArg::TCSANOW, &raw)?;
        to_raw_terminal(true);
        Ok(Some(Self { stdin, before }))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = termios::tcsetattr(&self.stdin, SetArg::TCSANOW, &self.before);
        to_raw_terminal(false);
    }
}
