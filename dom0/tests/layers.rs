//! dom0's modules are layers: an import runs downwards, or stays in its own folder.
//!
//! A class of devices imports no other class, and its `config.rs` imports values and the device's description alone.
//! What a role means stands in `process` and `device`, and what a config says of devices is read by their classes: a
//! new class touches nothing else.

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

/// The paths that a file's code names, as `crate::…`; each of a group is one.
fn imports(code: &str) -> Vec<Vec<String>> {
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.flat_map(|line| [line, "\n"]).collect::<String>();
    let mut paths = Vec::new();
    for (at, root) in code.match_indices("crate::") {
        follow(&code[at + root.len()..], &[], &mut paths);
    }
    paths
}

/// Follows a path, or a group of them, behind `prefix`; returns what comes after it.
fn follow<'a>(code: &'a str, prefix: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let code = code.trim_start();
    if let Some(mut group) = code.strip_prefix('{') {
        loop {
            // What may be left of it is `as NAME`.
            group = follow(group, prefix, paths).trim_start_matches(|c| c != ',' && c != '}');
            match group.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => group = more,
                more => return more.unwrap_or(group).trim_start().trim_start_matches('}'),
            }
        }
    }
    let end = code.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(code.len());
    let path = [prefix, &[code[..end].to_owned()]].concat();
    match code[end..].strip_prefix("::") {
        Some(more) if more.starts_with(|c: char| c.is_alphabetic() || "{_".contains(c)) => {
            follow(more, &path, paths)
        }
        _ => {
            paths.push(path);
            &code[end..]
        }
    }
}

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|name| *name == module)
}

/// What is wrong with the imports of one file.
fn faults(file: &Path, code: &str) -> Vec<String> {
    let parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    if parts.len() == 1 {
        // What ties the layers together: main.rs, lib.rs.
        return Vec::new();
    }
    let Some(own) = layer(parts[0]) else { return vec![format!("{}: a folder of no layer", file.display())] };
    // A class is a folder of `device`.
    let class = parts.get(1).copied().filter(|_| parts[0] == "device" && parts.len() > 2);
    let mut faults = Vec::new();
    if class.is_some_and(|class| !CLASSES.contains(&class)) {
        faults.push(format!("{}: a class that is not in CLASSES", file.display()));
    }
    if code.contains("super::super::") {
        faults.push(format!("{}: super::super hides what it imports", file.display()));
    }
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

/// Which knowledge of roles and of devices in a config is where it does not belong.
fn leaks(file: &Path, code: &str) -> Vec<String> {
    let layer = file.iter().next().and_then(|part| part.to_str()).unwrap_or_default();
    let mut leaks = Vec::new();
    for (n, line) in (1..).zip(code.lines()).filter(|(_, line)| !line.trim_start().starts_with("//")) {
        let mut leak = |why| leaks.push(format!("{}:{n}: {why}: {}", file.display(), line.trim()));
        // The runner is no device's.
        let of_backend = |pattern: &str| {
            ["Block", "Net", "Console", "Switch", "*"]
                .iter()
                .any(|role| pattern.contains(&format!("Role::{role}")))
        };
        let is_pattern = line.trim_start().starts_with('|')
            || line.contains("Role::") && (line.trim_end().ends_with('|') || line.contains(" | Role::"));
        let arm = line.split_once("=>").map(|(pattern, _)| pattern);
        let leaks_role =
            arm.is_some_and(of_backend) || is_pattern && of_backend(line) || line.contains("use Role::*");
        if !["process", "device"].contains(&layer) && leaks_role {
            leak("a match over roles");
        }
        let lists = ["disks", "disk_limits", "nics", "external", "console_log"];
        let of_config = |list: &&str| line.contains(&format!("config.devices.{list}"));
        if !["config", "device"].contains(&layer) && lists.iter().any(of_config) {
            leak("a device list of a config");
        }
    }
    leaks
}

#[test]
fn what_a_role_and_a_device_of_a_config_mean_is_known_in_their_layers_alone() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let found: Vec<_> = sources.iter().flat_map(|(file, code)| leaks(file, code)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
    let arms = "match role {\n    Role::Block | Role::Net => 1,\n    _ => 2,\n}";
    assert_eq!(leaks_in("domain/task.rs", arms), 1);
    assert_eq!(leaks_in("process/direct.rs", arms), 0);
    assert_eq!(
        leaks_in("domain/task.rs", "    Some(Role::Block) if busy => 1,\n    (_, Role::Net) => 2,"),
        2
    );
    assert_eq!(leaks_in("domain/task.rs", "if role == Role::Runner || for_all(&config.devices.nics) {"), 1);
}

fn leaks_in(file: &str, code: &str) -> usize {
    leaks(Path::new(file), code).len()
}

#[test]
fn no_import_runs_upwards() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let faults: Vec<_> = sources.iter().flat_map(|(file, code)| faults(file, code)).collect();
    assert!(faults.is_empty(), "{} imports:\n{}", faults.len(), faults.join("\n"));
}

/// The files that import each other in a circle, or lead to one.
fn circles(sources: &BTreeMap<PathBuf, String>) -> Vec<String> {
    let module = |file: &Path| {
        let path =
            file.with_extension("").iter().map(|part| part.to_string_lossy()).collect::<Vec<_>>().join("::");
        path.strip_suffix("::mod").map(str::to_owned).unwrap_or(path)
    };
    let modules: BTreeMap<String, &String> =
        sources.iter().map(|(file, code)| (module(file), code)).collect();
    // The longest part of a path that is a file: what follows is in it.
    let file_of = |path: &[String]| {
        (1..=path.len()).rev().map(|n| path[..n].join("::")).find(|module| modules.contains_key(module))
    };
    let mut open: BTreeMap<&String, Vec<String>> = modules
        .iter()
        .map(|(own, code)| {
            let others = imports(code).iter().filter_map(|path| file_of(path)).collect::<Vec<_>>();
            (own, others.into_iter().filter(|other| other != own).collect())
        })
        .collect();
    loop {
        let done: Vec<_> = open
            .iter()
            .filter(|(_, others)| !others.iter().any(|other| open.contains_key(other)))
            .map(|(own, _)| *own)
            .collect();
        if done.is_empty() {
            return open.into_keys().cloned().collect();
        }
        open.retain(|own, _| !done.contains(own));
    }
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    let found = circles(&sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")));
    assert!(found.is_empty(), "{} files are in circles, or lead to one:\n{}", found.len(), found.join("\n"));
    let source = |file: &str, code: &str| (PathBuf::from(file), code.to_owned());
    let circle = [source("a/mod.rs", "use crate::a::b::B;"), source("a/b.rs", "use crate::a::A;")];
    assert_eq!(circles(&circle.into()), ["a", "a::b"]);
}

#[test]
fn an_upward_import_is_found() {
    let upwards = faults(Path::new("host/files.rs"), "use crate::{value::size, config::DomainConfig};");
    assert_eq!(upwards, ["host/files.rs: crate::config::DomainConfig: upwards"]);
    assert_eq!(faults(Path::new("device/net/mod.rs"), "use crate::device::block::open;").len(), 1);
    assert_eq!(faults(Path::new("util/mod.rs"), "").len(), 1);
    assert_eq!(faults(Path::new("device/rng/mod.rs"), "").len(), 1);
    assert_eq!(faults(Path::new("device/net/config.rs"), "use crate::host::links;").len(), 1);
    assert!(
        faults(Path::new("device/net/mod.rs"), "use crate::device::net::tap;\n// crate::api\n").is_empty()
    );
}
