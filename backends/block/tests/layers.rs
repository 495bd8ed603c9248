//! The order of the crate's modules: each imports from layers below its own only, so that none is part of a circle.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its sources fails")]

use std::fs;
use std::path::Path;

/// From the lowest layer to the highest. Modules of one layer do not import from each other.
const LAYERS: &[&[&str]] = &[
    &["request", "statistics", "throttle", "worker_command", "uring", "rates"],
    &["faults", "in_flight", "storage"],
    &["disk"],
    &["device", "requests"],
    &["worker", "async_io"],
    &["raw", "null_disk", "qcow2", "nbd"],
    &["open", "syscalls"],
    &["threads"],
    &["spec"],
    &["control"],
    &["start", "standalone"],
];

fn layer(module: &str) -> Option<usize> {
    LAYERS.iter().position(|layer| layer.contains(&module))
}

/// What is wrong with the imports of a file of `module`, in which `depth` times `super` is the crate. Its unit tests
/// are not looked at: they may build upon anything.
fn violations(module: &str, depth: usize, source: &str) -> Vec<String> {
    let Some(own) = layer(module) else { return vec![format!("{module} is in no layer")] };
    let code = source.split("#[cfg(test)]").next().unwrap_or("").lines();
    let code: Vec<_> = code.filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join("\n").replace(&"super::".repeat(depth), "crate::");
    let named = code.split("crate::").skip(1);
    let named = named.filter_map(|path| path.split(|c: char| !c.is_alphanumeric() && c != '_').next());
    let upward = named.filter(|other| *other != module && layer(other).is_none_or(|layer| layer >= own));
    upward.map(|other| format!("{module} imports {other}")).collect()
}

fn check(directory: &Path, folder: Option<&str>, found: &mut Vec<String>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let depth = if folder.is_some() && stem != "mod" { 2 } else { 1 };
        let module = folder.unwrap_or(stem);
        match path.is_dir() {
            true => check(&path, Some(module), found),
            false if ["lib", "main", "tests"].contains(&stem) => {}
            false => found.extend(violations(module, depth, &fs::read_to_string(&path).unwrap())),
        }
    }
}

#[test]
fn no_module_imports_from_its_own_layer_or_one_above() {
    let mut found = Vec::new();
    check(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), None, &mut found);
    assert_eq!(found, Vec::<String>::new());
}

#[test]
fn an_upward_import_is_found() {
    let upward = "use crate::disk::Shape;\nuse crate::control::Disks;";
    assert_eq!(violations("raw", 1, upward), ["raw imports control"]);
    assert_eq!(violations("nbd", 2, "use super::super::qcow2::Image;"), ["nbd imports qcow2"]);
    assert_eq!(violations("disk", 1, "    let disks = super::control::Disks;"), ["disk imports control"]);
    assert_eq!(violations("elsewhere", 1, ""), ["elsewhere is in no layer"]);
    assert!(violations("raw", 2, "use super::engine;\nuse crate::raw::probe;\n// crate::control").is_empty());
}
