//! Tests that `--json` prints, command by command, what `tools/domus/json.md` says: programs depend on it.
//!
//! `DOMUS_BLESS=1` writes that file anew; look at what has changed before you commit it.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::fmt::Write;
use std::path::Path;

use common::{Console, Host};
use serde_json::Value;

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/json.md");

const HEAD: &str = "\
# What `--json` prints

Each command prints one JSON value, or one a line where its section says so. Keys may be added; none is renamed or
removed within a major version. A key is `null` if it has no value in this example: a guest with a disk and a NIC, just
started. A test runs each command and compares its output with this file.
";

/// Lists that grow with what a guest and its neighbours happen to do.
const COUNTED: [&str; 3] = ["drops", "latency", "sizes"];

/// A value's shape: types in the place of values, one element in the place of many.
fn shape(value: &Value, indent: usize, text: &mut String) {
    let pad = |text: &mut String, indent: usize| text.push_str(&"  ".repeat(indent));
    match value {
        Value::Null => text.push_str("null"),
        Value::Bool(_) => text.push_str("bool"),
        Value::Number(_) => text.push_str("number"),
        Value::String(_) => text.push_str("string"),
        Value::Array(list) => match list.last() {
            None => text.push_str("[]"),
            Some(last) => {
                text.push_str("[ ");
                shape(last, indent, text);
                text.push_str(", … ]");
            }
        },
        Value::Object(map) => {
            text.push_str("{\n");
            for (key, value) in map {
                pad(text, indent + 1);
                write!(text, "\"{key}\": ").unwrap();
                match COUNTED.contains(&key.as_str()) {
                    true => text.push_str("[ { … }, … ]"),
                    false => shape(value, indent + 1, text),
                }
                text.push('\n');
            }
            pad(text, indent);
            text.push('}');
        }
    }
}

/// A command's output: one value, or one a line.
fn values(printed: &str) -> (Value, bool) {
    match serde_json::from_str(printed) {
        Ok(value) => (value, false),
        Err(_) => (serde_json::from_str(printed.lines().last().unwrap()).unwrap(), true),
    }
}

#[test]
fn every_command_prints_the_json_that_is_documented() {
    let host = Host::with_service(true);
    host.write("lan.json", r#"{ "name": "lan", "forward": "isolated", "addresses": ["10.9.0.1/24"] }"#);
    host.ok(&["network-define", "lan.json"]);
    host.guest(
        "web1",
        "console=ttyS0 mini.test=shell mini.end=poweroff",
        &format!(
            r#", "disks": [ {} ], "nets": [ {{ "id": "eth0", "bridge": "br0" }} ]"#,
            host.disk("root", 16, "")
        ),
    );
    host.write("old.cfg", "name = \"old\"\nmemory = 64\nkernel = \"/boot/vmlinuz\"\n");
    let mut document = HEAD.to_owned();
    let mut show = |command: &str| {
        let words: Vec<&str> = command.split(' ').collect();
        let printed = host.ok(&words);
        let (value, lines) = values(&printed);
        let mut text = String::new();
        shape(&value, 0, &mut text);
        let how = if lines { ", a value a line" } else { "" };
        write!(document, "\n## `domus {command}`{how}\n\n```text\n{text}\n```\n").unwrap();
    };
    show("check web1.json --json");
    show("create web1.json --json");
    Console::attach(&host, "web1").wait("mini: ready");
    for command in COMMANDS {
        show(command);
    }
    if std::env::var_os("DOMUS_BLESS").is_some() {
        std::fs::write(DOCUMENT, &document).unwrap();
    }
    let documented = std::fs::read_to_string(Path::new(DOCUMENT)).unwrap_or_default();
    assert_eq!(document, documented, "json.md says something else: see DOMUS_BLESS");
}

/// In the order in which they are possible, after the guest has been created.
const COMMANDS: &[&str] = &[
    "list --json",
    "vm-list --json",
    "domid web1 --json",
    "uptime web1 --json",
    "vcpu-list web1 --json",
    "why web1 --json",
    "block-list web1 --json",
    "block-resize web1 root 32MiB --json",
    "network-list web1 --json",
    "network-list --json",
    "backend upgrade web1 root --json",
    "pause web1 --json",
    "unpause web1 --json",
    "dump-core web1 web1.core --json",
    "disk create new.qcow2 8MiB --format qcow2 --json",
    "disk info new.qcow2 --json",
    "disk check new.qcow2 --json",
    "destroy web1 --json",
];
