//! Names and numbers that identify a domain, a device, a process.
//!
//! Each is checked when it is made, so that a value of these types can be put in a path, an
//! interface name or a message without another look.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name or an address is refused. The text says what would be accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Not a domain name.
    #[error("\"{0}\" is no domain name: 1 to 48 of a-z A-Z 0-9 . _ -, the first a letter or digit")]
    DomainName(String),
    /// Not a device id.
    #[error("\"{0}\" is no device id: 1 to 20 of a-z A-Z 0-9 _ -, the first a letter or digit")]
    DeviceId(String),
    /// Not a network's name.
    #[error("\"{0}\" is no network name: 1 to 15 of a-z A-Z 0-9 _ -, the first a letter or digit")]
    NetworkName(String),
    /// Not a switch's name.
    #[error("\"{0}\" is no switch name: 1 to 15 of a-z A-Z 0-9 _ -, the first a letter or digit")]
    SwitchName(String),
    /// Not a MAC address a NIC can have.
    #[error("\"{0}\" is no unicast MAC address: six hex pairs such as 52:54:00:12:34:56, the first one even")]
    MacAddress(String),
    /// Not a PCI slot a device can have.
    #[error("{0} is no PCI slot of a device: 1 to 31")]
    Slot(u8),
}

/// True for 1 to `longest` characters of a-z A-Z 0-9 and `also`, the first a letter or digit.
fn is_name(text: &str, longest: usize, also: &str) -> bool {
    let mut chars = text.chars();
    text.len() <= longest
        && chars.next().is_some_and(|c| c.is_ascii_alphanumeric())
        && chars.all(|c| c.is_ascii_alphanumeric() || also.contains(c))
}

macro_rules! checked_name {
    ($(#[$doc:meta])* $name:ident, $longest:expr, $also:expr) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                if is_name(&text, $longest, $also) { Ok(Self(text)) } else { Err(IdError::$name(text)) }
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::try_from(text.to_owned())
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

checked_name!(
    /// A domain's name: 1 to 48 of `a-z A-Z 0-9 . _ -`, the first a letter or digit. Safe as a path component.
    DomainName,
    48,
    "._-"
);
checked_name!(
    /// A device's id within its domain: 1 to 20 of `a-z A-Z 0-9 _ -`, the first a letter or digit.
    /// Twenty, since `VIRTIO_BLK_T_GET_ID` returns that many bytes (virtio 1.3 §5.2.6).
    DeviceId,
    20,
    "_-"
);

checked_name!(
    /// The name of a network that dom0 manages: 1 to 15 of `a-z A-Z 0-9 _ -`, the first a letter or digit. Its bridge
    /// has the same name, and an interface name has at most 15 bytes.
    NetworkName,
    15,
    "_-"
);
checked_name!(
    /// The name of a switch in user space: 1 to 15 of `a-z A-Z 0-9 _ -`, the first a letter or digit.
    SwitchName,
    15,
    "_-"
);

/// A domain's number: Domain-0 is 0, every domain that is started gets the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DomId(pub u32);

impl fmt::Display for DomId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A unicast MAC address, written `52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress([u8; 6]);

impl MacAddress {
    /// The address from its six bytes; the group bit of the first must be clear.
    ///
    /// # Errors
    /// [`IdError::MacAddress`] for a multicast or broadcast address.
    pub fn new(bytes: [u8; 6]) -> Result<Self, IdError> {
        let mac = Self(bytes);
        if bytes[0] & 1 == 0 { Ok(mac) } else { Err(IdError::MacAddress(mac.to_string())) }
    }

    /// The six bytes, in the order they go over the wire.
    pub fn bytes(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<String> for MacAddress {
    type Error = IdError;
    fn try_from(text: String) -> Result<Self, IdError> {
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        let pair = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            if digits { u8::from_str_radix(part, 16).ok() } else { None }
        };
        let parsed = bytes.iter_mut().all(|byte| match parts.next().and_then(pair) {
            Some(value) => {
                *byte = value;
                true
            }
            None => false,
        });
        if parsed && parts.next().is_none() { Self::new(bytes) } else { Err(IdError::MacAddress(text)) }
    }
}

impl FromStr for MacAddress {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        Self::try_from(text.to_owned())
    }
}

impl From<MacAddress> for String {
    fn from(mac: MacAddress) -> String {
        mac.to_string()
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a child process of dom0 is for. Its text names the control socket: `<role>.sock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// `domu-runner`: vCPUs and memory.
    Runner,
    /// `domus-block`: the domain's disks.
    Block,
    /// `domus-net`: the domain's NICs.
    Net,
    /// `domus-console`: the domain's console.
    Console,
    /// `domus-switch`: NICs of several domains.
    Switch,
}

impl Role {
    /// Every role.
    pub const ALL: [Role; 5] = [Role::Console, Role::Block, Role::Net, Role::Runner, Role::Switch];

    /// The roles of a domain's own processes, the runner last: the order in which they are started.
    pub fn of_a_domain() -> impl Iterator<Item = Role> {
        Self::ALL.into_iter().filter(|role| role.is_of_a_domain())
    }

    /// True if each domain has a process of its own in this role.
    fn is_of_a_domain(self) -> bool {
        match self {
            Role::Console | Role::Block | Role::Net | Role::Runner => true,
            Role::Switch => false,
        }
    }

    /// The role's name in paths and messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Runner => "runner",
            Role::Block => "block",
            Role::Net => "net",
            Role::Console => "console",
            Role::Switch => "switch",
        }
    }

    /// The file name of the program that plays this role.
    pub fn program(self) -> &'static str {
        match self {
            Role::Runner => "domu-runner",
            Role::Block => "domus-block",
            Role::Net => "domus-net",
            Role::Console => "domus-console",
            Role::Switch => "domus-switch",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A slot of PCI bus 0 that a device can have: 1 to 31. Slot 0 is the host bridge's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct Slot(u8);

impl Slot {
    /// Every slot, lowest first.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=31).map(Self)
    }

    /// The number of the slot, 1 to 31.
    pub fn number(self) -> u8 {
        self.0
    }
}

impl TryFrom<u8> for Slot {
    type Error = IdError;
    fn try_from(number: u8) -> Result<Self, IdError> {
        if (1..=31).contains(&number) { Ok(Self(number)) } else { Err(IdError::Slot(number)) }
    }
}

impl From<Slot> for u8 {
    fn from(slot: Slot) -> u8 {
        slot.0
    }
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00:{:02x}.0", self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_that_would_leave_their_directory_are_refused() {
        for bad in ["", ".", "..", "a/b", "-x", "_x", "ä", "a b", &"x".repeat(49)] {
            assert!(bad.parse::<DomainName>().is_err(), "{bad:?} was accepted");
        }
        for good in ["a", "web1", "db.example-2_x", &"x".repeat(48)] {
            assert!(good.parse::<DomainName>().is_ok(), "{good:?} was refused");
        }
        assert!("a.b".parse::<DeviceId>().is_err());
        assert!("x".repeat(21).parse::<DeviceId>().is_err());
    }

    #[test]
    fn each_role_is_listed_once_with_a_name_and_a_program_of_its_own() {
        let names: BTreeSet<_> = Role::ALL.into_iter().map(Role::as_str).collect();
        let programs: BTreeSet<_> = Role::ALL.into_iter().map(Role::program).collect();
        assert_eq!((names.len(), programs.len()), (Role::ALL.len(), Role::ALL.len()));
        let domain: Vec<_> = Role::of_a_domain().collect();
        assert_eq!(domain, [Role::Console, Role::Block, Role::Net, Role::Runner]);
    }

    #[test]
    fn mac_addresses_are_six_hex_pairs_of_a_unicast_address() {
        assert_eq!("52:54:00:12:34:Ff".parse::<MacAddress>().unwrap().to_string(), "52:54:00:12:34:ff");
        for bad in [
            "",
            "52:54:00:12:34",
            "52:54:00:12:34:56:78",
            "53:54:00:12:34:56",
            "52:54:00:12:34:+6",
            "525400123456",
        ] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad:?} was accepted");
        }
    }
}
