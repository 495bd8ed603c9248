//! The far side of a tap: a packet socket that sees and makes frames with their offloads (`PACKET_VNET_HDR`).
#![expect(unsafe_code, reason = "packet sockets and interface ioctls have no safe binding among our crates")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use domus_driver::frames::{self, ALL, PLAIN, TYPE};
use domus_net::tap::Tap;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

/// Moves this thread into a network namespace of its own. Needs root, and says so.
pub fn own_network() {
    unshare(CloneFlags::CLONE_NEWNET).expect("run this test as root: it makes a network namespace and a tap");
    // No router solicitations: an idle tap must be idle.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
}

/// A tap that is up, and its far side.
pub fn tap(name: &str) -> (OwnedFd, Wire) {
    (queue(name, false), Wire::new(name))
}

/// A tap with several queues that is up, and its far side.
pub fn taps(name: &str, queues: usize) -> (Vec<OwnedFd>, Wire) {
    ((0..queues).map(|_| queue(name, true)).collect(), Wire::new(name))
}

fn queue(name: &str, several: bool) -> OwnedFd {
    let tap = Tap::open(name, several).unwrap();
    std::os::fd::AsFd::as_fd(&tap).try_clone_to_owned().unwrap()
}

/// A packet socket on one interface.
pub struct Wire(OwnedFd);

fn check(result: i32) -> i32 {
    Errno::result(result).unwrap()
}

impl Wire {
    pub fn new(name: &str) -> Self {
        // SAFETY: no memory is passed.
        let raw = check(unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) });
        // SAFETY: the kernel has just made this descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let mut ifr_name = [0; libc::IFNAMSIZ];
        ifr_name.iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from.cast_signed());
        let flags = libc::__c_anonymous_ifr_ifru { ifru_flags: libc::IFF_UP as i16 };
        let mut request = libc::ifreq { ifr_name, ifr_ifru: flags };
        // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which lives here.
        check(unsafe { libc::ioctl(raw, libc::SIOCSIFFLAGS, &raw const request) });
        // SAFETY: SIOCGIFINDEX writes one `ifreq`, which lives here.
        check(unsafe { libc::ioctl(raw, libc::SIOCGIFINDEX, &raw mut request) });
        let on = 1;
        let size = size_of::<i32>() as libc::socklen_t;
        let (level, name) = (libc::SOL_PACKET, libc::PACKET_VNET_HDR);
        // SAFETY: the option is one `int`, which lives here.
        check(unsafe { libc::setsockopt(raw, level, name, (&raw const on).cast(), size) });
        let timeout = libc::timeval { tv_sec: 20, tv_usec: 0 };
        let size = size_of::<libc::timeval>() as libc::socklen_t;
        // SAFETY: the option is one `timeval`, which lives here.
        check(unsafe {
            libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_RCVTIMEO, (&raw const timeout).cast(), size)
        });
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
            // SAFETY: SIOCGIFINDEX has filled in the index.
            sll_ifindex: unsafe { request.ifr_ifru.ifru_ifindex },
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let size = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
        // SAFETY: the address is a `sockaddr_ll`, which lives here.
        check(unsafe { libc::bind(raw, (&raw const address).cast(), size) });
        Self(fd)
    }

    /// Sends a header and a frame towards the guest.
    pub fn send(&self, header: [u8; 10], frame: &[u8]) {
        let bytes = [&header[..], frame].concat();
        // SAFETY: the buffer lives until the call returns.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), 0) };
        assert_eq!(sent, bytes.len() as isize, "{}", io::Error::last_os_error());
    }

    /// Sends a header and a frame towards the guest, if there is room.
    pub fn offer(&self, header: [u8; 10], frame: &[u8]) {
        let bytes = [&header[..], frame].concat();
        // SAFETY: the buffer lives until the call returns.
        unsafe { libc::send(self.0.as_raw_fd(), bytes.as_ptr().cast(), bytes.len(), libc::MSG_DONTWAIT) };
    }

    /// The next header and frame from the guest that `wanted` accepts.
    pub fn receive_if(&self, wanted: impl Fn(&[u8]) -> bool) -> ([u8; 10], Vec<u8>) {
        let mut bytes = vec![0; 80_000];
        loop {
            // SAFETY: the buffer is writable over the length given.
            let count = unsafe { libc::recv(self.0.as_raw_fd(), bytes.as_mut_ptr().cast(), bytes.len(), 0) };
            assert!(count >= 10, "no frame came: {}", io::Error::last_os_error());
            let (header, frame) = bytes[..count as usize].split_at(10);
            if wanted(frame) {
                return (header.try_into().unwrap(), frame.to_vec());
            }
        }
    }

    /// The next frame of [`TYPE`].
    pub fn receive(&self) -> Vec<u8> {
        self.receive_if(is_test).1
    }
}

/// Whether a frame is of [`TYPE`].
pub fn is_test(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&TYPE.to_be_bytes()[..])
}

/// A broadcast frame of `length` bytes, all different from those of another `seed`.
pub fn frame(seed: u8, length: usize) -> Vec<u8> {
    frames::frame(ALL, [0x52, 0x54, 0, 0, 0, seed], seed, length)
}

/// A TCP segment for the first NIC, as [`frames::tcp`] makes it.
pub fn tcp(payload: usize) -> ([u8; 10], Vec<u8>) {
    frames::tcp([0x52, 0x54, 0, 0, 0, 0], [0x52, 0x54, 0, 0, 0, 1], payload)
}

/// Whether a frame is one of [`tcp`]'s.
pub fn is_tcp(frame: &[u8]) -> bool {
    frame.len() > 54 && frame[12..14] == [8, 0] && frame[23] == 6
}

/// Lets a tap stay when nobody is attached to it.
pub fn keep(tap: &OwnedFd) {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    check(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETPERSIST, 1) });
}

/// Sends frames of many flows towards the guest until it is dropped.
pub struct Feeder {
    stop: std::sync::Arc<std::sync::atomic::AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Feeder {
    /// To the interface `name` of this thread's network.
    pub fn start(name: &str) -> Self {
        use std::sync::atomic::Ordering;
        let wire = Wire::new(name);
        let stop = std::sync::Arc::<std::sync::atomic::AtomicBool>::default();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seed = 0_u8;
            while !stopped.load(Ordering::Relaxed) {
                let (_, mut frame) = tcp(200);
                (frame[35], frame[29]) = (seed, seed);
                seed = seed.wrapping_add(1);
                wire.offer(PLAIN, &frame);
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
