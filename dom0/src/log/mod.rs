//! dom0's log lines about a domain, shown in the journal beside the lines of the domain's own units.
//!
//! dom0 logs as `dom0.service`, so `journalctl -u 'domus-*@web1*'` alone would not show these lines. An entry of root
//! may name a second unit (systemd.journal-fields(7), `OBJECT_SYSTEMD_UNIT=`), and the journal then shows the entry for
//! both.

pub mod file;
pub mod stderr;
mod writer;

use std::io;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use nix::sys::stat::fstat;
use shared_abi::DomainName;

use crate::value::names;

/// Where the journal takes entries (systemd's "Native Journal Protocol").
const SOCKET: &str = "/run/systemd/journal/socket";

/// Says a line about a domain, there if standard error goes there too.
pub fn line(domain: &DomainName, text: &str) {
    let told = is_at_hand() && tell(&entry(domain, text)).is_ok();
    if !told {
        crate::log::file::line(domain, text);
        crate::log::stderr::line(format_args!("{domain}: {text}"));
    }
}

/// Waits until all lines are written, for a second at most. For a process that ends.
pub fn flush() {
    let patience = Duration::from_millis(500);
    file::flush(patience);
    stderr::flush(patience);
}

/// True if standard error is the stream that the journal has given this process (systemd.exec(5), `$JOURNAL_STREAM`).
pub fn is_at_hand() -> bool {
    let Ok(stream) = std::env::var("JOURNAL_STREAM") else { return false };
    fstat(std::io::stderr()).is_ok_and(|stat| stream == format!("{}:{}", stat.st_dev, stat.st_ino))
}

/// The entry: a field a line, so that none may hold an end of line.
fn entry(domain: &DomainName, text: &str) -> String {
    let text = text.replace(['\n', '\r'], " ");
    let unit = names::runner_unit(domain);
    format!("MESSAGE={domain}: {text}\nPRIORITY=6\nSYSLOG_IDENTIFIER=dom0\nOBJECT_SYSTEMD_UNIT={unit}\n")
}

/// Never waits: a journal that is not there, or is slow, has the line said on standard error.
fn tell(entry: &str) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to(entry.as_bytes(), SOCKET).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_names_the_runners_unit_and_a_text_cannot_add_fields() {
        let entry = entry(&"a-b".parse().unwrap(), "was killed\nPRIORITY=0");
        let lines: Vec<&str> = entry.lines().collect();
        assert_eq!(lines[0], "MESSAGE=a-b: was killed PRIORITY=0");
        assert_eq!(lines.last(), Some(&"OBJECT_SYSTEMD_UNIT=domus-runner@a\\x2db.service"));
        assert_eq!(lines.len(), 4);
    }
}
