//! Taps: made for a domain and put on a bridge, or an existing one taken by name.
//!
//! A tap made here is not persistent: it is gone with the last descriptor of it, whoever dies first.

#![expect(unsafe_code, reason = "TUNSETIFF has no safe interface")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use shared_abi::DomId;

use super::links::{Kind, Link, Links};
use super::locks::describe;
use crate::config::{ConfigError, DomainConfig, Net, NetLink};

nix::ioctl_write_int!(
    /// Attaches the descriptor to a tap (`linux/if_tun.h`). The argument is a pointer to a `struct ifreq`.
    tun_set_iff,
    b'T',
    202
);

/// Opens `/dev/net/tun` and attaches it to the tap `name`, which is made if it does not exist. With `new` it must not.
fn attach(name: &str, new: bool) -> io::Result<OwnedFd> {
    let tun =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero bytes are a valid ifreq: an empty name and a union of plain numbers and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL: names are at most 15 bytes.
    for (to, from) in request.ifr_name[..15].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    let exclusive = if new { libc::IFF_TUN_EXCL } else { 0 };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | exclusive;
    // 16 bits, of which IFF_TUN_EXCL is the highest.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    let address = std::ptr::from_mut(&mut request) as libc::c_ulong;
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, which `request` is, for the length of the call.
    unsafe { tun_set_iff(tun.as_raw_fd(), address) }?;
    Ok(tun.into())
}

/// The process that has the tap, if it can be seen.
fn holder(name: &str) -> Option<String> {
    let marker = format!("iff:\t{name}");
    for process in fs::read_dir("/proc").ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let Ok(open) = fs::read_dir(process.path().join("fdinfo")) else { continue };
        for info in open.flatten() {
            // The link is cheap to read and leaves few candidates.
            let link = process.path().join("fd").join(info.file_name());
            if fs::read_link(link).is_ok_and(|to| to.ends_with("net/tun"))
                && fs::read_to_string(info.path()).is_ok_and(|text| text.lines().any(|line| line == marker))
            {
                return Some(describe(pid));
            }
        }
    }
    None
}

/// The interface name of NIC `n`: xl's `vif<domid>.<n>`. At most 15 bytes for any number.
pub fn vif(domid: DomId, n: usize) -> String {
    format!("vif{domid}.{n}")
}

/// Checks what NIC `n` asks of the host, without any effect on it.
///
/// # Errors
/// [`ConfigError`]: no such bridge or tap, not a bridge or tap, or a tap that is busy.
pub async fn check(config: &DomainConfig, n: usize, net: &Net, links: &Links) -> Result<u32, ConfigError> {
    let refuse =
        |key: &str, problem: String| ConfigError::new(&config.file, format!("nets[{n}].{key}"), problem);
    let (key, name, wanted, cure) = match &net.link {
        NetLink::Bridge(name) => (
            "bridge",
            name,
            Kind::Bridge,
            format!("name a bridge, or make it: ip link add {name} type bridge"),
        ),
        NetLink::Tap(name) => {
            ("tap", name, Kind::Tun, format!("name a tap, or make it: ip tuntap add {name} mode tap"))
        }
    };
    let found =
        links.find(name).await.map_err(|e| refuse(key, format!("\"{name}\" cannot be looked up: {e}")))?;
    match found {
        None => Err(refuse(key, format!("\"{name}\" does not exist: {cure}"))),
        Some(link) if link.kind != wanted => Err(refuse(key, format!("\"{name}\" is no {key}: {cure}"))),
        Some(Link { kind: Kind::Tun, carrier: true, .. }) => Err(busy(config, n, name)),
        Some(link) => Ok(link.index),
    }
}

fn busy(config: &DomainConfig, n: usize, name: &str) -> ConfigError {
    let who = holder(name).unwrap_or_else(|| "another process".into());
    let problem = format!("\"{name}\" is in use by {who}: name a free tap, or a bridge");
    ConfigError::new(&config.file, format!("nets[{n}].tap"), problem)
}

/// Makes or takes the tap of NIC `n`.
///
/// # Errors
/// [`ConfigError`]; nothing is left behind.
pub async fn open(
    config: &DomainConfig,
    domid: DomId,
    n: usize,
    net: &Net,
    links: &Links,
) -> Result<File, ConfigError> {
    let at = check(config, n, net, links).await?;
    match &net.link {
        NetLink::Bridge(bridge) => {
            let refuse = |problem: String| ConfigError::new(&config.file, format!("nets[{n}].bridge"), problem);
            let name = vif(domid, n);
            let there = links.find(&name).await.map_err(|e| refuse(format!("cannot look up {name}: {e}")))?;
            if there.is_some() {
                return Err(refuse(format!("\"{bridge}\" cannot get {name}: that interface exists; remove it")));
            }
            let tap = attach(&name, true).map_err(|e| refuse(format!("cannot make the tap {name} for \"{bridge}\": {e}")))?;
            let index = links.find(&name).await.map_err(|e| refuse(format!("cannot look up {name}: {e}")))?;
            let Link { index, .. } = index.ok_or_else(|| refuse(format!("{name} was removed while it was set up")))?;
            links
                .join(index, at, net.mtu)
                .await
                .map_err(|e| refuse(format!("cannot put {name} on \"{bridge}\" with mtu {}: {e}", net.mtu)))?;
            Ok(tap.into())
        }
        NetLink::Tap(name) => attach(name, false).map(File::from).map_err(|error| match error.raw_os_error() {
            Some(libc::EBUSY) => busy(config, n, name),
            Some(libc::EINVAL) => {
                let problem = format!("\"{name}\" is no plain tap (tun, or multi_queue): make it with ip tuntap add {name} mode tap");
                ConfigError::new(&config.file, format!("nets[{n}].tap"), problem)
            }
            _ => {
                let problem = format!("\"{name}\" cannot be opened ({error}): name a tap that dom0 may use, or a bridge");
                ConfigError::new(&config.file, format!("nets[{n}].tap"), problem)
            }
        }),
    }
}
