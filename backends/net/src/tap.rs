//! A tap: frames between it and guest memory without a copy, and the few things that can be set.
#![expect(unsafe_code, reason = "readv and writev on guest memory, and the tun ioctls, have no safe binding")]

use std::ffi::c_int;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::{
    IFF_NO_PI, IFF_TAP, IFF_VNET_HDR, TUNGETIFF, TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ, c_void, iovec,
};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vu_server::Segment;
use vu_server::memory::MemoryTable;

/// The kinds of ioctl that are used once the process is sealed.
pub const SEALED_IOCTLS: &[u64] = &[TUNSETOFFLOAD, TUNSETVNETHDRSZ];

/// Most pieces of memory in one `readv` or `writev` (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

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
}

/// An attached tap in non-blocking mode, with a header before each frame.
#[derive(Debug)]
pub struct Tap(File);

impl Tap {
    /// Takes a tap that somebody else has attached.
    ///
    /// # Errors
    /// [`TapError::NotATap`], [`TapError::Flags`].
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let mut request = request("");
        // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is; it lives until the call returns.
        let result = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF, &raw mut request) };
        Errno::result(result).map_err(|errno| TapError::NotATap(errno.into()))?;
        // SAFETY: TUNGETIFF has filled in the flags.
        let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let needed = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
        if flags & needed != needed {
            return Err(TapError::Flags(flags));
        }
        let nonblocking = || {
            let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
            fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))
        };
        nonblocking().map_err(|errno| TapError::NotATap(errno.into()))?;
        Ok(Self(fd.into()))
    }

    /// Attaches to the tap `name`, which is made if it is not there and that is allowed.
    ///
    /// # Errors
    /// [`TapError`].
    pub fn open(name: &str) -> Result<Self, TapError> {
        if name.is_empty() || name.len() > 15 || name.contains(|c: char| c == '/' || c.is_whitespace()) {
            return Err(TapError::Name(name.into()));
        }
        let attach = || {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open("/dev/net/tun")?;
            let request = request(name);
            // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is; it lives until the call returns.
            let result = unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &raw const request) };
            Errno::result(result)?;
            Ok(file)
        };
        let file: File = attach().map_err(|source| TapError::Attach { name: name.into(), source })?;
        Self::new(file.into())
    }

    /// Sets the length of the header before each frame (`TUNSETVNETHDRSZ`) and what the kernel may leave to
    /// the reader (`TUNSETOFFLOAD`).
    ///
    /// # Errors
    /// What the kernel says.
    pub fn configure(&self, header: usize, offloads: u32) -> io::Result<()> {
        let header = header as c_int;
        // SAFETY: TUNSETVNETHDRSZ reads one `int`, which lives until the call returns.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETVNETHDRSZ, &raw const header) };
        Errno::result(result)?;
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), TUNSETOFFLOAD, libc::c_ulong::from(offloads)) };
        Errno::result(result).map(drop).map_err(Into::into)
    }

    /// Reads one header and frame into `segments` of guest memory, and what does not fit there into `spill`.
    /// Returns the length of both together.
    ///
    /// # Errors
    /// `WouldBlock` if no frame waits; `InvalidInput` if a segment is outside the memory.
    pub fn read(
        &self,
        memory: &MemoryTable,
        segments: &[Segment],
        spill: &mut [u8],
        io: &mut Pieces,
    ) -> io::Result<usize> {
        io.fill(memory, segments, 0, u64::MAX)?;
        io.push(spill.as_mut_ptr(), spill.len())?;
        // SAFETY: `Pieces::fill` took the first addresses from `memory`, which is borrowed here and thus mapped, and
        // checked their lengths; the last is `spill`, borrowed mutably here. Guest memory is never behind a reference.
        let result = unsafe { libc::readv(self.0.as_raw_fd(), io.0.as_ptr(), io.0.len() as c_int) };
        Ok(Errno::result(result)? as usize)
    }

    /// Writes one frame: `header`, then the `limit` bytes after the first `skip` of `segments` of guest memory.
    ///
    /// # Errors
    /// `WouldBlock` if the tap is full; `InvalidInput` if a segment is outside the memory or the kernel does not
    /// understand the packet; others as the kernel says.
    pub fn write(
        &self,
        header: &[u8],
        memory: &MemoryTable,
        segments: &[Segment],
        (skip, limit): (u64, u64),
        io: &mut Pieces,
    ) -> io::Result<()> {
        io.0.clear();
        io.push(header.as_ptr().cast_mut(), header.len())?;
        io.append(memory, segments, skip, limit)?;
        // SAFETY: the first address is `header`, borrowed here, which writev only reads; `Pieces::append` took the
        // others from `memory`, which is borrowed here and thus mapped, and checked their lengths.
        let result = unsafe { libc::writev(self.0.as_raw_fd(), io.0.as_ptr(), io.0.len() as c_int) };
        Errno::result(result).map(drop).map_err(Into::into)
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Room for the pieces of one call, kept so that no frame allocates. Holds addresses only during a call.
#[derive(Debug, Default)]
pub struct Pieces(Vec<iovec>);

impl Pieces {
    fn fill(&mut self, memory: &MemoryTable, segments: &[Segment], skip: u64, limit: u64) -> io::Result<()> {
        self.0.clear();
        self.append(memory, segments, skip, limit)
    }

    fn append(
        &mut self,
        memory: &MemoryTable,
        segments: &[Segment],
        skip: u64,
        limit: u64,
    ) -> io::Result<()> {
        let outside = |_| io::Error::from(io::ErrorKind::InvalidInput);
        memory.iovecs(segments, skip, limit, &mut self.0).map_err(outside)?;
        if self.0.len() > MAX_PIECES { Err(io::ErrorKind::InvalidInput.into()) } else { Ok(()) }
    }

    fn push(&mut self, base: *mut u8, len: usize) -> io::Result<()> {
        if self.0.len() >= MAX_PIECES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.0.push(iovec { iov_base: base.cast::<c_void>(), iov_len: len });
        Ok(())
    }

    /// Whether all of `segments` is in the guest's memory, in few enough pieces.
    pub fn can_hold(&mut self, memory: &MemoryTable, segments: &[Segment], most: usize) -> bool {
        self.fill(memory, segments, 0, u64::MAX).is_ok() && self.0.len() <= most
    }
}

fn request(name: &str) -> libc::ifreq {
    let mut ifr_name = [0; libc::IFNAMSIZ];
    for (to, from) in ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let ifru_flags = (IFF_TAP | IFF_NO_PI | IFF_VNET_HDR) as i16;
    libc::ifreq { ifr_name, ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_flags } }
}
