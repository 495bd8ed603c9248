//! Rounds: each program once, then each once more, so that what the host does meanwhile falls on all alike.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::backend::{Backend, Served};
use super::cases::{Case, Program, Storage};
use super::client::Client;
use super::file::Data;
use super::{fio, guest};
use crate::cpu::{Clock, Places};

/// Before anything is counted: caches fill, clocks rise, and what was read is compared.
pub const WARM_UP: Duration = Duration::from_millis(500);

/// What one round of one program has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Requests a second.
    pub iops: f64,
    /// Median latency, µs.
    pub p50_us: f64,
    /// 99th percentile of the latency, µs.
    pub p99_us: f64,
    /// CPU time of the backend for each request, µs; fio's own, which is client and engine at once. The kernel's
    /// threads that work for a process count as its own.
    pub cpu_us: f64,
    /// What other processes used meanwhile, in shares of one CPU.
    pub others: f64,
}

/// The rounds of one program, or why there are none.
pub type Rounds = Result<Vec<Sample>>;

/// How a case is measured.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The folder with Domus' programs.
    pub bin: &'a Path,
    /// A folder for sockets.
    pub folder: &'a Path,
    /// A folder on a file system with a disk below.
    pub disk: &'a Path,
    /// Who runs where.
    pub places: Places,
    /// Whether [`Program::Guest`] is measured too.
    pub guest: bool,
    /// How often.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
}

/// The folder of [`Storage::Tmpfs`].
pub const TMPFS: &str = "/dev/shm";

impl Plan<'_> {
    /// Measures every program that does the case.
    pub fn case(&self, case: &Case) -> Result<Vec<(Program, Rounds)>> {
        let data = match case.storage {
            Storage::Direct => Some(Data::new(self.disk, false)?),
            Storage::PageCache => Some(Data::new(self.disk, true)?),
            Storage::Tmpfs => Some(Data::new(Path::new(TMPFS), true)?),
            Storage::Null => None,
        };
        let path = data.as_ref().map(Data::path);
        let programs = Program::ALL.into_iter().filter(|program| program.does(case));
        let programs = programs.filter(|&program| self.guest || program != Program::Guest);
        let mut all: Vec<(Program, Rounds)> = programs.map(|program| (program, Ok(Vec::new()))).collect();
        for _ in 0..self.rounds {
            for (program, rounds) in &mut all {
                // What has failed once is not tried again.
                let Ok(samples) = rounds else { continue };
                match self.round(*program, case, path.as_deref()) {
                    Ok(sample) => samples.push(sample),
                    Err(why) => *rounds = Err(why),
                }
            }
        }
        Ok(all)
    }

    fn round(&self, program: Program, case: &Case, file: Option<&Path>) -> Result<Sample> {
        if program == Program::Guest {
            let file = file.context("a guest needs a file")?;
            return guest::run(case, self.bin, file, self.places, self.time);
        }
        if program == Program::Fio {
            let file = file.context("fio needs a file")?;
            return fio::run(case, file, self.places.backend, WARM_UP, self.time, self.folder);
        }
        let served = Served { storage: case.storage, file };
        let backend = Backend::start(program, self.bin, served, self.places.backend, self.folder)?;
        let mut client = Client::connect(backend.socket(), case)?;
        client.run(WARM_UP, true)?;
        let clock = Clock::start(backend.pid(), std::process::id())?;
        let run = client.run(self.time, false)?;
        let used = clock.stop()?;
        let micros = |quantile| run.latency.value_at_quantile(quantile) as f64 / 1e3;
        Ok(Sample {
            iops: run.requests as f64 / run.time.as_secs_f64(),
            p50_us: micros(0.5),
            p99_us: micros(0.99),
            cpu_us: used.process.as_secs_f64() * 1e6 / run.requests as f64,
            others: used.others,
        })
    }
}
