//! The URI of an NBD server: `nbd://HOST[:PORT][/EXPORT]`, `nbd+unix:///[EXPORT]?socket=PATH`.
//!
//! The form is that of the NBD project's `doc/uri.md`, without TLS and user names.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The port that IANA has given NBD.
const PORT: u16 = 10809;

/// Longest name of an export in bytes (NBD protocol, "String values").
const MAX_EXPORT: usize = 4096;

/// A server and one of its exports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NbdUri {
    /// Where to connect to.
    pub server: NbdServer,
    /// The export's name; empty for the default one.
    pub export: String,
    text: String,
}

/// Where an NBD server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NbdServer {
    /// On TCP.
    Tcp {
        /// A name or an address; IPv6 without its brackets.
        host: String,
        /// The port.
        port: u16,
    },
    /// On a Unix stream socket.
    Unix(PathBuf),
}

/// Not such a URI. The text says what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is no NBD URI: nbd://HOST[:PORT][/EXPORT] or nbd+unix:///[EXPORT]?socket=/PATH would do")]
pub struct NbdUriError(String);

/// True for text that is meant as an NBD URI.
pub fn is_nbd(text: &str) -> bool {
    text.starts_with("nbd:") || text.starts_with("nbd+")
}

impl fmt::Display for NbdUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl TryFrom<String> for NbdUri {
    type Error = NbdUriError;
    fn try_from(text: String) -> Result<Self, NbdUriError> {
        text.parse()
    }
}

impl From<NbdUri> for String {
    fn from(uri: NbdUri) -> String {
        uri.text
    }
}

impl FromStr for NbdUri {
    type Err = NbdUriError;

    fn from_str(text: &str) -> Result<Self, NbdUriError> {
        let parsed = if let Some(rest) = text.strip_prefix("nbd://") {
            tcp(rest)
        } else {
            text.strip_prefix("nbd+unix:///").and_then(unix)
        };
        let (server, export) = parsed
            .filter(|(_, export)| export.len() <= MAX_EXPORT)
            .ok_or_else(|| NbdUriError(text.chars().take(256).collect()))?;
        Ok(Self { server, export, text: text.into() })
    }
}

fn tcp(rest: &str) -> Option<(NbdServer, String)> {
    let (authority, export) = rest.split_once('/').unwrap_or((rest, ""));
    if export.contains('?') || authority.contains('@') {
        return None;
    }
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, port) = v6.split_once(']')?;
            (host, if port.is_empty() { None } else { Some(port.strip_prefix(':')?) })
        }
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    let port = port.map_or(Some(PORT), |port| port.parse().ok())?;
    let good = |c: char| c.is_ascii_alphanumeric() || ".-_:%".contains(c);
    if host.is_empty() || host.len() > 253 || !host.chars().all(good) || port == 0 {
        return None;
    }
    Some((NbdServer::Tcp { host: host.into(), port }, decode(export)?))
}

fn unix(rest: &str) -> Option<(NbdServer, String)> {
    let (export, query) = rest.split_once('?')?;
    let path = decode(query.strip_prefix("socket=").filter(|path| !path.contains('&'))?)?;
    (path.starts_with('/') && !path.contains('\0'))
        .then_some(())
        .and_then(|()| Some((NbdServer::Unix(path.into()), decode(export)?)))
}

/// Undoes percent encoding (RFC 3986 §2.1).
fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                // Two hexadecimal digits are at most 255.
                (digit()? * 16 + digit()?) as u8
            }
            other => other,
        });
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Option<(NbdServer, String)> {
        text.parse().ok().map(|uri: NbdUri| (uri.server, uri.export))
    }

    fn tcp(host: &str, port: u16) -> NbdServer {
        NbdServer::Tcp { host: host.into(), port }
    }

    #[test]
    fn servers_ports_sockets_and_exports_are_told_apart() {
        assert_eq!(parsed("nbd://disk.example"), Some((tcp("disk.example", 10809), String::new())));
        assert_eq!(parsed("nbd://10.0.0.1:7000/a/b"), Some((tcp("10.0.0.1", 7000), "a/b".into())));
        assert_eq!(parsed("nbd://[::1]:7000/%C3%A9"), Some((tcp("::1", 7000), "é".into())));
        assert_eq!(parsed("nbd://[::1]"), Some((tcp("::1", 10809), String::new())));
        let socket = NbdServer::Unix("/run/a b".into());
        assert_eq!(parsed("nbd+unix:///x?socket=/run/a%20b"), Some((socket.clone(), "x".into())));
        assert_eq!(parsed("nbd+unix:///?socket=/run/a b"), Some((socket, String::new())));
    }

    #[test]
    fn what_is_no_such_uri_is_refused_with_what_would_do() {
        for text in [
            "nbd:",
            "nbd://",
            "nbd://:7000",
            "nbd://a:b",
            "nbd://a:0",
            "nbd://a:99999",
            "nbd://u@a",
            "nbd://[::1",
            "nbd://[::1]7000",
            "nbd://a/x?tls=1",
            "nbd://a/%",
            "nbd://a/%zz",
            "nbd://a/%00",
            "nbd://a/%ff",
            "nbds://a",
            "nbd+unix://a?socket=/x",
            "nbd+unix:///a",
            "nbd+unix:///a?socket=x",
            "nbd+unix:///a?socket=/x&socket=/y",
        ] {
            let error = text.parse::<NbdUri>().unwrap_err().to_string();
            assert!(error.contains("nbd+unix:///"), "{text}");
        }
        assert!(is_nbd("nbd+unix:///x") && !is_nbd("/srv/nbd.img"));
    }
}
