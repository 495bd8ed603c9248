//! A process's use of the host: descriptors, private memory, CPU time, bytes of log. An attack by a guest must not
//! increase it.

use std::path::Path;

use anyhow::{Context, Result, ensure};

/// Descriptors that a device under way may add: for each queue a kick and a call, and the memory's.
const MAX_NEW_FDS: usize = 24;
/// Private memory that it may add, in KiB.
const MAX_NEW_ANON_KIB: u64 = 8 << 10;
/// Most that a process may write to stderr because of a guest, in bytes.
const MAX_LOG_LEN: u64 = 64 << 10;

/// One process at one moment.
#[derive(Debug, Clone)]
pub struct ResourceUsage {
    name: String,
    fds: usize,
    /// `RssAnon`.
    anon_kib: u64,
    /// User and system time, in ticks of 10 ms.
    cpu: u64,
    /// Bytes of its log.
    log_len: u64,
}

impl ResourceUsage {
    /// Looks at process `pid`, whose stderr is the file `log`.
    pub fn of(name: &str, pid: u32, log: &Path) -> Result<Self> {
        let read = |file: &str| {
            std::fs::read_to_string(format!("/proc/{pid}/{file}"))
                .with_context(|| format!("cannot read {file} of {name}"))
        };
        let status = read("status")?;
        let anon = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let anon_kib = anon.and_then(|text| text.trim().trim_end_matches(" kB").parse().ok());
        // After the name in parentheses: state, then numbers; utime and stime are fields 14 and 15 of the line.
        let stat = read("stat")?;
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        let cpu = [11, 12].iter().filter_map(|&field| fields.get(field)?.parse::<u64>().ok()).sum();
        Ok(Self {
            name: name.into(),
            fds: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count(),
            anon_kib: anon_kib.context("no RssAnon in status")?,
            cpu,
            log_len: std::fs::metadata(log)?.len(),
        })
    }

    /// Checks that from `self` to `later` the process has not been made to grow or to talk.
    pub fn check(&self, later: &Self) -> Result<()> {
        let name = &self.name;
        let (fds, anon, log_len) = (later.fds, later.anon_kib, later.log_len);
        ensure!(fds <= self.fds + MAX_NEW_FDS, "{name} has {fds} descriptors, had {}", self.fds);
        ensure!(
            anon <= self.anon_kib + MAX_NEW_ANON_KIB,
            "{name} has {anon} KiB of its own, had {}",
            self.anon_kib
        );
        ensure!(log_len <= MAX_LOG_LEN, "{name} has written {log_len} bytes to its log");
        Ok(())
    }

    /// Checks that from `self` to `later`, half a second or so, the process has slept.
    pub fn check_idle(&self, later: &Self) -> Result<()> {
        let ticks = later.cpu.saturating_sub(self.cpu);
        ensure!(ticks <= 10, "{} has used {ticks} ticks of CPU time with nothing to do", self.name);
        Ok(())
    }
}
