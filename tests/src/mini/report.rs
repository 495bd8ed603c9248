//! The report of the mini guest: output lines that begin with `mini: `, as `mini-guest` documents them, and all other
//! lines.

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The guest is up; the rest of the line.
    Hello(String),
    /// A shell waits for a list of checks.
    Ready,
    /// A check begins.
    Begin(String),
    /// Something measured or seen: the check, and `key=value` words.
    Value(String),
    /// Why the check that runs is about to fail.
    Reason(String),
    /// The check held.
    Ok(String),
    /// The check did not hold.
    Fail(String),
    /// All checks are over.
    Done {
        /// How many held.
        passed: u32,
        /// How many did not.
        failed: u32,
    },
    /// The guest ends now, in this way.
    End(String),
    /// The guest panicked or faulted.
    Died(String),
    /// Anything else.
    Other(String),
}

impl Line {
    /// Reads one line, with or without its line ending.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_end();
        let Some(said) = line.strip_prefix("mini: ") else { return Self::Other(line.into()) };
        let (word, rest) = said.split_once(' ').unwrap_or((said, ""));
        match word {
            "hello" => Self::Hello(rest.into()),
            "ready" => Self::Ready,
            "begin" => Self::Begin(rest.into()),
            "value" => Self::Value(rest.into()),
            "reason" => Self::Reason(rest.into()),
            "ok" => Self::Ok(rest.into()),
            "fail" => Self::Fail(rest.into()),
            "end" => Self::End(rest.into()),
            "panic" | "fault" => Self::Died(said.into()),
            "done" => match (number(rest, "passed"), number(rest, "failed")) {
                (Some(passed), Some(failed)) => Self::Done { passed, failed },
                _ => Self::Other(line.into()),
            },
            _ => Self::Other(line.into()),
        }
    }
}

/// The number of the word `key=…` in a `value` line.
pub fn number<N: std::str::FromStr>(words: &str, key: &str) -> Option<N> {
    let value = words.split(' ').filter_map(|word| word.split_once('=')).find(|(name, _)| *name == key)?.1;
    value.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_guest_are_told_from_others() {
        assert_eq!(Line::parse("mini: ok blk-id\r\n"), Line::Ok("blk-id".into()));
        assert_eq!(Line::parse("mini: done passed=3 failed=1"), Line::Done { passed: 3, failed: 1 });
        assert_eq!(Line::parse("mini: done passed=3"), Line::Other("mini: done passed=3".into()));
        assert_eq!(Line::parse("mini: fault vector=6 x"), Line::Died("fault vector=6 x".into()));
        assert_eq!(Line::parse("BIOS"), Line::Other("BIOS".into()));
    }

    #[test]
    fn numbers_of_a_value_line_are_found_by_name() {
        assert_eq!(number("blk-iops depth=32 iops=1234", "iops"), Some(1234));
        assert_eq!(number::<u32>("blk-iops depth=x", "depth"), None);
    }
}
