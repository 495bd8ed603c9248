//! A file of `src` imports from lower layers, or from its own folder, and from nowhere else: no two files need each
//! other. Of dom0's crate only those know that do a part of dom0's work themselves: every other command is a client.

#![allow(clippy::unwrap_used, reason = "only tests")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// From the lowest to the highest; a unit is a file, or a folder below `src` or `src/commands`. Units of one layer do
/// not import each other.
const LAYERS: [&[&str]; 8] = [
    &["clock", "limits", "output", "shrink"],
    &["client", "terminal"],
    &["attach", "selection"],
    &["commands/cleanup_process", "commands/console", "commands/plan", "commands/timing"],
    // Every other command.
    &["commands"],
    &["commands/create"],
    &["args"],
    &["main", "xl"],
];

/// The units that do a part of dom0's work, and so may name its crate.
const OF_DOM0: [&str; 7] = ["check", "cleanup_process", "disk", "import", "logs", "plan", "run"];

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
    let lines = code.lines().filter(|line| !line.trim_start().starts_with("//"));
    let code = lines.flat_map(|line| [line, "\n"]).collect::<String>();
    let mut units = Vec::new();
    for (at, root) in code.match_indices("crate::").chain(code.match_indices("super::")) {
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || "_:".contains(c)) {
            continue;
        }
        let from = if root == "crate::" { &path[..0] } else { &path[..path.len() - 1] };
        let mut named = Vec::new();
        follow(&code[at + root.len()..], &[], &mut named);
        for names in &named {
            let above = names.iter().take_while(|name| *name == "super").count();
            let from = from[..from.len() - above].iter().copied();
            units.push(unit(&from.chain(names[above..].iter().map(String::as_str)).collect::<Vec<_>>()));
        }
    }
    units
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

/// True if the text names dom0's crate, in tests too.
fn names_dom0(text: &str) -> bool {
    let mut lines = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    lines.any(|line| {
        line.match_indices("dom0").any(|(at, name)| {
            let (before, after) = (&line[..at], &line[at + name.len()..]);
            let is_path =
                after.starts_with("::") && !before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let is_use = before.trim_start() == "use " && after.starts_with([' ', ';']);
            is_path || is_use
        })
    })
}

/// What is wrong with these imports.
fn upward(path: &[&str], text: &str) -> Vec<String> {
    let own = unit(path);
    let others = imports(path, text).into_iter().filter(|other| *other != own);
    let bad = others.filter(|other| layer(other).is_none() || layer(other) >= layer(&own));
    bad.map(|other| format!("{own} imports {other}")).collect()
}

/// Has `see` look at every file below `folder`, which is the module at `path`.
fn read(folder: &Path, path: &[&str], see: &mut impl FnMut(&[&str], &str)) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        let name = entry.file_stem().unwrap().to_str().unwrap();
        let path: Vec<_> = path.iter().copied().chain((name != "mod").then_some(name)).collect();
        match entry.is_dir() {
            true => read(&entry, &path, see),
            false if path == ["commands"] => {}
            false => see(&path, &fs::read_to_string(&entry).unwrap()),
        }
    }
}

#[test]
fn no_file_imports_from_its_own_layer_or_a_higher_one() {
    let mut bad = Vec::new();
    read(Path::new(SOURCES), &[], &mut |path, text| bad.extend(upward(path, text)));
    assert!(bad.is_empty(), "{bad:#?}");
}

#[test]
fn only_what_does_a_part_of_dom0s_work_names_its_crate() {
    let mut found = BTreeSet::new();
    read(Path::new(SOURCES), &[], &mut |path, text| {
        if names_dom0(text) {
            found.insert(unit(path));
        }
    });
    assert_eq!(found, OF_DOM0.map(|name| format!("commands/{name}")).into());
    for text in ["use dom0::config;", "    let x = dom0::value::time::now();", "use dom0 as d;", "use dom0;"]
    {
        assert!(names_dom0(text), "{text}");
    }
    assert!(!names_dom0("// dom0::config\nlet x = not_dom0::x;\n\"the dom0 service\""));
}

#[test]
fn an_upward_import_is_found() {
    assert_eq!(upward(&["output"], "use crate::args::Args;"), ["output imports args"]);
    assert_eq!(upward(&["client"], "use crate::{output::{print}, args::Args};"), ["client imports args"]);
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
