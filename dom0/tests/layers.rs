//! dom0's modules are layers: an import runs downwards, or stays in its own folder.
//!
//! A class of devices imports no other class, and its `config.rs` imports values and the device's description alone.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its sources has failed")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Lowest first.
const LAYERS: [&str; 11] =
    ["value", "log", "host", "process", "network", "device", "config", "domain", "service", "api", "metrics"];

const CLASSES: [&str; 4] = ["block", "net", "console", "external"];

/// Every source file below `dir`, by its path there, without its tests.
fn sources(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && path.file_name().is_some_and(|name| name != "tests.rs")
            {
                let text = fs::read_to_string(&path).unwrap();
                let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap().to_owned();
                found.insert(path.strip_prefix(dir).unwrap().to_owned(), code);
            }
        }
    }
    found
}

/// The paths that a file's code names, as `crate::…`.
fn imports(code: &str) -> Vec<Vec<String>> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.flat_map(|line| [line, "\n"]).collect::<String>();
    let mut paths = Vec::new();
    for (at, root) in code.match_indices("crate::") {
        let path = &code[at + root.len()..];
        // `crate::{a, b::c}`: each begins a path of its own.
        let heads: Vec<&str> = match path.strip_prefix('{') {
            Some(group) => group.split(';').next().unwrap_or_default().split(',').collect(),
            None => vec![path],
        };
        for head in heads {
            let of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
            let head = head.trim_start();
            let end = head.find(|c| !of_path(c)).unwrap_or(head.len());
            paths.push(head[..end].split("::").map(str::to_owned).collect());
        }
    }
    paths
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|name| *name == module)
}

/// What is wrong with the imports of one file.
fn faults(file: &Path, code: &str) -> Vec<String> {
    let parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    let Some(own) = layer(parts[0]) else { return Vec::new() };
    let class = parts.get(1).copied().filter(|class| parts[0] == "device" && CLASSES.contains(class));
    let mut faults = Vec::new();
    for path in imports(code) {
        let Some(other) = layer(&path[0]) else { continue };
        let mut fault = |why| faults.push(format!("{}: crate::{}: {why}", file.display(), path.join("::")));
        if other > own {
            fault("upwards");
        }
        let second = path.get(1).map_or("", String::as_str);
        if let Some(class) = class {
            if path[0] == "device" && CLASSES.contains(&second) && second != class {
                fault("another class");
            }
            let is_own = path[0] == "device" && (second == class || second == "spec");
            if parts[2] == "config.rs" && path[0] != "value" && !is_own {
                fault("a config touches no host");
            }
        }
        if file.starts_with("domain/machine") && path[0] == "domain" && second == "task" {
            fault("a machine knows no task");
        }
    }
    faults
}

#[test]
fn no_import_runs_upwards() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let faults: Vec<_> = sources.iter().flat_map(|(file, code)| faults(file, code)).collect();
    assert!(faults.is_empty(), "{} imports:\n{}", faults.len(), faults.join("\n"));
}

#[test]
fn an_upward_import_is_found() {
    let upwards = faults(Path::new("host/files.rs"), "use crate::{value::size, config::DomainConfig};");
    assert_eq!(upwards, ["host/files.rs: crate::config::DomainConfig: upwards"]);
    assert_eq!(faults(Path::new("device/net/mod.rs"), "use crate::device::block::open;").len(), 1);
    assert_eq!(faults(Path::new("device/net/config.rs"), "use crate::host::links;").len(), 1);
    assert!(
        faults(Path::new("device/net/mod.rs"), "use crate::device::net::tap;\n// crate::api\n").is_empty()
    );
}
