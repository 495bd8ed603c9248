//! One log file per domain, for `domus logs` on hosts whose journal does not have the lines.
//!
//! Only dom0 writes. Output of children comes as printable lines, bounded in length and number. A full file is kept
//! once, beside the new one, so a domain has 2 MiB at most. A line that cannot be written is lost; nobody waits for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use shared_abi::DomainName;

use crate::value::time;

/// Bytes of one file.
const MAX_LEN: u64 = 1 << 20;

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

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
    if let Some(folder) = folder() {
        let _ = append(folder, domain, text, MAX_LEN);
    }
}

fn append(folder: &Path, domain: &DomainName, text: &str, full: u64) -> io::Result<()> {
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
    let text = text.replace(['\n', '\r'], " ");
    file.write_all(format!("{} {text}\n", time::now()).as_bytes())
}

fn open(path: &Path) -> io::Result<File> {
    let flags = libc::O_NOFOLLOW | libc::O_CLOEXEC;
    OpenOptions::new().append(true).create(true).mode(0o600).custom_flags(flags).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_kept_once_and_a_text_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("log/domus");
        let web1: DomainName = "web1".parse().unwrap();
        for n in 0..40 {
            append(&folder, &web1, &format!("line {n}\nand more"), 512).unwrap();
        }
        let [older, newer] = files(&folder, &web1).map(|path| fs::read_to_string(path).unwrap());
        assert!(older.len() < 600 && newer.len() < 600);
        assert!(newer.ends_with("Z line 39 and more\n"), "{newer}");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
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
