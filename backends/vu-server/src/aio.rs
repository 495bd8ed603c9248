//! Signals for eventfds that never block, whatever the flags and the count of the eventfd.
//!
//! `write` to an eventfd waits while the count is full, unless `O_NONBLOCK` is set; but that flag belongs to the open
//! file, which a peer shares, so there is no moment at which it is known. The kernel's own signals (`eventfd_signal`)
//! wait for nothing: a full count stays full. The oldest way to have one is a read of Linux's asynchronous I/O with
//! `IOCB_FLAG_RESFD`, which signals an eventfd when it is done. The read is one of no bytes, done before the system
//! call returns. The kernel refuses what is no eventfd.
//!
//! A thread for each peer would not block the others either, but every call would wait for a thread to wake up.
//! io_uring looks at the flag before it writes, and the peer can change it in between.
#![expect(unsafe_code, reason = "io_setup, io_submit and io_getevents have no binding among our crates")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use domus_startup::memfd;
use domus_startup::sandbox::Allow;
use nix::errno::Errno;

/// Most results that are not taken yet. Each is one signal, and is taken when there is no room for another.
const RESULTS: usize = 64;

/// `IOCB_CMD_PREAD` and `IOCB_FLAG_RESFD` of `linux/aio_abi.h`.
const PREAD: u16 = 0;
const RESFD: u32 = 1;

/// The system calls of [`Aio::signal`].
pub const CALLS: &[Allow] =
    &[Allow::Argument(libc::SYS_io_submit, 1, 1), Allow::Argument(libc::SYS_io_getevents, 1, 0)];

/// `struct iocb` of a little-endian machine.
#[derive(Debug, Default)]
#[repr(C)]
struct Operation {
    data: u64,
    key: u32,
    rw_flags: u32,
    code: u16,
    priority: u16,
    fd: u32,
    buffer: u64,
    bytes: u64,
    offset: u64,
    reserved: u64,
    flags: u32,
    eventfd: u32,
}

/// `struct io_event`.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
struct Outcome {
    data: u64,
    operation: u64,
    results: [i64; 2],
}

const _: () = assert!(size_of::<Operation>() == 64 && size_of::<Outcome>() == 32);

/// A context of asynchronous I/O. It lasts as long as the process: a sealed one may not end it.
#[derive(Debug)]
pub struct Aio {
    context: libc::c_ulong,
    /// What is read from.
    empty: OwnedFd,
}

impl Aio {
    /// A context. To be made before the seal.
    ///
    /// # Errors
    /// `ENOSYS` by a kernel without `CONFIG_AIO`, `EAGAIN` if the host has no more than `fs.aio-max-nr` allows.
    pub fn new() -> io::Result<Self> {
        let empty = memfd::sealed("empty", 0)?.into();
        let mut context: libc::c_ulong = 0;
        // SAFETY: io_setup writes one `aio_context_t`, a C `unsigned long`, which `context` is.
        let result = unsafe { libc::syscall(libc::SYS_io_setup, RESULTS, &raw mut context) };
        Errno::result(result)?;
        Ok(Self { context, empty })
    }

    /// Adds one to an eventfd. A full one stays as it is, and so does what is no eventfd.
    pub fn signal(&self, eventfd: &File) {
        // No descriptor is negative.
        let [fd, eventfd] = [self.empty.as_raw_fd(), eventfd.as_raw_fd()].map(i32::cast_unsigned);
        let mut operation = Operation { code: PREAD, fd, flags: RESFD, eventfd, ..Operation::default() };
        // Another thread may take the room that was made, but it has one operation at a time.
        while self.submit(&mut operation) == Err(Errno::EAGAIN) {
            self.take_results();
        }
    }

    fn submit(&self, operation: &mut Operation) -> Result<(), Errno> {
        let list = [&raw mut *operation];
        // SAFETY: `list` has one pointer to an `iocb`, which the kernel reads, and of which it writes the key, before
        // the call returns. The operation reads no bytes, so its buffer is nowhere.
        let result = unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1_usize, list.as_ptr()) };
        Errno::result(result).map(drop)
    }

    /// Makes room.
    fn take_results(&self) {
        let mut results = [Outcome::default(); RESULTS];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let (least, most) = (0_usize, results.len());
        let into = results.as_mut_ptr();
        // SAFETY: the kernel writes at most `most` events, for which `results` has room, and reads one `timespec`,
        // which lives until the call returns.
        unsafe { libc::syscall(libc::SYS_io_getevents, self.context, least, most, into, &raw const now) };
    }
}
