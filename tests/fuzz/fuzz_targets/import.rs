//! Other toolstacks' configs: whatever the text, reading it ends in a config and a list of printable lines, or in an
//! error of one line.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match domus_import::import(text) {
        Ok(found) => {
            assert!(found.lost.iter().all(|lost| !lost.what.contains(char::is_control) && lost.line > 0));
            serde_json::to_string(&found.config).expect("a config is JSON");
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error of several lines: {error}"),
    }
});
