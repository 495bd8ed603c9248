//! A file of `src` imports from lower layers, or from its own folder, and from nowhere else: no two files need each
//! other.

#![allow(clippy::unwrap_used, reason = "only tests")]

use std::fs;
use std::path::Path;

/// From the lowest to the highest; a unit is a file, or a folder below `src` or `src/commands`. Units of one layer do
/// not import each other.
const LAYERS: [&[&str]; 8] = [
    &["clock", "limits", "output", "shared", "shrink"],
    &["client", "terminal"],
    &["attach", "selection"],
    &["commands/cleanup_process", "commands/console", "commands/plan", "commands/timing"],
    // Every other command.
    &["commands"],
    &["commands/create"],
    &["args"],
    &["main", "xl"],
];

/// The unit's layer: that of its own name, or of the folder it is in.
fn layer(unit: &str) -> Option<usize> {
    let of = |name: &str| LAYERS.iter().position(|units| units.contains(&name));
    of(unit).or_else(|| of(unit.split_once('/')?.0))
}

/// The unit of a module: the first two names of a path below `commands`, otherwise the first.
fn unit(path: &[&str]) -> String {
    path[..path.len().min(if path[0] == "commands" { 2 } else { 1 })].join("/")
}

/// The units that the module at `path` imports. Unit tests, at a file's end, are not read.
fn imports(path: &[&str], text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    let code: String = code.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let mut units = Vec::new();
    for (at, root) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c)) {
            continue;
        }
        let mut from = if root == "crate::" { &path[..0] } else { &path[..path.len() - 1] };
        let mut rest = &code[at + root.len()..];
        while let Some(above) = rest.strip_prefix("super::") {
            (from, rest) = (&from[..from.len() - 1], above);
        }
        let end = |c: char| !(c.is_alphanumeric() || "_:".contains(c));
        let list = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap().split(',').collect(),
            None => vec![rest.split(end).next().unwrap()],
        };
        let full =
            |name: &str| unit(&from.iter().copied().chain(name.trim().split("::")).collect::<Vec<_>>());
        units.extend(list.into_iter().filter(|name| !name.trim().is_empty()).map(full));
    }
    units
}

/// What is wrong with these imports.
fn upward(path: &[&str], text: &str) -> Vec<String> {
    let own = unit(path);
    let others = imports(path, text).into_iter().filter(|other| *other != own);
    let bad = others.filter(|other| layer(other).is_none() || layer(other) >= layer(&own));
    bad.map(|other| format!("{own} imports {other}")).collect()
}

fn read(folder: &Path, path: &[&str], bad: &mut Vec<String>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_stem().unwrap().to_str().unwrap();
        let path: Vec<_> = path.iter().copied().chain((name != "mod").then_some(name)).collect();
        match entry.is_dir() {
            true => read(&entry, &path, bad),
            false if path == ["commands"] => {}
            false => bad.extend(upward(&path, &fs::read_to_string(&entry).unwrap())),
        }
    }
}

#[test]
fn no_file_imports_from_its_own_layer_or_a_higher_one() {
    let mut bad = Vec::new();
    read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/src")), &[], &mut bad);
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn an_upward_import_is_found() {
    assert_eq!(upward(&["output"], "use crate::args::Args;"), ["output imports args"]);
    assert_eq!(
        upward(&["commands", "block"], "use super::{network::list, plan};"),
        ["commands/block imports commands/network"]
    );
    assert_eq!(
        upward(&["commands", "disk", "qemu"], "use super::super::create;"),
        ["commands/disk imports commands/create"]
    );
    assert!(
        upward(&["commands", "disk", "qemu"], "use super::files::Image;\nuse crate::output::print;")
            .is_empty()
    );
}
