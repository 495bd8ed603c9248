//! Sets of the host's CPUs as `xl` writes them: `0-3,6`, `0-7,^2`, `all,^0`. Pure.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use shared_abi::limits::MAX_VCPUS;

/// CPUs that can be named: what a `cpu_set_t` holds.
const MAX_CPUS: u16 = 1024;

/// The weight of a domain that says none.
pub const USUAL_WEIGHT: u32 = 100;

/// The greatest weight of a domain: what a cgroup takes.
pub const MAX_WEIGHT: u32 = 10_000;

/// The greatest cap of a domain in percent of one CPU: all that the most vCPUs can use.
pub const MAX_CAP: u32 = 100 * MAX_VCPUS as u32;

/// A domain's part of the host's CPUs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scheduling {
    /// Where each vCPU may run, by number; those that are missing may run anywhere.
    pub pins: Vec<CpuSet>,
    /// Its weight beside other domains', 1 to 10000.
    pub weight: Option<u32>,
    /// What all its processes may use together, in percent of one CPU; 0 is no cap.
    pub cap: Option<u32>,
}

/// Some of the host's CPUs. Whether the host has them is not known here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum CpuSet {
    /// These.
    Only(BTreeSet<u16>),
    /// All that the host has but these.
    AllBut(BTreeSet<u16>),
}

impl CpuSet {
    /// All that the host has.
    pub const ALL: Self = Self::AllBut(BTreeSet::new());

    /// Those of the set that are `online`.
    ///
    /// # Errors
    /// One line: one is named that the host does not have, or none is left.
    pub fn among(&self, online: &BTreeSet<u16>) -> Result<BTreeSet<u16>, String> {
        let has = || ranges(online);
        let chosen: BTreeSet<u16> = match self {
            Self::Only(these) => match these.difference(online).next() {
                Some(cpu) => return Err(format!("there is no CPU {cpu}: this host has {}", has())),
                None => these.clone(),
            },
            Self::AllBut(these) => online.difference(these).copied().collect(),
        };
        match chosen.is_empty() {
            true => Err(format!("\"{self}\" leaves no CPU: this host has {}", has())),
            false => Ok(chosen),
        }
    }
}

impl FromStr for CpuSet {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let shown: String = text.chars().take(64).collect();
        let refused =
            || format!("{shown:?} is no set of CPUs: \"0-3\", \"0,2\", \"0-7,^4\" or \"all\" would do");
        let (mut all, mut these, mut without) = (false, BTreeSet::new(), BTreeSet::new());
        for part in text.split(',').map(str::trim) {
            let (part, set) = match part.strip_prefix('^') {
                Some(rest) => (rest, &mut without),
                None if part == "all" => {
                    all = true;
                    continue;
                }
                None => (part, &mut these),
            };
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| match text.parse::<u16>() {
                Ok(cpu) if cpu < MAX_CPUS && text.bytes().all(|b| b.is_ascii_digit()) => Ok(cpu),
                _ => Err(refused()),
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(refused());
            }
            set.extend(first..=last);
        }
        if all {
            return Ok(Self::AllBut(without));
        }
        these.retain(|cpu| !without.contains(cpu));
        if these.is_empty() { Err(refused()) } else { Ok(Self::Only(these)) }
    }
}

impl TryFrom<String> for CpuSet {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<CpuSet> for String {
    fn from(set: CpuSet) -> Self {
        set.to_string()
    }
}

impl fmt::Display for CpuSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only(these) => f.write_str(&ranges(these)),
            Self::AllBut(these) => {
                f.write_str("all")?;
                these.iter().try_for_each(|cpu| write!(f, ",^{cpu}"))
            }
        }
    }
}

/// `0-3,6`.
pub fn ranges(cpus: &BTreeSet<u16>) -> String {
    let mut parts: Vec<(u16, u16)> = Vec::new();
    for cpu in cpus {
        match parts.last_mut() {
            Some((_, last)) if *last + 1 == *cpu => *last = *cpu,
            _ => parts.push((*cpu, *cpu)),
        }
    }
    let part = |(first, last): &(u16, u16)| match first == last {
        true => first.to_string(),
        false => format!("{first}-{last}"),
    };
    parts.iter().map(part).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parsed(text: &str) -> CpuSet {
        text.parse().unwrap()
    }

    #[test]
    fn sets_are_read_as_xl_writes_them_and_nothing_else_is_a_set() {
        for (text, shown) in [
            ("0", "0"),
            ("3,0-1", "0-1,3"),
            ("0-7,^2-3", "0-1,4-7"),
            ("^0,0-1", "1"),
            ("all", "all"),
            ("all, ^1", "all,^1"),
            ("5,all", "all"),
        ] {
            assert_eq!(parsed(text).to_string(), shown, "{text}");
        }
        for text in ["", ",", "-1", "1-", "3-1", "1024", "+1", "0x1", "^0", "0,^0", "node:0", "0--1", "al"] {
            let error = text.parse::<CpuSet>().unwrap_err();
            assert!(error.contains("would do"), "{text}: {error}");
        }
    }

    #[test]
    fn a_cpu_that_the_host_does_not_have_is_named() {
        let online: BTreeSet<u16> = [0, 1, 3].into();
        assert_eq!(parsed("0,3").among(&online), Ok([0, 3].into()));
        assert_eq!(parsed("all,^9,^0").among(&online), Ok([1, 3].into()));
        assert_eq!(parsed("1-3").among(&online), Err("there is no CPU 2: this host has 0-1,3".into()));
        assert!(parsed("all,^0-3").among(&online).unwrap_err().contains("leaves no CPU"));
    }

    proptest! {
        #[test]
        fn whatever_is_read_is_written_so_that_it_is_read_again(text in "(all|[0-9^,-]){1,12}") {
            if let Ok(set) = text.parse::<CpuSet>() {
                prop_assert_eq!(set.to_string().parse(), Ok(set));
            }
        }
    }
}
