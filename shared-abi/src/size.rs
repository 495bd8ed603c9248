//! Sizes as configs and command lines write them: a whole number and a unit.

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
}
