//! One queue of a tap or a macvtap, and the settings that it accepts.
#![expect(unsafe_code, reason = "the tun ioctls have no safe binding")]

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicUsize, Ordering};

use libc::{
    IFF_MULTI_QUEUE, IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNGETIFF, TUNSETIFF, TUNSETOFFLOAD, TUNSETQUEUE,
    TUNSETVNETHDRSZ,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// The kinds of ioctl that are used once the process is sealed.
pub const SEALED_IOCTLS: &[u64] = &[TUNSETOFFLOAD, TUNSETQUEUE, TUNSETVNETHDRSZ];

/// Why a descriptor is no tap to serve.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The name cannot be one of an interface.
    #[error("\"{0}\" is no interface name: 1 to 15 bytes without / and spaces")]
    Name(String),
    /// `/dev/net/tun` or the interface refused.
    #[error("cannot attach to tap {name}: is it there, free, and are you allowed to?")]
    Attach {
        /// The interface.
        name: String,
        /// What the system said.
        source: io::Error,
    },
    /// Not a tap.
    #[error("the descriptor is no attached tap")]
    NotATap(#[source] io::Error),
    /// A tap with other flags.
    #[error("the tap has flags {0:#x}: IFF_TAP, IFF_NO_PI and IFF_VNET_HDR (0x5002) are needed")]
    Flags(c_int),
    /// One queue where several are needed, or the other way round.
    #[error("the tap has flags {0:#x}: IFF_MULTI_QUEUE (0x100) is needed for several queue pairs")]
    SingleQueue(c_int),
}

/// One queue of a tap, in non-blocking mode, with a header before each frame.
#[derive(Debug)]
pub struct Tap {
    file: File,
    /// Length of the header before each frame, as far as this process has set it; 0 before.
    header: AtomicUsize,
}

impl Tap {
    /// Takes a queue that somebody else has attached to a tap; one of several, or the only one.
    ///
    /// # Errors
    /// [`TapError::NotATap`], [`TapError::Flags`], [`TapError::SingleQueue`].
    pub fn new(fd: OwnedFd, several: bool) -> Result<Self, TapError> {
        let tap = Self::of(fd.into());
        let flags = match tap.flags() {
            // The process before this one may have detached it, and then it does not say what it is.
            Err(Errno::EBADFD) if several => tap.attach(true).and_then(|()| {
                let flags = tap.flags();
                tap.attach(false)?;
                Ok(flags?)
            }),
            flags => flags.map_err(Into::into),
        };
        let flags = flags.map_err(TapError::NotATap)?;
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(TapError::Flags(flags));
        }
        if several && flags & IFF_MULTI_QUEUE == 0 {
            return Err(TapError::SingleQueue(flags));
        }
        tap.set_nonblocking().map_err(|errno| TapError::NotATap(errno.into()))?;
        Ok(tap)
    }

    /// A datagram socket in the place of a tap, for tests without one: frames pass, nothing can be set.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn in_place(socket: OwnedFd) -> io::Result<Self> {
        let tap = Self::of(socket.into());
        tap.set_nonblocking()?;
        Ok(tap)
    }

    fn of(file: File) -> Self {
        Self { file, header: AtomicUsize::new(0) }
    }

    fn set_nonblocking(&self) -> nix::Result<()> {
        let flags = OFlag::from_bits_retain(fcntl(&self.file, FcntlArg::F_GETFL)?);
        fcntl(&self.file, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).map(drop)
    }

    fn flags(&self) -> Result<c_int, Errno> {
        let mut request = request("");
        // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is; it lives until the call returns.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), TUNGETIFF, &raw mut request) };
        Errno::result(result)?;
        // SAFETY: TUNGETIFF has filled in the flags.
        Ok(c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
    }

    /// Attaches to the tap `name`, as one of several queues or as the only one. The tap is made if it is not there and
    /// that is allowed.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str, several: bool) -> Result<Self, TapError> {
        if name.is_empty() || name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(TapError::Name(name.into()));
        }
        let attach = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")?;
            let mut request = request(name);
            let several = if several { IFF_MULTI_QUEUE } else { 0 };
            request.ifr_ifru.ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | several) as i16;
            // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is; it lives until the call returns.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) };
            Errno::result(result)?;
            Ok(file)
        };
        let file: File = attach().map_err(|source| TapError::Attach { name: name.into(), source })?;
        Self::new(file.into(), several)
    }

    /// Sets the length of the header before each frame (`TUNSETVNETHDRSZ`).
    ///
    /// # Errors
    /// What the kernel says; `EBADFD` if the queue is [detached](Self::attach).
    pub fn set_header(&self, header: usize) -> io::Result<()> {
        let length = header as c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, which lives until the call returns.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETVNETHDRSZ, &raw const length) };
        let result = Errno::result(result).map(drop);
        // A detached queue has the header of the others, which are set besides.
        if matches!(result, Ok(()) | Err(Errno::EBADFD)) {
            self.expect_header(header);
        }
        result.map_err(Into::into)
    }

    /// From now on the header before each frame has this length.
    pub(crate) fn expect_header(&self, header: usize) {
        self.header.store(header, Ordering::Relaxed);
    }

    /// Whether the header before a frame may have this length, as far as is known.
    #[inline]
    pub fn takes_header(&self, header: usize) -> bool {
        let set = self.header.load(Ordering::Relaxed);
        set == 0 || set == header
    }

    /// Sets what the kernel may leave to the reader (`TUNSETOFFLOAD`): of all queues of the tap.
    ///
    /// # Errors
    /// What the kernel says: `EINVAL` for what it does not know.
    pub fn set_offloads(&self, offloads: u32) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result =
            unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
        Errno::result(result).map(drop).map_err(Into::into)
    }

    /// Attaches or detaches this queue of a multi-queue tap (`TUNSETQUEUE`): only an attached queue receives frames. A
    /// detach loses the frames that wait in the queue.
    ///
    /// # Errors
    /// What the kernel says. It is no error if the queue is in that state already.
    pub fn attach(&self, attached: bool) -> io::Result<()> {
        let mut request = request("");
        let flags = if attached { libc::IFF_ATTACH_QUEUE } else { libc::IFF_DETACH_QUEUE };
        request.ifr_ifru.ifru_flags = flags as i16;
        // SAFETY: TUNSETQUEUE reads one `ifreq`, which `request` is; it lives until the call returns.
        let result = unsafe { libc::ioctl(self.file.as_raw_fd(), TUNSETQUEUE, &raw const request) };
        match Errno::result(result) {
            Ok(_) | Err(Errno::EINVAL) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn request(name: &str) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags: 0 } }
}
