//! The table of xl's commands in this folder's README.md, held against the commands that there are.

use std::collections::BTreeSet;

use clap::CommandFactory;

use crate::args::Args;

const README: &str = include_str!("../README.md");

/// xl's commands of Xen 4.17 on x86, and those that came and went before and after.
const XL: usize = 102;

/// What is between backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn every_command_of_xl_s_has_one_row_and_what_is_said_to_be_here_is() {
    let there: BTreeSet<String> =
        Args::command().get_subcommands().map(|command| command.get_name().to_owned()).collect();
    let section = README.split("## xl's commands").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let rows = section.lines().filter_map(|line| line.strip_prefix("| ")).filter(|row| row.starts_with('`'));
    let mut seen = BTreeSet::new();
    for row in rows {
        let cells: Vec<&str> = row.split(" | ").collect();
        let (names, is) = (cells[0], cells[1].trim());
        for name in quoted(names) {
            assert!(seen.insert(name.to_owned()), "{name} has two rows");
            match is {
                "here" => assert!(there.contains(name), "{name} is said to be here"),
                "not yet" => {}
                "does not apply" => {
                    assert!(!there.contains(name), "{name} is here, and is said not to apply")
                }
                other => {
                    let instead: Vec<_> = quoted(other).collect();
                    assert!(!instead.is_empty(), "{name}: {other}");
                    for command in instead {
                        assert!(there.contains(command), "{name} is said to be here as {command}");
                    }
                }
            }
        }
    }
    assert_eq!(seen.len(), XL, "{seen:?}");
}
