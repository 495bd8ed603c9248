//! Runs each fuzz target for a few seconds on its saved corpus: this finds what a change has just broken, not what
//! needs a night.

use anyhow::Result;

use crate::command::{command, read, run};
use crate::workspace;

/// For each target.
const SECONDS: u32 = 10;

/// Builds and runs every target of `tests/fuzz`.
pub fn short_runs() -> Result<()> {
    let root = workspace::root();
    // cargo-fuzz passes unstable flags to the compiler; the stable one takes them when it is told to.
    let fuzz = |args: &[&str]| {
        let mut command = command("cargo", ["fuzz"].iter().chain(args));
        command.current_dir(&root).env("RUSTC_BOOTSTRAP", "1");
        command
    };
    for target in read(&mut fuzz(&["list", "--fuzz-dir", "tests/fuzz"]))?.lines() {
        println!("fuzz target {target}");
        let seconds = format!("-max_total_time={SECONDS}");
        // What a short run finds goes under target/: the saved corpus is read, and grows by hand only.
        let found = workspace::target().join("fuzz").join(target);
        std::fs::create_dir_all(&found)?;
        let found = found.display().to_string();
        let mut flags = vec!["--fuzz-dir", "tests/fuzz", "--sanitizer", "none", target, &found];
        // A target whose inputs are all alike to begin with has none saved.
        let saved = root.join("tests/fuzz/corpus").join(target);
        let path = saved.display().to_string();
        flags.extend(saved.is_dir().then_some(path.as_str()));
        let limits = ["--", &seconds, "-rss_limit_mb=2048", "-timeout=10", "-verbosity=0"];
        run(&mut fuzz(&[&["run"], flags.as_slice(), &limits].concat()))?;
    }
    Ok(())
}
