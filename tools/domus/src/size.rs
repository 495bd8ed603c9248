//! A size as the command line has it: `20G`, `512MiB`, or a number of bytes. Units are powers of 1024.

use std::fmt;
use std::str::FromStr;

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: [(&str, u32); 5] = [("", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40)];
/// What file systems can hold.
const MAX_BYTES: u64 = i64::MAX as u64;

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let refused = || format!("\"{text}\" is no size: 20G, 512MiB or a number of bytes would do");
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let unit = unit.strip_suffix("iB").or_else(|| unit.strip_suffix('B')).unwrap_or(unit);
        let (_, shift) = UNITS.into_iter().find(|(name, _)| *name == unit).ok_or_else(refused)?;
        let number: u64 = number.parse().map_err(|_| refused())?;
        let bytes = number.checked_mul(1 << shift).filter(|&bytes| bytes <= MAX_BYTES).ok_or_else(refused)?;
        if bytes < 512 {
            return Err(format!("\"{text}\" is less than a sector: 512 bytes at least"));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (unit, shift) = UNITS.into_iter().rfind(|(_, shift)| self.0 >> shift > 0).unwrap_or(UNITS[0]);
        let whole = self.0 >> shift;
        let tenths = ((self.0 - (whole << shift)) * 10) >> shift;
        match (unit, tenths) {
            ("", _) => write!(f, "{whole} bytes"),
            (_, 0) => write!(f, "{whole} {unit}iB"),
            _ => write!(f, "{whole}.{tenths} {unit}iB"),
        }
    }
}

/// Why a disk is not made shorter unless that is said.
pub fn would_lose(disk: impl std::fmt::Display, before: u64, bytes: u64) -> String {
    format!(
        "{disk} has {}: to {} it would lose what is behind its new end; --shrink if that is meant",
        Size(before),
        Size(bytes)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_powers_of_1024_and_nothing_else_is_a_size() {
        for (text, bytes) in
            [("512", 512), ("4K", 4096), ("20G", 20 << 30), ("1MiB", 1 << 20), ("2TB", 2 << 40)]
        {
            assert_eq!(text.parse(), Ok(Size(bytes)));
        }
        for text in ["", "G", "-1", "1.5G", "511", "9999999T", "1X", "1 G", "0x10"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert_eq!([512, 1536, 20 << 30].map(|n| Size(n).to_string()), ["512 bytes", "1.5 KiB", "20 GiB"]);
    }
}
