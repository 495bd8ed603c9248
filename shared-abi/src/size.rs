//! Sizes as configs and command lines write them: a whole number and a unit. What a unit without `iB` means depends on
//! what is measured: `1G` is 10^9 for a rate ([`amount`]) and 2^30 for a disk ([`DiskSize`]).

use std::fmt;
use std::str::FromStr;

/// The units of bytes and bits, binary and decimal; without one a number is what it says.
const UNITS: &[(&str, u64)] = &[
    ("", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("K", 1_000),
    ("M", 1_000_000),
    ("G", 1_000_000_000),
];

/// The units of memory, in MiB.
const MEMORY_UNITS: &[(&str, u64)] = &[("MiB", 1), ("GiB", 1 << 10), ("TiB", 1 << 20)];

/// The units of disks, as powers of two.
const DISK_UNITS: [(&str, u32); 5] = [("", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// What file systems can hold.
const MAX_BYTES: u64 = i64::MAX as u64;

/// An amount of bytes or bits, such as `500`, `64KiB` or `100M`; none if the text is no such amount or too large.
pub fn amount(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    multiply(number, unit, UNITS)
}

/// An amount of memory in MiB, such as `512MiB` or `2 GiB`; none if the text is no such amount or too large.
pub fn memory(text: &str) -> Option<u64> {
    let (number, unit) = split(text);
    multiply(number, unit.trim_start_matches(' '), MEMORY_UNITS)
}

/// The bytes of a disk, as the command line has them: `20G`, `512MiB`, or a number of bytes. Units are powers of 1024,
/// with or without `iB`: a disk of `1G` has 2^30 bytes, where [`amount`] reads 10^9.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSize(pub u64);

impl FromStr for DiskSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("\"{text}\" is no size: 20G, 512MiB or a number of bytes would do");
        let (number, unit) = split(text);
        let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
        let (_, shift) = DISK_UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
        let number: u64 = number.parse().map_err(|_| refused())?;
        let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes <= MAX_BYTES).ok_or_else(refused)?;
        if bytes < 512 {
            return Err(format!("\"{text}\" is less than a sector: 512 bytes at least"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for DiskSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) =
            DISK_UNITS.into_iter().rfind(|(_, shift)| self.0 >> shift > 0).unwrap_or(DISK_UNITS[0]);
        let whole = self.0 >> shift;
        let tenths = ((self.0 - (whole << shift)) * 10) >> shift;
        match (unit, tenths) {
            ("", _) => write!(f, "{whole} bytes"),
            (_, 0) => write!(f, "{whole} {unit}iB"),
            _ => write!(f, "{whole}.{tenths} {unit}iB"),
        }
    }
}

fn split(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

fn multiply(number: &str, unit: &str, units: &[(&str, u64)]) -> Option<u64> {
    let (_, factor) = units.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_amount_may_have_a_binary_or_a_decimal_unit() {
        assert_eq!(["7", "64KiB", "2G"].map(amount), [Some(7), Some(64 << 10), Some(2_000_000_000)]);
        assert_eq!(["", "KiB", "7 K", "7KB", "-7", "1.5M", "20000000000GiB"].map(amount), [None; 7]);
    }

    #[test]
    fn memory_has_a_unit_of_at_least_a_mebibyte() {
        assert_eq!(["512MiB", "2GiB", "1 TiB"].map(memory), [Some(512), Some(2048), Some(1 << 20)]);
        assert_eq!(["", "1", "1GB", "64KiB", "99999999999999999GiB"].map(memory), [None; 5]);
    }

    #[test]
    fn disk_sizes_are_read_in_powers_of_1024_and_nothing_else_is_a_size() {
        for (text, bytes) in
            [("512", 512), ("4K", 4096), ("20G", 20 << 30), ("1MiB", 1 << 20), ("2TB", 2 << 40)]
        {
            assert_eq!(text.parse(), Ok(DiskSize(bytes)));
        }
        for text in ["", "G", "-1", "1.5G", "511", "9999999T", "1X", "1 G", "0x10"] {
            assert!(text.parse::<DiskSize>().is_err(), "{text}");
        }
        assert_eq!(
            [512, 1536, 20 << 30].map(|n| DiskSize(n).to_string()),
            ["512 bytes", "1.5 KiB", "20 GiB"]
        );
    }
}
