//! Paths that a config names, followed as root must where others may write.
//!
//! Whoever may write to a directory on the way may put a symbolic link there. One of root's or of dom0's own user is
//! followed; one of anybody else's only to a file that belongs to the same user. What was found is opened without
//! following any link, so that nobody has put another one in its place meanwhile.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, open, openat2};
use nix::sys::stat::Mode;
use nix::unistd::geteuid;

/// Symbolic links that may be on one path, as the kernel has it.
const MAX_LINKS: usize = 40;

/// A path without symbolic links.
#[derive(Debug)]
pub struct Resolved {
    path: PathBuf,
    /// Users other than root and dom0's own whose symbolic links led here.
    strangers: Vec<u32>,
}

impl Resolved {
    /// Follows a path. Its last part need not exist.
    ///
    /// # Errors
    /// What the system said; `ELOOP` for too many links.
    pub fn new(path: &Path) -> io::Result<Self> {
        let own = [0, geteuid().as_raw()];
        let mut left: VecDeque<OsString> = parts(&std::path::absolute(path)?).collect();
        let (mut resolved, mut strangers, mut links) = (PathBuf::from("/"), Vec::new(), 0);
        while let Some(part) = left.pop_front() {
            if part == ".." {
                resolved.pop();
                continue;
            }
            let next = resolved.join(&part);
            let meta = match next.symlink_metadata() {
                // Whoever opens it says so, or makes it.
                Err(error) if error.kind() == io::ErrorKind::NotFound && left.is_empty() => {
                    resolved = next;
                    break;
                }
                meta => meta?,
            };
            if !meta.is_symlink() {
                resolved = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return Err(Errno::ELOOP.into());
            }
            if !own.contains(&meta.uid()) {
                strangers.push(meta.uid());
            }
            let target = next.read_link()?;
            if target.is_absolute() {
                resolved = PathBuf::from("/");
            }
            parts(&target).rev().for_each(|part| left.push_front(part));
        }
        Ok(Self { path: resolved, strangers })
    }

    /// The path that was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Opens what was found; `mode` is for a file that is made.
    ///
    /// # Errors
    /// What the system said; also if a stranger's link leads to a file that is not the stranger's.
    pub fn open(&self, flags: OFlag, mode: Mode) -> io::Result<File> {
        let flags = flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW;
        // The kernel refuses a mode for a file that is not made.
        let mode_if_made = if flags.contains(OFlag::O_CREAT) { mode } else { Mode::empty() };
        let how = OpenHow::new().flags(flags).mode(mode_if_made).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        let opened = match openat2(AT_FDCWD, &self.path, how) {
            // A sandbox around dom0 may not know the call.
            Err(Errno::ENOSYS) => open(&self.path, flags, mode),
            opened => opened,
        };
        let file = File::from(opened?);
        let owner = file.metadata()?.uid();
        match self.strangers.iter().find(|stranger| **stranger != owner) {
            None => Ok(file),
            Some(stranger) => Err(io::Error::other(format!(
                "a symbolic link of user {stranger} leads to a file of user {owner}: name the file itself"
            ))),
        }
    }
}

/// What a path is made of, but for its beginning.
fn parts(path: &Path) -> impl DoubleEndedIterator<Item = OsString> {
    let parts = path.components().filter(|part| matches!(part, Component::Normal(_) | Component::ParentDir));
    parts.map(|part| part.as_os_str().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    fn read(path: &Path) -> io::Result<String> {
        io::read_to_string(Resolved::new(path)?.open(OFlag::O_RDONLY, Mode::empty())?)
    }

    #[test]
    fn links_of_roots_are_followed_and_a_strangers_only_to_files_of_its_own() {
        assert!(geteuid().is_root(), "not run: this test gives files away, which needs root");
        let dir = tempfile::tempdir().unwrap();
        let [real, link, there] = ["real", "link", "there"].map(|name| dir.path().join(name));
        std::fs::create_dir(&real).unwrap();
        std::fs::write(real.join("image"), "x").unwrap();
        symlink("../there/./image", real.join("again")).unwrap();
        symlink("real", &there).unwrap();
        symlink(real.join("again"), &link).unwrap();
        assert_eq!(read(&link).unwrap(), "x");
        assert_eq!(Resolved::new(&link).unwrap().path(), real.canonicalize().unwrap().join("image"));
        for stranger in [&link, &there] {
            lchown(stranger, Some(1234), None).unwrap();
            let refused = read(&link).unwrap_err().to_string();
            assert!(refused.contains("of user 1234 leads to a file of user 0"), "{refused}");
            lchown(real.join("image"), Some(1234), None).unwrap();
            assert_eq!(read(&link).unwrap(), "x");
            lchown(real.join("image"), Some(0), None).unwrap();
            lchown(stranger, Some(0), None).unwrap();
        }
    }

    #[test]
    fn a_link_that_takes_a_files_place_is_not_followed_and_a_circle_ends() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        std::fs::write(&path, "x").unwrap();
        let resolved = Resolved::new(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        symlink("/etc/passwd", &path).unwrap();
        let error = resolved.open(OFlag::O_RDONLY, Mode::empty()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        std::fs::remove_file(&path).unwrap();
        symlink("image", &path).unwrap();
        assert_eq!(Resolved::new(&path).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        let new = Resolved::new(&dir.path().join("new")).unwrap();
        new.open(OFlag::O_WRONLY | OFlag::O_CREAT, Mode::S_IRUSR).unwrap();
    }
}
