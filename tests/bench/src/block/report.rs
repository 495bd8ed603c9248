//! Medians, and how they are printed: a table to read, or one JSON object a line.

use serde_json::json;

use super::cases::{Case, Program};
use super::measure::{Rounds, Sample};
use crate::median;

/// The median of each column by itself.
fn middle(samples: &[Sample]) -> Option<Sample> {
    let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field).collect());
    (!samples.is_empty()).then(|| Sample {
        iops: of(|sample| sample.iops),
        p50_us: of(|sample| sample.p50_us),
        p99_us: of(|sample| sample.p99_us),
        cpu_us: of(|sample| sample.cpu_us),
        others: of(|sample| sample.others),
    })
}

fn medians(results: &[(Program, Rounds)]) -> Vec<(Program, Sample)> {
    let of = |rounds: &Rounds| rounds.as_ref().ok().and_then(|samples| middle(samples));
    results.iter().filter_map(|(program, rounds)| Some((*program, of(rounds)?))).collect()
}

/// The table's head.
pub fn head() -> String {
    format!(
        "{:<24} {:<20} {:>10}      {:>15} {:>9} {:>8} {:>8} {:>8} {:>7}",
        "case", "program", "rate", "from-to", "ours/this", "p50 µs", "p99 µs", "CPU µs", "others"
    )
}

/// The lines of one case: a program each.
pub fn lines(case: &Case, results: &[(Program, Rounds)]) -> Vec<String> {
    let medians = medians(results);
    let ours = medians.iter().find(|(program, _)| *program == Program::Domus).map(|(_, sample)| sample.iops);
    let mut name = case.name;
    let mut lines = Vec::new();
    for (program, rounds) in results {
        let head = format!("{name:<24} {:<20}", program.name());
        name = "";
        let samples = match rounds {
            Ok(samples) => samples,
            Err(why) => {
                lines.push(format!("{head} {}", format!("{why:#}").replace('\n', " ")));
                continue;
            }
        };
        let Some(this) = middle(samples) else { continue };
        let (rate, unit) = case.rate(this.iops);
        let lowest = samples.iter().map(|sample| sample.iops).fold(f64::INFINITY, f64::min);
        let highest = samples.iter().map(|sample| sample.iops).fold(0.0, f64::max);
        let range = format!("{:.0}-{:.0}", case.rate(lowest).0, case.rate(highest).0);
        let ratio =
            ours.filter(|_| *program != Program::Domus).map(|ours| format!("{:.2}", ours / this.iops));
        lines.push(format!(
            "{head} {rate:>10.0} {unit} {range:>15} {:>9} {:>8.1} {:>8.1} {:>8.2} {:>5.0} %",
            ratio.unwrap_or_default(),
            this.p50_us,
            this.p99_us,
            this.cpu_us,
            this.others * 100.0,
        ));
    }
    lines
}

/// The same as JSON: a figure of ours beside a peer's each.
pub fn json(case: &Case, results: &[(Program, Rounds)]) -> Vec<String> {
    let medians = medians(results);
    let Some((_, ours)) = medians.iter().find(|(program, _)| *program == Program::Domus) else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for (peer, theirs) in medians.iter().filter(|(program, _)| *program != Program::Domus) {
        let (rate, unit) = case.rate(ours.iops);
        for (figure, ours, theirs, unit) in [
            ("rate", rate, case.rate(theirs.iops).0, unit),
            ("p50 latency", ours.p50_us, theirs.p50_us, "us"),
            ("p99 latency", ours.p99_us, theirs.p99_us, "us"),
            ("CPU of a request", ours.cpu_us, theirs.cpu_us, "us"),
            ("CPU of other processes", ours.others, theirs.others, "CPUs"),
        ] {
            let ratio = (theirs > 0.0).then(|| (ours / theirs * 1000.0).round() / 1000.0);
            let line = json!({
                "bench": "block", "case": format!("{}, {figure}", case.name), "ours": ours,
                "peer": peer.name(), "peer_value": theirs, "ratio": ratio, "unit": unit,
            });
            lines.push(line.to_string());
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::super::cases::CASES;
    use super::*;

    fn rounds(rates: &[f64]) -> Rounds {
        Ok(rates.iter().map(|&iops| Sample { iops, ..Sample::default() }).collect())
    }

    #[test]
    fn the_middle_round_counts_and_ratios_are_of_medians() {
        let results = [(Program::Domus, rounds(&[1.0, 90.0, 100.0])), (Program::Fio, rounds(&[100.0, 80.0]))];
        let lines = lines(&CASES[0], &results);
        assert!(lines[0].contains(" 90 IOPS") && lines[0].contains("1-100"), "{}", lines[0]);
        assert!(lines[1].contains(" 90 IOPS") && lines[1].contains("1.00"), "{}", lines[1]);
        assert_eq!(json(&CASES[0], &results).len(), 5);
    }

    #[test]
    fn a_program_that_did_not_run_says_why_in_its_line() {
        let results = [(Program::Domus, Err(anyhow!("no such\nflag"))), (Program::Fio, rounds(&[100.0]))];
        let lines = lines(&CASES[0], &results);
        assert!(lines[0].ends_with("no such flag"), "{}", lines[0]);
        assert!(json(&CASES[0], &results).is_empty());
    }
}
