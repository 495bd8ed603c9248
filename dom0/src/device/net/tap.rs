//! Taps and macvtaps: made for a domain, or an existing tap taken by name.
//!
//! A tap made here is not persistent: it is gone with the last descriptor of it, whoever dies first. A macvtap is a
//! link that stays until it is removed ([`remove_macvtaps`]).

#![expect(unsafe_code, reason = "TUNSETIFF and TUNGETIFF have no safe interface")]

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use shared_abi::DomId;

use crate::device::net::config::Nic;
use crate::host::links::{Kind, Link, Links, Port};
use crate::host::locks::describe;
use crate::value::place::{ConfigError, Place};

nix::ioctl_write_int!(
    /// Attaches the descriptor to a tap (`linux/if_tun.h`). The argument is a pointer to a `struct ifreq`.
    tun_set_iff,
    b'T',
    202
);
nix::ioctl_read!(
    /// The name and the flags of the tap that the descriptor is attached to.
    tun_get_iff,
    b'T',
    210,
    libc::c_uint
);

/// A request about the tap `name` with these flags.
fn request(name: &str, flags: libc::c_int) -> libc::ifreq {
    // SAFETY: all-zero bytes are a valid ifreq: an empty name and a union of plain numbers and null pointers.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays NUL: names are at most 15 bytes.
    for (to, from) in request.ifr_name[..15].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // 16 bits, of which IFF_TUN_EXCL is the highest.
    request.ifr_ifru.ifru_flags = flags as libc::c_short;
    request
}

/// What every queue of a NIC is attached with.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

fn flags(pairs: u16) -> libc::c_int {
    if pairs > 1 { FLAGS | libc::IFF_MULTI_QUEUE } else { FLAGS }
}

fn open(path: &str) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Every tap comes from it.
const TUN: &str = "/dev/net/tun";

fn open_tun() -> io::Result<File> {
    open(TUN).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => {
            io::Error::new(error.kind(), format!("{TUN} may not be opened by dom0"))
        }
        _ => io::Error::new(error.kind(), format!("{TUN} cannot be opened ({error}); {NO_TUN}")),
    })
}

/// The device file is made at boot, or by whoever made the container; the module is loaded when it is opened, or not.
const NO_TUN: &str = "load its module with modprobe tun, or give the container that device";

fn set_interface(tap: &File, name: &str, flags: libc::c_int) -> io::Result<()> {
    let mut request = request(name, flags);
    let address = std::ptr::from_mut(&mut request) as libc::c_ulong;
    // SAFETY: TUNSETIFF reads and writes one struct ifreq, which `request` is, for the length of the call.
    unsafe { tun_set_iff(tap.as_raw_fd(), address) }?;
    Ok(())
}

/// Opens `/dev/net/tun` once for each of `pairs` queues of the tap `name`, which is made if it does not exist. With
/// `new` it must not.
fn attach(name: &str, pairs: u16, new: bool) -> io::Result<Vec<File>> {
    let mut queues = Vec::new();
    for n in 0..pairs {
        let exclusive = if new && n == 0 { libc::IFF_TUN_EXCL } else { 0 };
        let tun = open_tun()?;
        set_interface(&tun, name, flags(pairs) | exclusive)?;
        queues.push(tun);
    }
    Ok(queues)
}

/// Takes the tap `name`, which exists, with up to `pairs` queues. One with a single queue has one whatever is asked;
/// one with many is asked for one as for many.
fn take(name: &str, pairs: u16, given: bool) -> io::Result<Vec<File>> {
    let invalid = |error: &io::Error| error.raw_os_error() == Some(libc::EINVAL);
    match attach(name, pairs, false) {
        Err(error) if invalid(&error) && pairs > 1 && !given => attach(name, 1, false),
        Err(error) if invalid(&error) && pairs == 1 => {
            let tun = open_tun()?;
            set_interface(&tun, name, FLAGS | libc::IFF_MULTI_QUEUE)?;
            Ok(vec![tun])
        }
        other => other,
    }
}

/// The process that has the tap, if it can be seen. Blocks: it looks at every process of the host.
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

/// Checks what the NIC at `place` asks of the host, without any effect on it: that the link that its config calls `key`
/// is there and of this kind. Returns its index.
///
/// # Errors
/// [`ConfigError`]: there is no such link, it is of another kind, or it is a tap that is busy.
pub async fn check(place: &Place<'_>, key: &str, name: &str, links: &Links) -> Result<u32, ConfigError> {
    let refuse = |problem: String| place.under(key).refuse(problem);
    let (wanted, cure) = match key {
        "tap" => (Some(Kind::Tun), format!("name a tap, or make it: ip tuntap add {name} mode tap")),
        "macvtap" => (None, "name a network interface of the host".to_owned()),
        _ => (Some(Kind::Bridge), format!("name a bridge, or make it: ip link add {name} type bridge")),
    };
    if key != "macvtap" && !Path::new(TUN).exists() {
        return Err(refuse(format!("\"{name}\" cannot have a tap: {TUN} does not exist; {NO_TUN}")));
    }
    let found = links.find(name).await.map_err(|e| refuse(format!("\"{name}\" cannot be looked up: {e}")))?;
    match found {
        None => Err(refuse(format!("\"{name}\" does not exist: {cure}"))),
        Some(link) if wanted.is_some_and(|wanted| link.kind != wanted) => {
            Err(refuse(format!("\"{name}\" is no {key}: {cure}")))
        }
        Some(Link { kind: Kind::Tun, carrier: true, .. }) if key == "tap" => Err(busy(place, name).await),
        Some(link) => Ok(link.index),
    }
}

async fn busy(place: &Place<'_>, name: &str) -> ConfigError {
    let own = name.to_owned();
    let who = tokio::task::spawn_blocking(move || holder(&own)).await.ok().flatten();
    let who = who.unwrap_or_else(|| "another process".into());
    let problem = format!("\"{name}\" is in use by {who}: name a free tap, or a bridge");
    place.under("tap").refuse(problem)
}

/// Makes a tap with all queues of NIC `n` and puts it on the bridge that its config calls `key`.
///
/// # Errors
/// [`ConfigError`]; nothing is left behind.
pub async fn on_bridge(
    place: &Place<'_>,
    domid: DomId,
    n: usize,
    net: &Nic,
    bridge: (&str, &str),
    links: &Links,
) -> Result<Vec<File>, ConfigError> {
    let (key, bridge) = bridge;
    let at = check(place, key, bridge, links).await?;
    let refuse = |problem: String| place.under(key).refuse(problem);
    let name = free_name(place, domid, n, key, links).await?;
    let queues = attach(&name, net.pairs, true)
        .map_err(|e| refuse(format!("cannot make the tap {name} for \"{bridge}\": {e}")))?;
    let made = links.find(&name).await.map_err(|e| refuse(format!("cannot look up {name}: {e}")))?;
    let Link { index, .. } = made.ok_or_else(|| refuse(format!("{name} was removed while it was set up")))?;
    join(place, (key, bridge, at), (&name, index), net, links).await?;
    Ok(queues)
}

/// Makes a tap a port of the bridge that the config calls `key`: both by name and index.
///
/// # Errors
/// [`ConfigError`].
pub async fn join(
    place: &Place<'_>,
    (key, bridge, at): (&str, &str, u32),
    (tap, index): (&str, u32),
    net: &Nic,
    links: &Links,
) -> Result<(), ConfigError> {
    let port = Port {
        link: index,
        bridge: at,
        mtu: net.mtu,
        only: (!net.filter.any_mac).then_some(net.mac),
        // Where dom0 has made the bridge, it knows all guests' addresses: frames to others are not for this port.
        // Another bridge may have VLANs, whose entries are an administrator's.
        floods: key != "network" || net.filter.any_mac,
        isolated: net.isolated,
    };
    links.join(port).await.map_err(|error| {
        let problem = format!("cannot put {tap} on \"{bridge}\" with mtu {}: {error}", net.mtu);
        place.under(key).refuse(problem)
    })
}

/// The interface name of NIC `n`, which nobody has.
async fn free_name(
    place: &Place<'_>,
    domid: DomId,
    n: usize,
    key: &str,
    links: &Links,
) -> Result<String, ConfigError> {
    let refuse = |problem: String| place.under(key).refuse(problem);
    let name = vif(domid, n);
    match links.find(&name).await {
        Ok(None) => Ok(name),
        Ok(Some(_)) => Err(refuse(format!("cannot get {name}: that interface exists; remove it"))),
        Err(error) => Err(refuse(format!("cannot look up {name}: {error}"))),
    }
}

/// Takes the tap `name` for the NIC at `place`: all its queues, or one where it has one.
///
/// # Errors
/// [`ConfigError`].
pub async fn existing(
    place: &Place<'_>,
    net: &Nic,
    name: &str,
    links: &Links,
) -> Result<Vec<File>, ConfigError> {
    check(place, "tap", name, links).await?;
    let refuse = |key: &str, problem: String| place.under(key).refuse(problem);
    let error = match take(name, net.pairs, net.pairs_given) {
        Ok(queues) => return Ok(queues),
        Err(error) => error,
    };
    Err(match error.raw_os_error() {
        Some(libc::EBUSY) => busy(place, name).await,
        Some(libc::EINVAL) if net.pairs > 1 => {
            let problem = format!(
                "is {}, and \"{name}\" has one queue: make it with ip tuntap add {name} mode tap multi_queue, or set it to 1",
                net.pairs
            );
            refuse("queues", problem)
        }
        Some(libc::EINVAL) => {
            refuse("tap", format!("\"{name}\" is no tap: make it with ip tuntap add {name} mode tap"))
        }
        _ => refuse(
            "tap",
            format!("\"{name}\" cannot be opened ({error}): name a tap that dom0 may use, or a bridge"),
        ),
    })
}

/// Makes a macvtap on the interface `lower` and opens all queues of NIC `n` on it.
///
/// # Errors
/// [`ConfigError`]; nothing is left behind.
pub async fn macvtap(
    place: &Place<'_>,
    domid: DomId,
    n: usize,
    net: &Nic,
    lower: &str,
    links: &Links,
) -> Result<Vec<File>, ConfigError> {
    let refuse = |problem: String| place.under("macvtap").refuse(problem);
    let at = check(place, "macvtap", lower, links).await?;
    let name = free_name(place, domid, n, "macvtap", links).await?;
    links.add_macvtap(&name, at, net.mac, net.mtu).await.map_err(|error| {
        let mtu = net.mtu;
        refuse(format!("cannot make the macvtap {name} on \"{lower}\" with mtu {mtu} ({error}): load the module macvtap, and keep to the interface's mtu"))
    })?;
    let opened = async {
        let index = links.find(&name).await?.ok_or(io::ErrorKind::NotFound)?.index;
        (0..net.pairs).map(|_| open_macvtap(&name, index, net.pairs)).collect::<io::Result<Vec<_>>>()
    };
    match opened.await {
        Ok(queues) => Ok(queues),
        Err(error) => {
            remove_macvtaps(&name, links).await;
            Err(refuse(format!("cannot open the macvtap {name} on \"{lower}\": {error}")))
        }
    }
}

/// A macvtap's device file is called by its index, which another network namespace may have used too: what is behind it
/// says its own name.
fn open_macvtap(name: &str, index: u32, pairs: u16) -> io::Result<File> {
    let tap = open(&format!("/dev/tap{index}"))?;
    set_interface(&tap, name, flags(pairs))?;
    let mut found = request("", 0);
    // SAFETY: TUNGETIFF writes one struct ifreq, which `found` is, for the length of the call; the pointer's type is
    // that of the number in the ioctl's code, which is smaller.
    unsafe { tun_get_iff(tap.as_raw_fd(), std::ptr::from_mut(&mut found).cast()) }?;
    let same = found.ifr_name.iter().map(|c| *c as u8).take_while(|c| *c != 0).eq(name.bytes());
    if same { Ok(tap) } else { Err(io::Error::other(format!("/dev/tap{index} is another interface"))) }
}

/// Removes the macvtaps whose name begins so. One that cannot be removed stays: there is nobody to tell but the log.
pub async fn remove_macvtaps(prefix: &str, links: &Links) {
    for link in links.named(prefix).await.unwrap_or_default() {
        if link.kind == Kind::Macvtap
            && let Err(error) = links.remove(link.index).await
        {
            crate::log::stderr::line(format_args!("cannot remove {}: {error}", link.name));
        }
    }
}
