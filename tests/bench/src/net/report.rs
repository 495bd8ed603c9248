//! Medians, and how they are printed: a table to read, or one JSON object a line.

use serde_json::json;

use super::cases::{Case, Program};
use super::measure::{Rounds, Sample};
use crate::median;

/// The median of each column by itself.
fn middle(samples: &[Sample]) -> Option<Sample> {
    let of = |field: fn(&Sample) -> f64| median(samples.iter().map(field).collect());
    (!samples.is_empty()).then(|| Sample {
        frames: of(|sample| sample.frames),
        p50_us: of(|sample| sample.p50_us),
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
        "{:<18} {:<14} {:>9}        {:>15} {:>9} {:>8} {:>10} {:>10} {:>7}",
        "case", "program", "rate", "from-to", "ours/this", "p50 µs", "s/Mpackets", "s/GiB", "others"
    )
}

/// The lines of one case: a program each.
pub fn lines(case: &Case, results: &[(Program, Rounds)]) -> Vec<String> {
    let medians = medians(results);
    let ours = medians.iter().find(|(program, _)| *program == Program::Domus).map(|(_, sample)| *sample);
    let mut name = case.name;
    let mut lines = Vec::new();
    for (program, rounds) in results {
        let head = format!("{name:<18} {:<14}", program.name(case));
        name = "";
        let samples = match rounds {
            Ok(samples) => samples,
            Err(why) => {
                lines.push(format!("{head} {}", format!("{why:#}").replace('\n', " ")));
                continue;
            }
        };
        let Some(this) = middle(samples) else { continue };
        let (rate, unit) = case.rate(this.frames);
        let rates = samples.iter().map(|sample| case.rate(sample.frames).0);
        let range =
            format!("{:.2}-{:.2}", rates.clone().fold(f64::INFINITY, f64::min), rates.fold(0.0, f64::max));
        let others = ours.filter(|_| *program != Program::Domus);
        let ratio = others.map(|ours| format!("{:.2}", ours.frames / this.frames)).unwrap_or_default();
        let shown = |value: f64, digits| if value > 0.0 { format!("{value:.digits$}") } else { "-".into() };
        let per_gib = this.cpu_us * f64::from(1 << 30) / case.length as f64 / 1e6;
        lines.push(format!(
            "{head} {rate:>9.2} {unit:<7} {range:>15} {ratio:>9} {:>8} {:>10} {:>10} {:>5.0} %",
            shown(this.p50_us, 1),
            shown(this.cpu_us, 3),
            shown(per_gib, 3),
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
        let (rate, unit) = case.rate(ours.frames);
        for (figure, ours, theirs, unit) in [
            ("rate", rate, case.rate(theirs.frames).0, unit),
            ("p50 of an echo", ours.p50_us, theirs.p50_us, "us"),
            ("CPU of a packet", ours.cpu_us, theirs.cpu_us, "us"),
            ("CPU of other processes", ours.others, theirs.others, "CPUs"),
        ] {
            let ratio = (theirs > 0.0).then(|| (ours / theirs * 1000.0).round() / 1000.0);
            let line = json!({
                "bench": "net", "case": format!("{}, {figure}", case.name), "ours": ours,
                "peer": peer.name(case), "peer_value": theirs, "ratio": ratio, "unit": unit,
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

    #[test]
    fn the_middle_round_counts_and_a_program_that_did_not_run_says_why() {
        let rounds = |rates: &[f64]| -> Rounds {
            Ok(rates.iter().map(|&frames| Sample { frames, ..Sample::default() }).collect())
        };
        let results = [
            (Program::Domus, rounds(&[1e6, 2e6, 9e6])),
            (Program::Testpmd, Err(anyhow!("no such\nprogram"))),
            (Program::Loop, rounds(&[4e6])),
        ];
        let lines = lines(&CASES[0], &results);
        assert!(lines[0].contains("2.00 Mpps") && lines[0].contains("1.00-9.00"), "{}", lines[0]);
        assert!(lines[1].ends_with("no such program"), "{}", lines[1]);
        assert!(lines[2].contains(" 0.50 "), "{}", lines[2]);
        assert_eq!(json(&CASES[0], &results).len(), 4);
    }
}
