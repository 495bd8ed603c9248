//! The list on a terminal: q, Ctrl-C or Ctrl-] leaves; c, s, m, d, n and N sort.

use std::io::{self, Write};
use std::time::Duration;

use ::console::Term;
use tokio::time::{Instant, sleep_until};

use super::rates::{Row, table};
use super::{SortKey, Watch};
use crate::attach::Keys;
use crate::terminal::Raw;

/// Ctrl-C, which raw mode makes a key like any other.
const CTRL_C: u8 = 0x03;

// Control sequences of ECMA-48 and xterm, which every terminal of today has.
const OTHER_SCREEN: &str = "\x1b[?1049h\x1b[?25l";
const FIRST_SCREEN: &str = "\x1b[?25h\x1b[?1049l";
const TOP_LEFT: &str = "\x1b[H";
const REVERSE: &str = "\x1b[7m";
const PLAIN: &str = "\x1b[m";
const CLEAR_LINE: &str = "\x1b[K";
const CLEAR_BELOW: &str = "\x1b[J";

/// The terminal's other screen, in raw mode. What was there before comes back when this is dropped, on a panic too.
struct Screen {
    _raw: Option<Raw>,
}

impl Screen {
    fn enter() -> io::Result<Self> {
        let screen = Self { _raw: Raw::enter()? };
        write(OTHER_SCREEN)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = write(FIRST_SCREEN);
    }
}

fn write(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Shows the list until the user leaves, or so many times.
///
/// # Errors
/// That the service or the terminal has gone.
pub(super) async fn show(
    watch: &mut Watch,
    delay: Duration,
    iterations: Option<u64>,
    order: SortKey,
) -> anyhow::Result<()> {
    let _screen = Screen::enter()?;
    let mut keys = Keys::read(true);
    let mut order = order;
    let mut rows = Vec::new();
    let mut left = iterations;
    draw(&rows, order)?;
    // Something is seen soon, and then at each look.
    let mut next = Instant::now() + delay.min(Duration::from_secs(1));
    loop {
        tokio::select! {
            typed = keys.next() => {
                let Some(typed) = typed else { return Ok(()) };
                for key in typed {
                    order = match key {
                        b'q' | CTRL_C => return Ok(()),
                        b'c' => SortKey::Cpu,
                        b's' => SortKey::Steal,
                        b'm' => SortKey::Memory,
                        b'd' => SortKey::Disk,
                        b'n' => SortKey::Net,
                        b'N' => SortKey::Name,
                        _ => order,
                    };
                }
                super::rates::sort(&mut rows, order);
            }
            () = sleep_until(next) => {
                if left == Some(0) {
                    return Ok(());
                }
                rows = watch.look(order).await?;
                next = Instant::now() + delay;
                left = left.map(|left| left.saturating_sub(1));
            }
        }
        draw(&rows, order)?;
    }
}

fn draw(rows: &[Row], order: SortKey) -> io::Result<()> {
    let (height, width) = Term::stdout().size();
    let domains = rows.len();
    let head = format!(
        "domus top: {domains} domain(s), by {order:?}: c CPU, s steal, m memory, d disk, n net, N name; q leaves"
    );
    let text = table(rows);
    let lines = [head.as_str(), ""].into_iter().chain(text.lines());
    let mut out = String::from(TOP_LEFT);
    for (n, line) in lines.take(height.into()).enumerate() {
        let line: String = line.chars().take(width.into()).collect();
        out += if n == 0 { "" } else { "\r\n" };
        // The columns' names stand out.
        out += if n == 2 { REVERSE } else { PLAIN };
        out += &line;
        out += PLAIN;
        out += CLEAR_LINE;
    }
    out += CLEAR_BELOW;
    write(&out)
}
