//! The host's memory and CPUs.

use std::fs;

use crate::value::place::{ConfigError, Place};
use crate::value::size::MemorySize;

/// The host's RAM in bytes (`MemTotal`), or 0 if it cannot be known.
pub fn memory() -> u64 {
    meminfo("MemTotal:")
}

/// A line of `/proc/meminfo` in bytes, or 0 if it cannot be known.
fn meminfo(key: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix(key)?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or(0).saturating_mul(1024)
}

/// Less than a sixteenth of the host's RAM can be had without swapping: what can be done without is let go.
pub fn is_short() -> bool {
    meminfo("MemAvailable:") < memory() / 16
}

/// Number of CPUs that dom0 may use.
pub fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Refuses more memory than the host has, and more than it has beside the RAM of all other domains, in bytes.
///
/// # Errors
/// [`ConfigError`].
pub fn check_sum(place: &Place<'_>, bytes: u64, promised: u64) -> Result<(), ConfigError> {
    check(place, bytes)?;
    let has = memory().saturating_add(meminfo("SwapTotal:"));
    if has != 0 && promised != 0 && bytes.saturating_add(promised) > has {
        let [asked, promised, has] = [bytes, promised, has].map(|bytes| bytes >> 20);
        let problem = format!(
            "{asked}MiB and the {promised}MiB of the domains that are there are more than the {has}MiB of RAM and swap \
             of this host: less would do, or dom0 --overcommit"
        );
        return Err(place.refuse(problem));
    }
    Ok(())
}

/// Refuses more memory than the host has.
///
/// # Errors
/// [`ConfigError`].
pub fn check(place: &Place<'_>, bytes: u64) -> Result<(), ConfigError> {
    let has = memory();
    if has != 0 && bytes > has {
        let (asked, has) = (MemorySize { mib: bytes >> 20 }, has >> 20);
        let problem = format!("{asked} is more than this host has: less than {has}MiB would do");
        return Err(place.refuse(problem));
    }
    Ok(())
}
