//! passt, the network of a NIC that needs no rights on the host: a process of its own for each such NIC.
//!
//! It speaks for the guest as any program of its user's would: connections that the guest makes are sockets of this
//! process. dom0 gives it one end of a socket pair and nothing else; when the other end is closed it ends by itself. It
//! runs as the domain's own user. The guest does not reach what listens on the host's loopback addresses alone.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use shared_abi::{DeviceId, DomId, DomainName};

use crate::device::net::forward::{Forward, Transport};
use crate::host::programs::{self, NotInstalled};
use crate::process::confinement::Confinement;
use crate::process::identity;
use crate::process::{HelperProgram, Process, Supervisor, SupervisorError};

/// Within this time a passt that cannot serve ends.
pub const PASST_START: Duration = Duration::from_millis(200);

/// Why there is no passt.
#[derive(Debug, thiserror::Error)]
pub enum PasstError {
    /// It is not installed.
    #[error(transparent)]
    NotInstalled(#[from] NotInstalled),
    /// It could not be started.
    #[error(transparent)]
    Start(#[from] SupervisorError),
    /// It ended at once.
    #[error("passt {0}: see what it said, in dom0's log; are the host's ports free?")]
    Ended(String),
    /// There is no socket pair.
    #[error("cannot make a socket pair for passt")]
    Socket(#[source] std::io::Error),
}

/// Looks whether there is a passt.
///
/// # Errors
/// [`NotInstalled`].
pub fn check() -> Result<(), NotInstalled> {
    programs::find("passt", "passt").map(drop)
}

/// Starts passt for a NIC; the socket is the other end of its cable.
///
/// # Errors
/// [`PasstError`]. A port that is taken shows later: passt says so, and hangs up.
pub async fn start(
    supervisor: &dyn Supervisor,
    (domain, domid): (&DomainName, DomId),
    nic: &DeviceId,
    mtu: u16,
    forwards: &[Forward],
) -> Result<(Process, OwnedFd), PasstError> {
    let program = programs::find("passt", "passt")?;
    let (ours, theirs) = crate::host::sockets::pair().map_err(PasstError::Socket)?;
    let whom = format!("{domain}: {nic}");
    let args = arguments(mtu, forwards);
    let helper = HelperProgram {
        whom: &whom,
        program: &program,
        args: &args,
        gives: Some(theirs.as_fd()),
        domain: Some(domain),
        // It makes namespaces of its own, and drops what it has there.
        confinement: Confinement {
            uid: identity::helper_uid(domid),
            capabilities: &[],
            families: &["AF_INET", "AF_INET6", "AF_NETLINK", "AF_UNIX"],
            namespaces: (libc::CLONE_NEWUSER
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS
                | libc::CLONE_NEWPID) as u64,
            calls: &["@mount", "seccomp"],
            writes: None,
            memory: 256 << 20,
            tasks: 16,
        },
    };
    Ok((supervisor.start_helper(helper).await?, ours))
}

fn arguments(mtu: u16, forwards: &[Forward]) -> Vec<String> {
    let mtu = mtu.to_string();
    let fixed = ["--foreground", "--quiet", "--stderr", "--fd", "0", "--no-map-gw", "--mtu", &mtu];
    let mut args = fixed.map(str::to_owned).to_vec();
    for Forward { transport, address, host, guest } in forwards {
        let option = match transport {
            Transport::Tcp => "--tcp-ports",
            Transport::Udp => "--udp-ports",
        };
        let address = address.map_or(String::new(), |address| format!("{address}/"));
        args.extend([option.to_owned(), format!("{address}{host}:{guest}")]);
    }
    args
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forwards_are_told_in_passts_own_way() {
        let forwards = ["tcp:8080:80", "udp:127.0.0.1:5353:53", "tcp:[::1]:8443:443"];
        let forwards: Vec<Forward> = forwards.iter().map(|text| text.parse().unwrap()).collect();
        let args = arguments(9000, &forwards).join(" ");
        assert!(args.contains("--mtu 9000 --tcp-ports 8080:80 --udp-ports 127.0.0.1/5353:53"), "{args}");
        assert!(args.ends_with("--tcp-ports ::1/8443:443"), "{args}");
    }
}
