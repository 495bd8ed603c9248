//! System calls that wait for storage: a dead server, a stopped FUSE process or a suspended device holds them up for as
//! long as it likes.
//!
//! None of them runs on dom0's only thread, which serves every domain. Each has a thread of its own and a deadline; a
//! path whose call has not come back is refused at once until it has, so that one that hangs costs one thread; and so
//! is every path of a mount of which many hang.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Deref;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use domus_startup::lock;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::host::waits::waiting;

/// Within this time storage that is of any use has answered.
const DEADLINE: Duration = Duration::from_secs(20);

/// A domain that ends waits so long for its files to be closed.
const CLOSED: Duration = Duration::from_secs(2);

/// So many calls of one mount hang at most.
const MOST_OF_A_MOUNT: usize = 16;

/// Paths with calls that were given up and have not come back, and how many.
static STUCK: Mutex<BTreeMap<PathBuf, usize>> = Mutex::new(BTreeMap::new());

/// Storage does not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{}\" does not answer: see what its file system or server waits for", path.display())]
pub struct Slow {
    /// What.
    pub path: PathBuf,
}

/// Does something with `path` on a thread of its own.
///
/// # Errors
/// [`Slow`] if it takes longer than storage may, or something with that path that was given up has not come back yet.
pub async fn with<T: Send + 'static>(
    path: &Path,
    work: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Slow> {
    within(DEADLINE, path, work).await
}

/// The same, with a deadline.
///
/// # Errors
/// As [`with`].
pub async fn within<T: Send + 'static>(
    deadline: Duration,
    path: &Path,
    work: impl FnOnce(&Path) -> T + Send + 'static,
) -> Result<T, Slow> {
    let slow = || Slow { path: path.to_owned() };
    let hangs = {
        let stuck = lock(&STUCK);
        stuck.contains_key(path) || (stuck.len() >= MOST_OF_A_MOUNT && too_many(&stuck, path))
    };
    if hangs {
        return Err(slow());
    }
    let (done, result) = oneshot::channel();
    let (own, call) = (path.to_owned(), Arc::new(Call::default()));
    let of_thread = call.clone();
    let run = move || {
        let result = work(&own);
        of_thread.comes_back(&own);
        // One who has stopped waiting lets the result go here.
        let _ = done.send(result);
    };
    if std::thread::Builder::new().name("storage".into()).spawn(run).is_err() {
        return Err(slow());
    }
    let _told = waiting(|| format!("\"{}\" to answer", path.display()));
    match timeout(deadline, result).await {
        Ok(result) => result.map_err(|_| slow()),
        Err(_) => {
            call.is_given_up(path);
            Err(slow())
        }
    }
}

/// True if of the mount of `path` as many calls hang as may.
fn too_many(stuck: &BTreeMap<PathBuf, usize>, path: &Path) -> bool {
    // A file of the kernel's own, which waits for no storage.
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mount_of(path, &mounts);
    let of_it = stuck.iter().filter(|(path, _)| mount_of(path, &mounts) == mount);
    of_it.map(|(_, count)| count).sum::<usize>() >= MOST_OF_A_MOUNT
}

/// The mount point of a path by `/proc/self/mountinfo` (proc_pid_mountinfo(5)), as it is written there: whoever looked
/// at the path itself might wait. Links are not followed.
fn mount_of<'a>(path: &Path, mounts: &'a str) -> &'a str {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| path.starts_with(point)).max_by_key(|point| point.len()).unwrap_or("/")
}

/// One call: whether it has come back, and whether it was given up. Both change under the lock of [`STUCK`].
#[derive(Debug, Default)]
struct Call {
    is_back: AtomicBool,
    is_stuck: AtomicBool,
}

impl Call {
    fn is_given_up(&self, path: &Path) {
        let mut stuck = lock(&STUCK);
        if !self.is_back.load(Ordering::Relaxed) {
            self.is_stuck.store(true, Ordering::Relaxed);
            *stuck.entry(path.to_owned()).or_default() += 1;
        }
    }

    fn comes_back(&self, path: &Path) {
        let mut stuck = lock(&STUCK);
        self.is_back.store(true, Ordering::Relaxed);
        if self.is_stuck.load(Ordering::Relaxed) {
            match stuck.get_mut(path) {
                Some(count) if *count > 1 => *count -= 1,
                _ => drop(stuck.remove(path)),
            }
        }
    }
}

/// Closes descriptors of storage without waiting: the last of a file writes back what it holds.
pub fn close(fds: Vec<OwnedFd>) {
    if !fds.is_empty() {
        // Without a thread they are closed here, when the closure is dropped.
        let _ = std::thread::Builder::new().name("close".into()).spawn(move || drop(fds));
    }
}

/// Closes files, and waits a while for that: whoever opens them next finds them free.
pub async fn closed(files: Vec<StorageFile>) {
    let files: Vec<File> = files.into_iter().filter_map(|mut file| file.0.take()).collect();
    if files.is_empty() {
        return;
    }
    let (done, result) = oneshot::channel::<()>();
    let close = move || {
        drop(files);
        drop(done);
    };
    if std::thread::Builder::new().name("close".into()).spawn(close).is_ok() {
        let _told = waiting(|| "its files to be closed".into());
        let _ = timeout(CLOSED, result).await;
    }
}

/// An open file of somebody's storage, which is never closed on the thread that drops it.
#[derive(Debug)]
pub struct StorageFile(Option<File>);

impl StorageFile {
    /// Another descriptor of it. Does not wait.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn another(&self) -> io::Result<OwnedFd> {
        Ok(self.try_clone()?.into())
    }
}

impl From<File> for StorageFile {
    fn from(file: File) -> Self {
        Self(Some(file))
    }
}

impl From<StorageFile> for OwnedFd {
    fn from(mut file: StorageFile) -> OwnedFd {
        match file.0.take() {
            Some(file) => file.into(),
            // It is there until it is taken, which consumes it.
            None => unreachable!("a file that was taken is gone"),
        }
    }
}

impl Deref for StorageFile {
    type Target = File;
    fn deref(&self) -> &File {
        match &self.0 {
            Some(file) => file,
            // It is there until it is taken, which consumes it.
            None => unreachable!("a file that was taken is gone"),
        }
    }
}

impl Drop for StorageFile {
    fn drop(&mut self) {
        close(self.0.take().into_iter().map(Into::into).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_call_that_does_not_come_back_holds_nobody_up_and_its_path_is_refused_until_it_has() {
        let path = Path::new("/x/hangs");
        let (go_on, wait) = std::sync::mpsc::channel::<()>();
        let hangs = within(Duration::from_millis(20), path, move |_| wait.recv().is_ok()).await;
        assert_eq!(hangs, Err(Slow { path: path.into() }));
        assert!(hangs.unwrap_err().to_string().contains("does not answer"));
        assert!(with(path, |_| ()).await.is_err());
        go_on.send(()).unwrap();
        while lock(&STUCK).contains_key(path) {
            std::thread::yield_now();
        }
        assert_eq!(with(path, |path| path.to_owned()).await.unwrap(), path);
    }

    #[test]
    fn many_calls_that_hang_on_one_mount_are_no_matter_of_another() {
        let mounts = "22 1 0:20 / / rw - ext4 /dev/sda rw\n23 22 0:21 / /mnt/nfs rw - nfs s:/ rw\n";
        assert_eq!(mount_of(Path::new("/mnt/nfs/a/b"), mounts), "/mnt/nfs");
        assert_eq!(mount_of(Path::new("/mnt/nfsx"), mounts), "/");
        let stuck: BTreeMap<_, _> = (0..16).map(|n| (format!("/proc/x{n}").into(), 1)).collect();
        assert!(too_many(&stuck, Path::new("/proc/y")));
        assert!(!too_many(&stuck, Path::new("/sys/y")));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn two_who_open_the_same_file_at_once_do_not_take_each_other_for_stuck() {
        let both = tokio::join!(with(Path::new("/x/kernel"), |_| 1), with(Path::new("/x/kernel"), |_| 2));
        assert_eq!(both, (Ok(1), Ok(2)));
    }
}
