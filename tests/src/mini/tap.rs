//! A tap in a network namespace of the test's own, with an address whose kernel answers ARP and echo requests.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

use crate::link::ip;

const NAME: &str = "mini0";
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;

/// `struct ifreq` with flags, as `TUNSETIFF` takes it.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

/// Moves the calling thread into a new network namespace and makes a tap there that has `address`, with a
/// 24-bit prefix. The namespace lives as long as the thread and the tap; programs that the thread starts see it.
///
/// # Errors
/// Without root, or without /dev/net/tun.
pub fn in_own_namespace(address: Ipv4Addr) -> Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace: run the tests as root")?;
    let tap = open(NAME)?;
    ip("link set lo up")?;
    ip(&format!("addr add {address}/24 dev {NAME}"))?;
    ip(&format!("link set {NAME} up"))?;
    Ok(tap)
}

/// Makes the tap `name`, of at most 15 bytes, with virtio-net headers and non-blocking, or attaches to it. A tap that
/// this call makes is removed with its last descriptor.
///
/// # Errors
/// Without root, or without /dev/net/tun.
pub fn open(name: &str) -> Result<OwnedFd> {
    let tap = File::options()
        .read(true)
        .write(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("cannot open /dev/net/tun")?;
    attach(&tap, name).with_context(|| format!("cannot make the tap {name}"))?;
    Ok(tap.into())
}

#[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn attach(tap: &File, name: &str) -> nix::Result<()> {
    nix::ioctl_write_ptr_bad!(
        set_interface,
        nix::request_code_write!(b'T', 202, size_of::<i32>()),
        InterfaceRequest
    );
    let mut request =
        InterfaceRequest { name: [0; 16], flags: IFF_TAP | IFF_NO_PI | IFF_VNET_HDR, rest: [0; 22] };
    request.name[..15].iter_mut().zip(name.bytes()).for_each(|(to, from)| *to = from);
    // SAFETY: `request` is a live `struct ifreq` of 40 bytes, which is all that TUNSETIFF reads.
    unsafe { set_interface(tap.as_raw_fd(), &raw const request) }.map(drop)
}
