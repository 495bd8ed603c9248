//! fio on the same file: what the kernel gives one thread with io_uring and no backend between.

use std::fs::{self, File};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domus_driver::process::Running;
use serde_json::Value;

use super::backend::pinned;
use super::cases::{Case, Storage};
use super::file::SIZE;
use super::measure::Sample;
use crate::cpu::{Clock, Used};

/// fio's command line, for the report too.
pub fn command_line(case: &Case, file: &Path, warm_up: Duration, time: Duration) -> Vec<String> {
    let words = format!(
        "fio --name=limit --filename={} --allow_file_create=0 --ioengine=io_uring --direct={} --rw={} --bs={} --iodepth={} \
         --size={SIZE} --time_based --ramp_time={}ms --runtime={}ms --norandommap --randrepeat=0 --invalidate=0 --thread \
         --lat_percentiles=1 --output-format=json",
        file.display(),
        u8::from(case.storage == Storage::Direct),
        case.access.fio(),
        case.block,
        case.depth,
        warm_up.as_millis(),
        time.as_millis(),
    );
    words.split_whitespace().map(str::to_owned).collect()
}

/// Runs it once on CPU `cpu`; its report goes through a file in `folder`.
pub fn run(
    case: &Case,
    file: &Path,
    cpu: usize,
    warm_up: Duration,
    time: Duration,
    folder: &Path,
) -> Result<Sample> {
    let (report, errors) = (folder.join("fio.json"), folder.join("fio.log"));
    let mut command = pinned(cpu);
    command.args(command_line(case, file, warm_up, time)).stdin(Stdio::null());
    command.stdout(File::create(&report)?).stderr(File::create(&errors)?);
    let mut fio = Running::start("fio", &mut command).context("cannot start fio")?;
    // It does not say when it begins: its CPU is read over the middle half of its time.
    std::thread::sleep(warm_up + time / 4);
    let clock = Clock::start(fio.pid(), std::process::id())?;
    std::thread::sleep(time / 2);
    let used = clock.stop()?;
    match fio.wait(warm_up + time + Duration::from_secs(30))? {
        Some(status) if status.success() => {}
        Some(status) => bail!("fio ended with {status}: {}", fs::read_to_string(&errors)?.trim()),
        None => bail!("fio does not end"),
    }
    // Its warnings may stand before the object.
    let text = fs::read_to_string(&report)?;
    let report: Value = serde_json::from_str(text.get(text.find('{').unwrap_or(0)..).unwrap_or_default())
        .context("fio's report is no JSON")?;
    sample(&report["jobs"][0], used).context("fio's report has no such figures")
}

fn sample(job: &Value, used: Used) -> Option<Sample> {
    let side = ["read", "write"].iter().map(|side| &job[*side]).find(|side| side["total_ios"] != 0)?;
    let iops = side["iops"].as_f64()?;
    let percentile = |name: &str| side["lat_ns"]["percentile"][name].as_f64();
    Some(Sample {
        iops,
        p50_us: percentile("50.000000")? / 1e3,
        p99_us: percentile("99.000000")? / 1e3,
        cpu_us: used.process.as_secs_f64() * 1e6 / (iops * used.time.as_secs_f64()),
        others: used.others,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const USED: Used = Used { time: Duration::from_secs(2), process: Duration::from_secs(1), others: 0.25 };

    #[test]
    fn the_side_that_did_something_is_read() {
        let percentile = json!({ "50.000000": 5000, "99.000000": 9000 });
        let write = json!({ "total_ios": 9, "iops": 1000.0, "lat_ns": { "percentile": percentile } });
        let sample = sample(&json!({ "read": { "total_ios": 0 }, "write": write }), USED).unwrap();
        assert_eq!((sample.iops, sample.p50_us, sample.p99_us), (1000.0, 5.0, 9.0));
        // 1 s of CPU for 2000 requests.
        assert_eq!((sample.cpu_us, sample.others), (500.0, 0.25));
    }

    #[test]
    fn a_report_without_figures_is_none() {
        assert!(sample(&json!({ "read": { "total_ios": 1 } }), USED).is_none());
    }
}
