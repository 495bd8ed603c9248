//! One log file per domain, for `domus logs` on hosts whose journal does not have the lines.
//!
//! Only dom0 writes. Output of children comes as printable lines, bounded in length and number. A full file is kept
//! once, beside the new one, so a domain has 2 MiB at most. A line that cannot be written is lost; nobody waits for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

use shared_abi::DomainName;

use crate::log::writer::Writer;
use crate::value::time;

/// Bytes of one file.
const MAX_LEN: u64 = 1 << 20;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();
static WRITER: Writer<(DomainName, String)> = Writer::new(|(domain, line), lost| {
    let Some(folder) = folder() else { return };
    if lost > 0 {
        let lost = format!("{} {lost} line(s) of several domains were lost\n", time::now());
        let _ = append(folder, &domain, &lost, MAX_LEN);
    }
    let _ = append(folder, &domain, &line, MAX_LEN);
});

/// From now on lines are kept in files here. The folder is made when there is something to keep.
pub fn keep_in(folder: PathBuf) {
    let _ = FOLDER.set(folder);
}

/// Where they are kept if nobody says otherwise: with the system's logs, or with the state of a user's programs.
pub fn default_folder() -> Option<PathBuf> {
    if nix::unistd::geteuid().is_root() {
        return Some("/var/log/domus".into());
    }
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/state"));
    Some(state.filter(|path| path.is_absolute()).or_else(home)?.join("domus"))
}

/// Where lines are kept, if they are.
pub fn folder() -> Option<&'static Path> {
    FOLDER.get().map(PathBuf::as_path)
}

/// The older and the newer file of a domain.
pub fn files(folder: &Path, domain: &DomainName) -> [PathBuf; 2] {
    [folder.join(format!("{domain}.log.1")), folder.join(format!("{domain}.log"))]
}

/// Keeps a line about a domain.
pub fn line(domain: &DomainName, text: &str) {
    if folder().is_some() {
        WRITER.put((domain.clone(), format!("{} {}\n", time::now(), text.replace(['\n', '\r'], " "))));
    }
}

/// Waits until all lines are kept, for `patience` at most. For a process that ends.
pub fn flush(patience: Duration) {
    WRITER.flush(patience);
}

fn append(folder: &Path, domain: &DomainName, line: &str, full: u64) -> io::Result<()> {
    let [older, newer] = files(folder, domain);
    let mut file = match open(&newer) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
            open(&newer)?
        }
        other => other?,
    };
    if file.metadata()?.len() >= full {
        fs::rename(&newer, &older)?;
        file = open(&newer)?;
    }
    file.write_all(line.as_bytes())
}

fn open(path: &Path) -> io::Result<File> {
    // A pipe would keep the lines of all domains until somebody reads it.
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NONBLOCK;
    let file = OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_kept_once() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("log/domus");
        let web1: DomainName = "web1".parse().unwrap();
        for n in 0..40 {
            append(&folder, &web1, &format!("line {n} and more\n"), 512).unwrap();
        }
        let [older, newer] = files(&folder, &web1).map(|path| fs::read_to_string(path).unwrap());
        assert!(older.len() < 600 && newer.len() < 600);
        assert!(newer.ends_with("\nline 39 and more\n"), "{newer}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[test]
    fn a_pipe_in_the_place_of_a_file_keeps_nobody_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let web1: DomainName = "web1".parse().unwrap();
        let [_, newer] = files(dir.path(), &web1);
        nix::unistd::mkfifo(&newer, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(append(dir.path(), &web1, "x", MAX_LEN).is_err());
        let _reader = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&newer).unwrap();
        assert!(append(dir.path(), &web1, "x", MAX_LEN).is_err());
    }

    #[test]
    fn a_link_in_the_place_of_a_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let web1: DomainName = "web1".parse().unwrap();
        let [_, newer] = files(dir.path(), &web1);
        std::os::unix::fs::symlink(dir.path().join("other"), newer).unwrap();
        assert!(append(dir.path(), &web1, "x", MAX_LEN).is_err());
        assert!(!dir.path().join("other").exists());
    }
}
