//! What packed kernels unpack to, kept in memory for the next domain that starts the same one. dom0 never looks into
//! it.
//!
//! ```text
//! kernel opened ─▶ known ────────▶ its runner gets the file, sealed, in place of unpacking
//!                └▶ not known ──▶ its runner gets an empty memory file ─▶ ready, and sealed ─▶ kept
//!                                                                       └▶ anything else ───▶ let go
//! ```
//!
//! The runner unpacks behind its seal, before it hears anything of a guest, a backend or a console, and seals the file
//! for ever, as whole or as not: `domu-runner/src/boot/keep.rs` says why nobody can put another kernel there. Here the
//! seals are asked for, of a descriptor that has never left dom0.
//!
//! Which kernel it is, is told by device, inode, size and the times of its last changes, taken before a byte of it is
//! read. A file that was changed so lately that a second change might have the same time is not kept.
//!
//! A kernel is let go when nobody has started it for a while, when others come, and all of them when the host is short
//! of memory.

use std::cell::{Cell, RefCell};
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use domus_startup::memfd;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use shared_abi::limits::MAX_UNPACKED;
use tokio::time::{Instant, sleep};

use crate::host::memory;

/// How long one stays that nobody starts.
const IDLE: Duration = Duration::from_secs(600);

/// How often it is looked whether one has to go.
const LOOK: Duration = Duration::from_secs(10);

/// Most bytes kept in all: some six of a distribution's.
const MOST: u64 = 4 * MAX_UNPACKED;

/// A file is left alone for so long before its times tell it apart from what it is next: more than any file system's
/// granularity.
const SETTLED: Duration = Duration::from_secs(2);

/// The seals of a file that can no longer be changed.
const WHOLE: SealFlag = SealFlag::F_SEAL_WRITE
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW)
    .union(SealFlag::F_SEAL_SEAL);

/// Which kernel it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Which {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Which {
    /// By what `fstat(2)` says of it, which nothing of it was read before. None if it was changed just now.
    pub fn new(meta: &Metadata) -> Option<Self> {
        let changed = UNIX_EPOCH.checked_add(Duration::from_secs(meta.ctime().try_into().ok()?))?;
        let age = SystemTime::now().duration_since(changed).ok()?;
        (age > SETTLED).then(|| Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

/// What a runner is given beside a kernel.
#[derive(Debug)]
pub enum Given {
    /// What it unpacks to.
    Kept(OwnedFd),
    /// A file to write that to.
    Keep(OwnedFd, Empty),
}

/// A memory file that a runner may have filled.
#[derive(Debug)]
pub struct Empty {
    which: Which,
    file: File,
}

#[derive(Debug)]
struct Kept {
    which: Which,
    file: File,
    size: u64,
    used: Instant,
}

/// The kernels that are kept.
#[derive(Debug)]
pub struct Kernels {
    kept: RefCell<Vec<Kept>>,
    watched: Cell<bool>,
    is_short: fn() -> bool,
}

impl Default for Kernels {
    fn default() -> Self {
        Self { kept: RefCell::default(), watched: Cell::default(), is_short: memory::is_short }
    }
}

impl Kernels {
    /// What the runner of a domain with this kernel is given; without memory or descriptors, nothing.
    pub fn give(&self, which: Which) -> Option<Given> {
        let mut kept = self.kept.borrow_mut();
        match kept.iter_mut().find(|kept| kept.which == which) {
            Some(kept) => {
                kept.used = Instant::now();
                kept.file.try_clone().ok().map(|file| Given::Kept(file.into()))
            }
            None => {
                let file = memfd::open("kernel").ok()?;
                let theirs = file.try_clone().ok()?;
                Some(Given::Keep(theirs.into(), Empty { which, file }))
            }
        }
    }

    /// Keeps what a runner was given that has become ready, if it is whole.
    pub fn keep(self: &Rc<Self>, Empty { which, file }: Empty) {
        let Ok(Some(size)) = whole(&file) else { return };
        let mut kept = self.kept.borrow_mut();
        // Of two starts at once the first is as good as the second.
        if (self.is_short)() || kept.iter().any(|kept| kept.which == which) {
            return;
        }
        kept.push(Kept { which, file, size, used: Instant::now() });
        while kept.iter().map(|kept| kept.size).sum::<u64>() > MOST {
            let oldest = kept.iter().enumerate().min_by_key(|(_, kept)| kept.used).map(|(index, _)| index);
            kept.swap_remove(oldest.unwrap_or(0));
        }
        if !self.watched.replace(true) {
            tokio::task::spawn_local(self.clone().watch());
        }
    }

    /// Lets go of what has to go, until nothing is left.
    async fn watch(self: Rc<Self>) {
        while !self.kept.borrow().is_empty() {
            sleep(LOOK).await;
            let (now, short) = (Instant::now(), (self.is_short)());
            self.kept.borrow_mut().retain(|kept| !short && now - kept.used < IDLE);
        }
        self.watched.set(false);
    }
}

/// The size of a file that nobody can change any more; none if it can be, or has none that a kernel may have.
fn whole(file: &File) -> io::Result<Option<u64>> {
    let seals = SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS)?);
    // In memory: this does not wait.
    let size = file.metadata()?.len();
    Ok((seals.contains(WHOLE) && (1..=MAX_UNPACKED).contains(&size)).then_some(size))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use tokio::task::LocalSet;

    use super::*;

    fn kernels(is_short: fn() -> bool) -> Rc<Kernels> {
        Rc::new(Kernels { is_short, ..Kernels::default() })
    }

    fn which(inode: u64) -> Which {
        Which { device: 1, inode, size: 3, modified: (4, 5), changed: (6, 7) }
    }

    /// What a runner makes of what it is given: so many bytes, and seals.
    fn fill(kernels: &Rc<Kernels>, which: Which, bytes: u64, seals: SealFlag) {
        let Some(Given::Keep(theirs, empty)) = kernels.give(which) else { panic!("it is kept") };
        let theirs = File::from(theirs);
        theirs.set_len(bytes).unwrap();
        fcntl(&theirs, FcntlArg::F_ADD_SEALS(seals)).unwrap();
        kernels.keep(empty);
    }

    fn is_kept(kernels: &Kernels, which: Which) -> bool {
        matches!(kernels.give(which), Some(Given::Kept(_)))
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_kernel_is_kept_if_nobody_can_change_it_and_until_nobody_starts_it() {
        LocalSet::new()
            .run_until(async {
                let kernels = kernels(|| false);
                for (inode, bytes, seals) in [
                    (1, 9, SealFlag::F_SEAL_SEAL),
                    (2, 9, WHOLE - SealFlag::F_SEAL_WRITE),
                    (3, 9, WHOLE - SealFlag::F_SEAL_SHRINK),
                    (4, 9, WHOLE - SealFlag::F_SEAL_SEAL),
                    (5, 0, WHOLE),
                    (6, MAX_UNPACKED + 1, WHOLE),
                ] {
                    fill(&kernels, which(inode), bytes, seals);
                    assert!(!is_kept(&kernels, which(inode)), "{inode}");
                }
                fill(&kernels, which(7), 9, WHOLE);
                assert!(is_kept(&kernels, which(7)));
                assert!(!is_kept(&kernels, Which { changed: (6, 8), ..which(7) }));
                let Some(Given::Kept(file)) = kernels.give(which(7)) else { panic!("it is not kept") };
                assert!(File::from(file).write_all(b"x").is_err(), "it can be changed");
                sleep(IDLE - LOOK).await;
                assert!(is_kept(&kernels, which(7)), "it was started a while ago");
                sleep(IDLE + LOOK).await;
                assert!(!is_kept(&kernels, which(7)));
                // And the next one is watched again.
                fill(&kernels, which(8), 9, WHOLE);
                sleep(IDLE + LOOK).await;
                assert!(!is_kept(&kernels, which(8)));
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn the_ones_that_were_started_last_are_kept_when_there_are_too_many() {
        LocalSet::new()
            .run_until(async {
                let kernels = kernels(|| false);
                for inode in 0..5 {
                    fill(&kernels, which(inode), MAX_UNPACKED, WHOLE);
                    sleep(Duration::from_secs(1)).await;
                    assert!(is_kept(&kernels, which(0)));
                    sleep(Duration::from_secs(1)).await;
                }
                let kept: Vec<_> = (0..5).filter(|inode| is_kept(&kernels, which(*inode))).collect();
                assert_eq!(kept, [0, 2, 3, 4]);
            })
            .await;
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn nothing_is_kept_while_the_host_is_short_of_memory() {
        LocalSet::new()
            .run_until(async {
                let short = kernels(|| true);
                fill(&short, which(1), 9, WHOLE);
                assert!(!is_kept(&short, which(1)));
                thread_local!(static SHORT: Cell<bool> = const { Cell::new(false) });
                let later = kernels(|| SHORT.get());
                fill(&later, which(1), 9, WHOLE);
                assert!(is_kept(&later, which(1)));
                SHORT.set(true);
                sleep(LOOK * 2).await;
                assert!(!is_kept(&later, which(1)));
            })
            .await;
    }

    #[test]
    fn a_file_that_was_changed_just_now_is_not_told_apart_from_the_next() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(Which::new(&file.metadata().unwrap()), None);
        let old = Which::new(&std::fs::metadata("/bin/sh").unwrap());
        assert!(old.is_some() && old == Which::new(&std::fs::metadata("/bin/sh").unwrap()));
    }
}
