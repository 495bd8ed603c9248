//! Reports a scenario in one line: `STEP name` at its begin, `PASS name` or `FAIL name: reason` at its end.

use std::time::Instant;

use anyhow::Result;

/// What has been counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Scenarios that held.
    pub passed: u32,
    /// Scenarios that did not.
    pub failed: u32,
}

impl Tally {
    /// Runs one scenario and prints how it went. Its error becomes one line.
    pub fn run(&mut self, name: &str, scenario: impl FnOnce() -> Result<()>) {
        println!("{}{name}", crate::lab_vm::STEP);
        let start = Instant::now();
        match scenario() {
            Ok(()) => {
                self.passed += 1;
                println!("PASS {name} ({:.1} s)", start.elapsed().as_secs_f32());
            }
            Err(error) => {
                self.failed += 1;
                println!("FAIL {name}: {}", format!("{error:#}").replace(['\n', '\r'], " "));
            }
        }
    }

    /// Takes over the line of a scenario that another process ran; other lines are not counted.
    pub fn count(&mut self, line: &str) {
        self.passed += u32::from(line.starts_with("PASS "));
        self.failed += u32::from(line.starts_with("FAIL "));
    }

    /// Adds another count.
    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} passed, {} failed", self.passed, self.failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_pass_and_fail_lines_are_counted() {
        let mut tally = Tally::default();
        for line in ["PASS a (1.0 s)", "FAIL b: why", "STEP c", "a PASS in the middle", "PASSED"] {
            tally.count(line);
        }
        assert_eq!(tally.to_string(), "1 passed, 1 failed");
    }
}
