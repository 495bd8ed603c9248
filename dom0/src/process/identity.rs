//! Which user the processes of a domain become.

use shared_abi::DomId;

/// The first user id of domains; a domain's own is this plus its number, which has eight digits at most. Outside every
/// range that login.defs, systemd (container uids end at 1879048191), Debian policy, and SSSD and FreeIPA with their
/// usual settings (up to 2000400000) give out, and below 2^31, where some programs take an id for negative.
///
/// A process keeps the id that it was started with. One that takes its place under this release may have another: what
/// they share are descriptors.
pub const FIRST_UID: u32 = 2_010_000_000;

/// The user that a helper program runs as that serves what has this number; none if it can have none but its starter's.
pub fn helper_uid(number: DomId) -> Option<u32> {
    nix::unistd::geteuid().is_root().then_some(FIRST_UID + number.0)
}

/// The user that the processes with this number become.
pub fn uid(domid: DomId) -> u32 {
    let own = nix::unistd::geteuid();
    if own.is_root() { FIRST_UID + domid.0 } else { own.as_raw() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_has_an_id_below_the_negative_ones_and_above_those_of_directories() {
        const { assert!(FIRST_UID > 2_000_400_000 && FIRST_UID + 99_999_999 < 1 << 31) };
    }
}
