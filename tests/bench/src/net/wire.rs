//! Taps in a network namespace of the bench's own, and the far side of each: a packet socket.
#![expect(unsafe_code, reason = "packet sockets and tun ioctls have no safe binding among our crates")]

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use domus_tests::link::ip;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};

/// Bytes of the header before each frame on a tap and on a packet socket.
pub const HEADER: usize = 10;

/// A frame that does not come, or go, in so long is lost.
const PATIENCE: Duration = Duration::from_secs(5);

/// Moves this thread, and what it starts from now on, into a network namespace of its own, without IPv6: an idle tap
/// shall be idle.
///
/// # Errors
/// Without root.
pub fn own_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run the bench as root")?;
    fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").ok();
    ip("link set lo up")
}

/// A tap that is up.
#[derive(Debug)]
pub struct Tap {
    /// Its name.
    pub name: &'static str,
    /// Its queue.
    pub queue: File,
}

impl Tap {
    /// Makes it, with room for `frames` frames.
    pub fn new(name: &'static str, frames: usize) -> Result<Self> {
        let queue = File::from(domus_tests::mini::tap::open(name)?);
        ip(&format!("link set {name} txqueuelen {frames}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(Self { name, queue })
    }

    /// Another descriptor of the same queue.
    pub fn clone_queue(&self) -> Result<OwnedFd> {
        Ok(self.queue.as_fd().try_clone_to_owned()?)
    }

    /// Lets the kernel hand out segments that are still to be cut (`TUNSETOFFLOAD`).
    pub fn take_segments(&self) -> Result<()> {
        let offloads = libc::TUN_F_CSUM | libc::TUN_F_TSO4;
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        let done = unsafe {
            libc::ioctl(self.queue.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(offloads))
        };
        Errno::result(done).map(drop).context("cannot set a tap's offloads")
    }
}

/// One of an interface's counters.
pub fn counter(name: &str, counter: &str) -> Result<u64> {
    // The process' own may be another namespace: this thread has moved.
    let text =
        fs::read_to_string("/proc/thread-self/net/dev").context("cannot read the interfaces' counters")?;
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
    let fields: Vec<&str> = line.with_context(|| format!("there is no {name}"))?.split_whitespace().collect();
    let at = match counter {
        "rx_packets" => 1,
        "rx_dropped" => 3,
        "tx_dropped" => 11,
        other => bail!("no counter {other}"),
    };
    Ok(fields.get(at).context("the interfaces' counters are short")?.parse()?)
}

/// A packet socket on one interface.
#[derive(Debug)]
pub struct Wire(File);

impl Wire {
    /// Sees what comes from the interface named, and sends to it past its queueing discipline. Each frame has a
    /// [`HEADER`].
    pub fn new(name: &str) -> Result<Self> {
        // SAFETY: no memory is passed.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        let raw = Errno::result(raw).context("cannot make a packet socket")?;
        // SAFETY: the kernel has just made this descriptor for us.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let on: libc::c_int = 1;
        for option in [libc::PACKET_VNET_HDR, libc::PACKET_QDISC_BYPASS] {
            let (value, size) = ((&raw const on).cast(), size_of::<libc::c_int>() as libc::socklen_t);
            // SAFETY: the option is one int, which lives here.
            let done = unsafe { libc::setsockopt(raw, libc::SOL_PACKET, option, value, size) };
            Errno::result(done).context("cannot set up a packet socket")?;
        }
        let index = nix::net::if_::if_nametoindex(name)?;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            sll_ifindex: index as libc::c_int,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is a sockaddr_ll, which lives here.
        let done = unsafe { libc::bind(raw, (&raw const address).cast(), size) };
        Errno::result(done).context("cannot bind a packet socket")?;
        Ok(Self(socket.into()))
    }

    /// Sends one frame with its header.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let start = Instant::now();
        loop {
            match self.0.write(bytes) {
                Ok(sent) => {
                    ensure!(sent == bytes.len(), "a frame was cut");
                    return Ok(());
                }
                // The tap has no room just now.
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) && start.elapsed() < PATIENCE => {
                    std::thread::yield_now();
                }
                Err(error) => return Err(error).context("cannot send a frame"),
            }
        }
    }

    /// Waits for the next frame; returns its length with its header.
    pub fn receive(&mut self, into: &mut [u8]) -> Result<usize> {
        let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        ensure!(poll(&mut ready, PollTimeout::try_from(PATIENCE)?)? == 1, "no frame came for {PATIENCE:?}");
        Ok(self.0.read(into)?)
    }
}

/// Reads frames from a tap until there is none; returns how many there were.
pub fn drain(mut tap: &File, into: &mut [u8]) -> Result<u64> {
    let mut frames = 0;
    loop {
        match tap.read(into) {
            Ok(_) => frames += 1,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(frames),
            Err(error) => return Err(error).context("cannot read a tap"),
        }
    }
}

/// Waits until a tap has a frame, for `limit` at most. False if it has none.
pub fn await_frame(tap: &File, limit: Duration) -> Result<bool> {
    let mut ready = [PollFd::new(tap.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut ready, PollTimeout::try_from(limit)?)? == 1)
}
