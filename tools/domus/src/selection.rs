//! The domains that a command is about, and what the command does to each of them.
//!
//! A domain is named by its name, its ID, or a pattern (`web*`, `db?`, `[a-c]*`), which may fit several; `--all` is
//! every domain but the host. What fails for one domain is a line of its own and does not keep the others from their
//! turn; the command's status says at its end that something failed. With `--dry-run` nothing is asked of any domain.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, anyhow};
use clap::Args;
use domus_api::{Dom0Client, DomainInfo};
use domus_startup::say;
use futures_util::{StreamExt, stream};
use glob::Pattern;
use serde_json::json;

use crate::client::{Connection, answer, connect};
use crate::output::print;

/// Domains that are asked at the same time, each over a connection of its own.
const AT_ONCE: usize = 16;

/// The domains of a command, and whether the command only says what it would do.
#[derive(Debug, Args)]
pub struct Selection {
    /// Domains: their names, IDs, or patterns such as 'web*'
    #[arg(value_name = "NAME", required_unless_present = "all")]
    names: Vec<String>,
    /// All domains
    #[arg(short, long, conflicts_with = "names")]
    all: bool,
    /// Say what would be done, and do nothing
    #[arg(short = 'n', long)]
    dry_run: bool,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// The domains of `there` that `names` mean, in that order, each once. What is neither a pattern nor the name of a
/// domain stays as it is: the service says what is wrong with it.
///
/// # Errors
/// A pattern that is none, or that fits no domain.
pub fn expand(names: &[String], there: &[DomainInfo]) -> anyhow::Result<Vec<String>> {
    let mut found = Vec::new();
    for name in names {
        if !name.contains(['*', '?', '[']) {
            let is = |domain: &&DomainInfo| domain.name == *name || domain.id.to_string() == *name;
            found.push(there.iter().find(is).map_or_else(|| name.clone(), |domain| domain.name.clone()));
            continue;
        }
        let pattern = Pattern::new(name).map_err(|error| {
            anyhow!("\"{name}\" is no pattern: {}: *, ? and [a-z] are understood", error.msg)
        })?;
        let before = found.len();
        found.extend(guests(there).filter(|guest| pattern.matches(guest)));
        if found.len() == before {
            return Err(anyhow!("no domain's name fits \"{name}\": see domus list"));
        }
    }
    let mut seen = BTreeSet::new();
    found.retain(|name| seen.insert(name.clone()));
    Ok(found)
}

/// Every domain but the host.
fn guests(there: &[DomainInfo]) -> impl Iterator<Item = String> {
    there
        .iter()
        .filter(|domain| domain.id != 0 || domain.name != "Domain-0")
        .map(|domain| domain.name.clone())
}

/// Does `verb` to each domain that is meant. `would` says what that is, for a dry run: "be paused".
///
/// # Errors
/// That the service cannot be asked, or that a pattern fits nothing; nothing was done then.
pub async fn for_each(
    dir: Option<&Path>,
    selection: &Selection,
    would: &str,
    verb: impl AsyncFn(&mut Connection, &str) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let there = answer(connect(dir).await?.list().await)?.domains;
    let names = if selection.all { guests(&there).collect() } else { expand(&selection.names, &there)? };
    if selection.dry_run {
        // A name that is nobody's is as wrong in a dry run.
        let mut connection = connect(dir).await?;
        for name in &names {
            answer(connection.get(name).await)?;
        }
        print_dry(&names, would, selection.json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let one = async |name: String| {
        let done = match connect(dir).await {
            Ok(mut connection) => verb(&mut connection, &name).await,
            Err(error) => Err(error),
        };
        (name, done.map_err(|error| format!("{error:#}")))
    };
    let done: Vec<_> = stream::iter(names).map(one).buffered(AT_ONCE).collect().await;
    for (_, failed) in done.iter().filter_map(|(name, done)| Some((name, done.as_ref().err()?))) {
        say(format_args!("domus: {failed}"));
    }
    let all_done = done.iter().all(|(_, done)| done.is_ok());
    if selection.json {
        let list = done.iter().map(|(name, done)| json!({ "name": name, "error": done.as_ref().err() }));
        print(&serde_json::to_string_pretty(&list.collect::<Vec<_>>()).context("cannot write JSON")?)?;
    }
    Ok(if all_done { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_dry(names: &[String], would: &str, json: bool) -> anyhow::Result<()> {
    if json {
        let list: Vec<_> = names.iter().map(|name| json!({ "name": name, "would": would })).collect();
        return print(&serde_json::to_string_pretty(&list)?);
    }
    names.iter().try_for_each(|name| print(&format!("{name}: would {would}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there() -> Vec<DomainInfo> {
        [("Domain-0", 0), ("web1", 3), ("web2", 4), ("db", 12)]
            .map(|(name, id)| DomainInfo {
                name: name.into(),
                id,
                uuid: None,
                memory_mib: 32,
                vcpus: 1,
                flags: "r-----".into(),
                state: "running".into(),
                cpu_seconds: 0.0,
                ended: None,
                runner_pid: None,
                restarts: 0,
            })
            .into()
    }

    fn expanded(names: &[&str]) -> Result<Vec<String>, String> {
        let names: Vec<String> = names.iter().map(|name| (*name).into()).collect();
        expand(&names, &there()).map_err(|error| error.to_string())
    }

    #[test]
    fn names_ids_and_patterns_mean_each_domain_once_in_the_order_they_are_given() {
        assert_eq!(expanded(&["db", "web*"]).unwrap(), ["db", "web1", "web2"]);
        assert_eq!(expanded(&["12", "*"]).unwrap(), ["db", "web1", "web2"]);
        assert_eq!(expanded(&["web[2-9]", "web?"]).unwrap(), ["web2", "web1"]);
        // Not found here: the service says so.
        assert_eq!(expanded(&["web9"]).unwrap(), ["web9"]);
    }

    #[test]
    fn the_host_is_no_pattern_s_and_a_pattern_that_fits_nothing_is_named() {
        assert!(!expanded(&["*"]).unwrap().contains(&"Domain-0".into()));
        assert!(expanded(&["Dom*"]).unwrap_err().contains("\"Dom*\""));
        assert!(expanded(&["web["]).unwrap_err().contains("no pattern"));
    }
}
