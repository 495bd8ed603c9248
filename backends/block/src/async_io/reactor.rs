//! The reactor of futures: each operation of the io_uring is a future, and its completion wakes the future's task.
//!
//! ```text
//!   read/write/… ─▶ Operation (a future) ─poll▶ Pending … wait ─▶ completion ─▶ wake ─poll▶ Ready(bytes)
//! ```
//!
//! Promised: an operation whose future is dropped is over when `drop` returns (cancelled, or waited for), so the kernel
//! never touches a buffer that its owner has back. One thread uses a reactor; the lock in it is never waited for, it is
//! there because an image's storage must be [`Sync`].
#![expect(unsafe_code, reason = "the kernel works with the addresses of an operation until it is over")]

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use domus_startup::lock;
use io_uring::squeue::Entry;
use io_uring::types::{FsyncFlags, Timespec};
use io_uring::{opcode, types};
use libc::iovec;

use crate::uring::{Completion, Uring, Wait};

/// Completions with tags from here on are the worker's own, not an operation's.
pub const OWN_TAGS: u64 = 1 << 32;
/// The completion of a cancelling, which nobody waits for.
const CANCELLED: u64 = u64::MAX;

/// Times that one operation is submitted again because the kernel says so.
const RETRIES: usize = 8;

/// What becomes of an operation.
enum Slot {
    Free,
    Running(Option<Waker>),
    Done(i32),
}

struct State {
    ring: Uring,
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// Completions of the worker's own that came while an operation was waited for.
    own: VecDeque<Completion>,
}

/// A ring and the operations in it.
pub struct Reactor(Mutex<State>);

impl std::fmt::Debug for Reactor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reactor")
    }
}

impl Reactor {
    /// For the thread that enabled `ring`.
    pub fn new(ring: Uring) -> Self {
        Self(Mutex::new(State { ring, slots: Vec::new(), free: Vec::new(), own: VecDeque::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// # Safety
    /// Every address in `entry` must be valid until the operation is over, which it is when it has been dropped.
    unsafe fn begin(&self, entry: Entry) -> Operation<'_> {
        let mut state = self.state();
        let index = state.free.pop().unwrap_or_else(|| {
            state.slots.push(Slot::Free);
            state.slots.len() - 1
        });
        state.slots[index] = Slot::Running(None);
        // SAFETY: the caller's promise.
        unsafe { state.ring.push(entry, index as u64) };
        Operation { reactor: self, index }
    }

    /// Reads from `offset` of `file`. Resolves to the bytes read, which may be fewer than there is room for.
    ///
    /// # Safety
    /// What `buffers` points to must stay valid, and be touched by nobody else, until the future is ready or dropped;
    /// and it must not be leaked.
    pub async unsafe fn read(&self, file: &File, buffers: &[iovec], offset: u64) -> io::Result<u64> {
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Readv::new(fd, buffers.as_ptr(), buffers.len() as u32).offset(offset).build();
        // SAFETY: the caller's promise; the array is borrowed as long as the operation runs.
        again(|| unsafe { self.begin(entry.clone()) }).await
    }

    /// Writes at `offset` of `file`. Resolves to the bytes written, which may be fewer than were given.
    ///
    /// # Safety
    /// As for [`read`](Self::read), but others may read.
    pub async unsafe fn write(&self, file: &File, buffers: &[iovec], offset: u64) -> io::Result<u64> {
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Writev::new(fd, buffers.as_ptr(), buffers.len() as u32).offset(offset).build();
        // SAFETY: the caller's promise; the array is borrowed as long as the operation runs.
        again(|| unsafe { self.begin(entry.clone()) }).await
    }

    /// `fdatasync`.
    ///
    /// # Errors
    /// What the system says.
    pub async fn sync(&self, file: &File) -> io::Result<()> {
        let entry = opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: the entry has no address.
        again(|| unsafe { self.begin(entry.clone()) }).await.map(drop)
    }

    /// `fallocate` with `FALLOC_FL_…`.
    ///
    /// # Errors
    /// What the system says.
    pub async fn allocate(&self, file: &File, mode: i32, offset: u64, len: u64) -> io::Result<()> {
        let fd = types::Fd(file.as_raw_fd());
        let entry = opcode::Fallocate::new(fd, len).offset(offset).mode(mode).build();
        // SAFETY: the entry has no address.
        again(|| unsafe { self.begin(entry.clone()) }).await.map(drop)
    }

    /// Waits until `fd` can be read from, or written to if `write`; an error counts as both.
    pub async fn ready(&self, fd: BorrowedFd<'_>, write: bool) {
        let events = if write { libc::POLLOUT } else { libc::POLLIN };
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events as u32).build();
        // SAFETY: the entry has no address.
        unsafe { self.begin(entry) }.await;
    }

    /// Waits.
    pub async fn sleep(&self, time: Duration) {
        let time = Timespec::from(time);
        let entry = opcode::Timeout::new(&raw const time).build();
        // SAFETY: the time is part of this future and outlives the operation in it.
        unsafe { self.begin(entry) }.await;
    }

    /// Queues a poll of the worker's own: it completes in [`wait`](Self::wait) with `tag`, which is at least
    /// [`OWN_TAGS`].
    pub fn poll(&self, fd: BorrowedFd<'_>, tag: u64) {
        self.state().ring.poll(fd, tag);
    }

    /// Cancels a [`poll`](Self::poll), which then completes with `ECANCELED`.
    pub fn cancel(&self, tag: u64) {
        self.state().ring.cancel(tag, CANCELLED);
    }

    /// Submits what is queued, waits, wakes the futures concerned and hands the worker's own
    /// completions to `own`.
    pub fn wait(&self, wait: Wait, mut own: impl FnMut(Completion)) {
        let mut state = self.state();
        let wait = if state.own.is_empty() { wait } else { Wait::Not };
        let wakers = state.turn(wait);
        let mine = std::mem::take(&mut state.own);
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        mine.into_iter().for_each(&mut own);
    }

    /// Runs one future to its end; completions of the worker's own are kept for later.
    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        let alarm = Arc::new(Alarm::default());
        let waker = Waker::from(alarm.clone());
        let mut context = Context::from_waker(&waker);
        let mut future = pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
                return output;
            }
            let wakers = self.state().turn(if alarm.take() { Wait::Not } else { Wait::Completion });
            wakers.into_iter().for_each(Waker::wake);
        }
    }
}

impl State {
    /// One call to the kernel. Returns whom to wake, which is done without the lock.
    fn turn(&mut self, wait: Wait) -> Vec<Waker> {
        self.ring.wait(wait);
        let mut wakers = Vec::new();
        while let Some(completion) = self.ring.completion() {
            match completion.tag {
                CANCELLED => {}
                tag if tag >= OWN_TAGS => self.own.push_back(completion),
                tag => {
                    let slot = &mut self.slots[tag as usize];
                    if let Slot::Running(Some(waker)) = std::mem::replace(slot, Slot::Done(completion.result))
                    {
                        wakers.push(waker);
                    }
                }
            }
        }
        wakers
    }
}

/// Does an operation, a few times if the kernel asks for it.
async fn again<'a>(mut begin: impl FnMut() -> Operation<'a>) -> io::Result<u64> {
    let mut tries = 0;
    loop {
        let result = begin().await;
        tries += 1;
        match u64::try_from(result) {
            Ok(count) => return Ok(count),
            Err(_) if matches!(-result, libc::EINTR | libc::EAGAIN) && tries <= RETRIES => {}
            Err(_) => return Err(io::Error::from_raw_os_error(-result)),
        }
    }
}

/// Something the kernel was asked to do. Resolves to its result: a count or a negative errno.
struct Operation<'a> {
    reactor: &'a Reactor,
    index: usize,
}

impl Future for Operation<'_> {
    type Output = i32;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<i32> {
        match &mut self.reactor.state().slots[self.index] {
            Slot::Done(result) => Poll::Ready(*result),
            slot => {
                *slot = Slot::Running(Some(context.waker().clone()));
                Poll::Pending
            }
        }
    }
}

impl Drop for Operation<'_> {
    fn drop(&mut self) {
        let mut state = self.reactor.state();
        let mut woken = Vec::new();
        if matches!(state.slots[self.index], Slot::Running(_)) {
            state.ring.cancel(self.index as u64, CANCELLED);
            while matches!(state.slots[self.index], Slot::Running(_)) {
                woken.extend(state.turn(Wait::Completion));
            }
        }
        state.slots[self.index] = Slot::Free;
        state.free.push(self.index);
        drop(state);
        woken.into_iter().for_each(Waker::wake);
    }
}

/// A waker that only notes that it was called.
#[derive(Debug, Default)]
pub struct Alarm(AtomicBool);

impl Alarm {
    /// Whether it was called since the last time.
    pub fn take(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

impl Wake for Alarm {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::uring::NewUring;

    fn into(buffer: &mut [u8]) -> [iovec; 1] {
        [iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() }]
    }

    #[test]
    fn a_future_gets_what_is_in_the_file() {
        let reactor = Reactor::new(NewUring::new(&[]).unwrap().enable().unwrap());
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"hello").unwrap();
        let mut buffer = [0; 8];
        let vector = into(&mut buffer);
        // SAFETY: the buffer outlives `block_on`.
        assert_eq!(reactor.block_on(unsafe { reactor.read(&file, &vector, 1) }).unwrap(), 4);
        assert_eq!(&buffer[..4], b"ello");
    }

    #[test]
    fn a_dropped_operation_is_over_and_its_slot_is_used_again() {
        let reactor = Reactor::new(NewUring::new(&[]).unwrap().enable().unwrap());
        let (reader, _writer) = std::io::pipe().unwrap();
        let pipe = File::from(OwnedFd::from(reader));
        let mut buffer = [0; 8];
        for _ in 0..3 {
            let vector = into(&mut buffer);
            // SAFETY: the future is dropped here, before the buffer.
            let mut read = Box::pin(unsafe { reactor.read(&pipe, &vector, 0) });
            assert!(read.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
            reactor.wait(Wait::Not, |_| unreachable!());
            drop(read);
        }
        assert_eq!(reactor.state().slots.len(), 1);
    }
}
