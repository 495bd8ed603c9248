//! Domain configs: whatever the text, reading it ends in a config or in an error of one line.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = dom0::config::parse(Path::new("fuzz.json"), Path::new("/nonexistent"), text) {
        let line = error.to_string();
        assert!(!line.contains('\n'), "an error of several lines: {line:?}");
        assert!(line.contains("fuzz.json"), "an error that does not name its file: {line}");
    }
});
