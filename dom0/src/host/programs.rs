//! Programs of other packages that dom0 starts: passt, dnsmasq, nft.

use std::path::PathBuf;

use nix::unistd::{AccessFlags, access};

/// Where a distribution has them. Not `PATH`, which is the caller's.
const PLACES: [&str; 5] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/sbin", "/bin"];

/// A program that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{program} is not installed: install Debian's package {package}")]
pub struct NotInstalled {
    program: &'static str,
    package: &'static str,
}

/// Where a program is that comes with Debian's `package`.
///
/// # Errors
/// [`NotInstalled`].
pub fn find(program: &'static str, package: &'static str) -> Result<PathBuf, NotInstalled> {
    let mut candidates = PLACES.iter().map(|place| PathBuf::from(place).join(program));
    candidates.find(|path| access(path, AccessFlags::X_OK).is_ok()).ok_or(NotInstalled { program, package })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_missing_is_named_with_its_package() {
        assert_eq!(find("sh", "dash").unwrap(), PathBuf::from("/usr/bin/sh"));
        let error = find("no-such-program", "nothing").unwrap_err().to_string();
        assert_eq!(error, "no-such-program is not installed: install Debian's package nothing");
    }
}
