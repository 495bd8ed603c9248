//! The io_uring of one queue thread: made before the sandbox is closed, restricted to what a disk needs.
//!
//! A seccomp filter cannot see the operations that are submitted to an io_uring. So the ring itself refuses everything
//! except reading, writing, allocating, syncing, polling and cancelling: it can neither open a file nor connect a
//! socket.
//!
//! A ring holds its registered files until the kernel has freed it, that is after all its operations have ended; for a
//! killed process this is after the process has ended. So images are not registered: each operation holds its own image
//! until it is done, and the locks on an image end earlier, with its last operation.
#![expect(
    unsafe_code,
    reason = "the kernel works with the addresses in submitted entries until it completes them"
)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::time::Duration;

use io_uring::register::Restriction;
use io_uring::{Builder, IoUring, cqueue, opcode, squeue, types};
use libc::iovec;

/// Entries of the submission queue: a batch larger than this is submitted in parts.
const SUBMISSIONS: u32 = 128;
/// Entries of the completion queue: more than [`Uring`]'s user ever has in flight, so that none is ever held back.
const COMPLETIONS: u32 = 512;

/// Why no ring could be made.
#[derive(Debug, thiserror::Error)]
pub enum UringError {
    /// `io_uring_setup` failed.
    #[error(
        "cannot make an io_uring: Linux 5.13 or later is needed, and /proc/sys/kernel/io_uring_disabled must be 0 \
         (or 1, for root)"
    )]
    Setup(#[source] io::Error),
    /// The files could not be registered.
    #[error("cannot register files with an io_uring")]
    Files(#[source] io::Error),
    /// The ring could not be restricted, or its restrictions not be put in force.
    #[error("cannot restrict an io_uring")]
    Restrict(#[source] io::Error),
}

/// A ring that is not in use yet.
pub struct NewUring(IoUring);

/// What has been completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Completion {
    /// The number that it was submitted with.
    pub tag: u64,
    /// Bytes, or a negative errno.
    pub result: i32,
    /// True if the same submission will complete again (a poll that goes on).
    pub more: bool,
}

/// How long [`Uring::wait`] waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// Not at all.
    Not,
    /// For a completion.
    Completion,
    /// For a completion, or so long.
    AtMost(Duration),
}

/// The ring of one thread, which alone may use it.
pub struct Uring(IoUring);

impl NewUring {
    /// Makes a ring with the best flags that this kernel knows (a single issuer needs Linux 6.0). It holds `files`.
    ///
    /// Task work is not deferred (`IORING_SETUP_DEFER_TASKRUN`): it gains nothing measurable here, and what completes
    /// after its process was killed would be finished tens of milliseconds later.
    ///
    /// # Errors
    /// [`UringError`].
    pub fn new(files: &[BorrowedFd<'_>]) -> Result<Self, UringError> {
        let attempts: [fn(&mut Builder) -> &mut Builder; 3] = [
            |ring| ring.setup_single_issuer().setup_coop_taskrun().setup_taskrun_flag(),
            |ring| ring.setup_coop_taskrun(),
            |ring| ring,
        ];
        let mut last = None;
        for flags in attempts {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_r_disabled().setup_cqsize(COMPLETIONS);
            match flags(&mut builder).build(SUBMISSIONS) {
                Ok(ring) => {
                    let files: Vec<RawFd> = files.iter().map(AsRawFd::as_raw_fd).collect();
                    if !files.is_empty() {
                        ring.submitter().register_files(&files).map_err(UringError::Files)?;
                    }
                    restrict(&ring).map_err(UringError::Restrict)?;
                    return Ok(Self(ring));
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => last = Some(error),
                Err(error) => return Err(UringError::Setup(error)),
            }
        }
        Err(UringError::Setup(last.unwrap_or_else(|| io::ErrorKind::Unsupported.into())))
    }

    /// Enables the ring for the calling thread, with its restrictions in force. Needs `io_uring_register`, so it comes
    /// before the seal.
    ///
    /// # Errors
    /// [`UringError::Restrict`].
    pub fn enable(self) -> Result<Uring, UringError> {
        self.0.submitter().register_enable_rings().map_err(UringError::Restrict)?;
        Ok(Uring(self.0))
    }
}

fn restrict(ring: &IoUring) -> io::Result<()> {
    let mut allowed = [
        opcode::Read::CODE,
        opcode::Readv::CODE,
        opcode::Write::CODE,
        opcode::Writev::CODE,
        opcode::Fsync::CODE,
        opcode::Fallocate::CODE,
        opcode::Timeout::CODE,
        opcode::PollAdd::CODE,
        opcode::AsyncCancel::CODE,
    ]
    .map(Restriction::sqe_op);
    ring.submitter().register_restrictions(&mut allowed)
}

impl Uring {
    /// Queues filling `buffers` from `offset` of `file`.
    ///
    /// # Safety
    /// The file must stay open until the next [`wait`](Self::wait) has returned. The buffers must stay mapped until the
    /// operation completes. The array itself, if it has more than one buffer, must stay until the next
    /// [`wait`](Self::wait) or [`room`](Self::room) has returned.
    pub unsafe fn read(&mut self, file: BorrowedFd<'_>, buffers: &[iovec], offset: u64, tag: u64) {
        let fd = types::Fd(file.as_raw_fd());
        let entry = match buffers {
            // One buffer is named by the entry itself: the kernel has no array to look at.
            &[iovec { iov_base, iov_len }] if u32::try_from(iov_len).is_ok() => {
                opcode::Read::new(fd, iov_base.cast(), iov_len as u32).offset(offset).build()
            }
            _ => opcode::Readv::new(fd, buffers.as_ptr(), buffers.len() as u32).offset(offset).build(),
        };
        // SAFETY: the caller's promise is exactly what the kernel needs for this entry.
        unsafe { self.push(entry, tag) }
    }

    /// Queues storing `buffers` at `offset` of `file`; `durable` makes it survive a power cut when it completes.
    ///
    /// # Safety
    /// As for [`read`](Self::read).
    pub unsafe fn write(
        &mut self,
        file: BorrowedFd<'_>,
        buffers: &[iovec],
        offset: u64,
        durable: bool,
        tag: u64,
    ) {
        let fd = types::Fd(file.as_raw_fd());
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let entry = match buffers {
            &[iovec { iov_base, iov_len }] if u32::try_from(iov_len).is_ok() => {
                let base = iov_base.cast_const().cast();
                opcode::Write::new(fd, base, iov_len as u32).offset(offset).rw_flags(flags).build()
            }
            _ => {
                let count = buffers.len() as u32;
                opcode::Writev::new(fd, buffers.as_ptr(), count).offset(offset).rw_flags(flags).build()
            }
        };
        // SAFETY: the caller's promise is exactly what the kernel needs for this entry.
        unsafe { self.push(entry, tag) }
    }

    /// Queues `fdatasync` of `file`.
    pub fn flush(&mut self, file: BorrowedFd<'_>, tag: u64) {
        let entry =
            opcode::Fsync::new(types::Fd(file.as_raw_fd())).flags(types::FsyncFlags::DATASYNC).build();
        // SAFETY: the entry has no address; the kernel takes its own reference to the file when it is submitted.
        unsafe { self.push(entry, tag) }
    }

    /// Queues `fallocate` of a part of `file`, in a mode of `FALLOC_FL_…`.
    pub fn allocate(&mut self, file: BorrowedFd<'_>, mode: i32, offset: u64, len: u64, tag: u64) {
        let entry =
            opcode::Fallocate::new(types::Fd(file.as_raw_fd()), len).offset(offset).mode(mode).build();
        // SAFETY: the entry has no address.
        unsafe { self.push(entry, tag) }
    }

    /// Queues a poll that completes each time `fd` is written to, until it is cancelled or completes with `more` unset.
    pub fn poll(&mut self, fd: BorrowedFd<'_>, tag: u64) {
        let entry = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32).multi(true).build();
        // SAFETY: the entry has no address; the kernel takes its own reference to the file when it is submitted.
        unsafe { self.push(entry, tag) }
    }

    /// Queues the cancelling of what was submitted with `victim`, which then completes with `ECANCELED`.
    pub fn cancel(&mut self, victim: u64, tag: u64) {
        let entry = opcode::AsyncCancel::new(victim).build();
        // SAFETY: the entry has no address.
        unsafe { self.push(entry, tag) }
    }

    /// Queues any operation that the ring allows.
    ///
    /// # Safety
    /// Every address in the entry must be valid as long as its operation needs it.
    pub unsafe fn push(&mut self, entry: squeue::Entry, tag: u64) {
        let entry = entry.user_data(tag);
        self.room();
        // SAFETY: the caller's promise.
        let pushed = unsafe { self.0.submission().push(&entry) };
        // Cannot be: `room` has just made some, or ended the process.
        debug_assert!(pushed.is_ok());
    }

    /// Hands the kernel what is queued if the submission queue is full.
    pub fn room(&mut self) {
        while self.0.submission().is_full() {
            self.enter(Wait::Not);
        }
    }

    /// Submits the queued operations, and waits. Makes no system call if there is nothing to submit, to wait for or to
    /// fetch.
    pub fn wait(&mut self, wait: Wait) {
        if wait != Wait::Not || self.is_behind() {
            self.enter(wait);
        }
    }

    /// Whether there is something to hand over to the kernel, or to fetch from it.
    #[inline]
    fn is_behind(&mut self) -> bool {
        let queue = self.0.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// Whether something is completed, as far as can be seen without a system call.
    #[inline]
    pub fn has_completed(&mut self) -> bool {
        self.0.submission().taskrun() || !self.0.completion().is_empty()
    }

    fn enter(&mut self, wait: Wait) {
        let entered = match wait {
            Wait::Not => self.0.submit_and_wait(0),
            Wait::Completion => self.0.submit_and_wait(1),
            Wait::AtMost(time) => {
                let time = types::Timespec::from(time);
                self.0.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&time))
            }
        };
        match entered.map_err(|error| error.raw_os_error()) {
            Ok(_) | Err(Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME)) => {}
            Err(errno) => {
                // The kernel holds addresses of guest memory that this thread could neither wait for nor take back any
                // more.
                domus_startup::say(format_args!(
                    "io_uring_enter failed with errno {errno:?}: nothing can be served any more"
                ));
                std::process::abort();
            }
        }
    }

    /// The next completion, if there is one.
    pub fn completion(&mut self) -> Option<Completion> {
        let entry = self.0.completion().next()?;
        Some(Completion { tag: entry.user_data(), result: entry.result(), more: cqueue::more(entry.flags()) })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::eventfd::EventFd;

    use super::*;

    fn ring(files: &[BorrowedFd<'_>]) -> Uring {
        NewUring::new(files).unwrap().enable().unwrap()
    }

    #[test]
    fn a_wait_ends_when_its_time_is_over() {
        let mut ring = ring(&[]);
        let start = std::time::Instant::now();
        ring.wait(Wait::AtMost(Duration::from_millis(20)));
        assert!(start.elapsed() >= Duration::from_millis(20));
        assert_eq!(ring.completion(), None);
    }

    #[test]
    fn a_registered_file_stays_open_as_long_as_the_ring_lives() {
        let (reader, writer) = nix::unistd::pipe().unwrap();
        let ring = ring(&[writer.as_fd()]);
        drop(writer);
        let hung_up = |ms: u16| {
            use nix::poll::{PollFd, PollFlags, poll};
            let mut fds = [PollFd::new(reader.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, ms).unwrap() == 1
        };
        assert!(!hung_up(50));
        drop(ring);
        assert!(hung_up(10_000));
    }

    #[test]
    fn a_poll_completes_with_every_kick_until_it_is_cancelled() {
        let mut ring = ring(&[]);
        let kick = EventFd::new().unwrap();
        ring.poll(kick.as_fd(), 1);
        for _ in 0..3 {
            ring.wait(Wait::Not);
            assert_eq!(ring.completion(), None);
            kick.write(1).unwrap();
            ring.wait(Wait::Completion);
            assert_eq!(
                ring.completion(),
                Some(Completion { tag: 1, result: libc::POLLIN.into(), more: true })
            );
        }
        ring.cancel(1, 2);
        let mut ended = Vec::new();
        while ended.len() < 2 {
            ring.wait(Wait::Completion);
            ended.extend(ring.completion());
        }
        assert!(ended.contains(&Completion { tag: 1, result: -libc::ECANCELED, more: false }));
    }

    #[test]
    fn the_ring_opens_nothing() {
        let mut ring = ring(&[]);
        let path = c"/etc/passwd";
        let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), path.as_ptr()).build();
        // SAFETY: the path is a constant.
        unsafe { ring.push(entry, 7) };
        ring.wait(Wait::Completion);
        assert_eq!(ring.completion(), Some(Completion { tag: 7, result: -libc::EACCES, more: false }));
    }
}
