//! A port of the host that leads to a guest: `tcp:8080:80`, `udp:127.0.0.1:5353:53`, `tcp:[::1]:8443:443`.

use std::fmt;
use std::net::IpAddr;
use std::num::NonZeroU16;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// What goes over a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A port of the host that leads to one of the guest's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forward {
    /// What goes over it.
    pub transport: Transport,
    /// The host's address that it is on; none for all.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub host: NonZeroU16,
    /// The guest's port.
    pub guest: NonZeroU16,
}

/// No port forward.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no port forward: tcp:HOST-PORT:GUEST-PORT would do, or udp, with the host's address before its port if it \
     is to be one alone, such as tcp:127.0.0.1:8080:80"
)]
pub struct ForwardError(String);

impl Forward {
    /// Both want the same port of the host.
    pub fn clashes(&self, other: &Self) -> bool {
        let overlap = match (self.address, other.address) {
            (Some(one), Some(other)) => one == other,
            _ => true,
        };
        self.transport == other.transport && self.host == other.host && overlap
    }
}

impl FromStr for Forward {
    type Err = ForwardError;

    fn from_str(text: &str) -> Result<Self, ForwardError> {
        let parse = || {
            let (transport, rest) = text.split_once(':')?;
            let transport = match transport {
                "tcp" => Transport::Tcp,
                "udp" => Transport::Udp,
                _ => return None,
            };
            let (rest, guest) = rest.rsplit_once(':')?;
            let (address, host) = match rest.rsplit_once(':') {
                None => (None, rest),
                Some((address, host)) => {
                    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
                    let address: IpAddr = match bare {
                        Some(six) => IpAddr::V6(six.parse().ok()?),
                        None => IpAddr::V4(address.parse().ok()?),
                    };
                    (Some(address), host)
                }
            };
            Some(Self { transport, address, host: port(host)?, guest: port(guest)? })
        };
        parse().ok_or_else(|| ForwardError(text.chars().take(64).collect()))
    }
}

/// Digits alone: `parse` would take a sign.
fn port(text: &str) -> Option<NonZeroU16> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

impl fmt::Display for Forward {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let transport = match self.transport {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
        };
        write!(f, "{transport}:")?;
        match self.address {
            None => {}
            Some(IpAddr::V4(address)) => write!(f, "{address}:")?,
            Some(IpAddr::V6(address)) => write!(f, "[{address}]:")?,
        }
        write!(f, "{}:{}", self.host, self.guest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forward_is_shown_as_it_is_written_and_nothing_else_is_one() {
        for good in ["tcp:8080:80", "udp:127.0.0.1:5353:53", "tcp:[::1]:1:65535"] {
            assert_eq!(good.parse::<Forward>().unwrap().to_string(), good);
        }
        for bad in [
            "",
            "tcp",
            "tcp:80",
            "sctp:1:2",
            "tcp:0:80",
            "tcp:80:65536",
            "tcp:::1:80:80",
            "tcp:a:80:80",
            "tcp:+1:80",
            "tcp:[127.0.0.1]:1:2",
            "tcp:1:2:3:4",
            "tcp:80:80 ",
        ] {
            let error = bad.parse::<Forward>().unwrap_err().to_string();
            assert!(error.contains("tcp:127.0.0.1:8080:80"), "{bad}: {error}");
        }
    }

    #[test]
    fn two_forwards_clash_on_one_port_of_the_host_alone() {
        let forward = |text: &str| text.parse::<Forward>().unwrap();
        assert!(forward("tcp:80:1").clashes(&forward("tcp:127.0.0.1:80:2")));
        assert!(!forward("tcp:127.0.0.2:80:1").clashes(&forward("tcp:127.0.0.1:80:2")));
        assert!(!forward("tcp:80:1").clashes(&forward("udp:80:1")));
    }
}
