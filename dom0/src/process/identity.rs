//! Which user the processes of a domain become.

use shared_abi::DomId;

/// The first user id of domains; a domain's own is this plus its number. Outside every range that login.defs,
/// systemd (container uids end at 1879048191) and Debian policy give out.
pub const FIRST_UID: u32 = 1_900_000_000;

/// The user that a helper program runs as that serves what has this number; none if it can have none but its starter's.
pub fn helper_uid(number: DomId) -> Option<u32> {
    nix::unistd::geteuid().is_root().then_some(FIRST_UID + number.0)
}

/// The user that the processes with this number become.
pub fn uid(domid: DomId) -> u32 {
    let own = nix::unistd::geteuid();
    if own.is_root() { FIRST_UID + domid.0 } else { own.as_raw() }
}
