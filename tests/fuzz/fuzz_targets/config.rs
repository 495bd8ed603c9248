//! Configs of domains and definitions of networks: whatever the text, reading it ends in a value or in an error of one
//! line. The same text as what dnsmasq has written of its leases, in which guests have words of their own.
#![no_main]

use std::path::Path;

use dom0::value::place::ConfigError;
use libfuzzer_sys::fuzz_target;

fn is_one_line(error: &ConfigError) {
    let line = error.to_string();
    assert!(!line.contains('\n'), "an error of several lines: {line:?}");
    assert!(line.contains("fuzz.json"), "an error that does not name its file: {line}");
}

fuzz_target!(|text: &str| {
    let file = Path::new("fuzz.json");
    if let Err(error) = dom0::config::parse(file, Path::new("/nonexistent"), text) {
        is_one_line(&error);
    }
    if let Err(error) = dom0::network::managed::parse(file, text) {
        is_one_line(&error);
    }
    for lease in dom0::network::managed::leases(text) {
        assert!(lease.name.is_none_or(|name| !name.contains(char::is_control)));
    }
});
