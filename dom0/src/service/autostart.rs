//! Starts guests with the host, and shuts all guests down when the host stops.
//!
//! dom0 starts the guests whose configs in `/etc/domus/domains` set `autostart`, once per boot of the host. Files in
//! the run directory, which a reboot clears, record the start of each, and that there are no more: a guest that an
//! operator has destroyed is not started again when dom0 itself restarts, and one whose turn had not come is. A guest
//! that cannot be started, since a bridge or a mount comes later, is tried again until it can be: `domus list` shows
//! it, `domus why` says what is missing.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::{Instant, sleep, timeout};

use crate::config::{self, Autostart, DomainConfig};
use crate::domain::error::{Attempted, explain};
use crate::domain::lifecycle::{Event, State};
use crate::host::{files, slow};
use crate::service::Dom0;
use crate::value::place::ConfigError;

/// Says that all guests have been started since the host was.
const MARKER: &str = "autostarted";

/// The folder of those that have been, while there are others.
const BEGUN: &str = "autostart";

/// The guests behind one that takes longer to start do not wait for it any longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Within this time a guest is destroyed; the host's shutdown waits no longer for one.
const DESTROYED: Duration = Duration::from_secs(20);

/// Most configs that are looked at.
const MAX_CONFIGS: usize = 4096;

/// Starts the guests that are to start with the host, one after another, and says which cannot be. Nothing is done if
/// that has been done since the host was started.
pub async fn start(dom0: Rc<Dom0>) {
    let (marker, begun) = (dom0.run_dir().path().join(MARKER), dom0.run_dir().path().join(BEGUN));
    if marker.exists() {
        return;
    }
    let mark = |made: io::Result<()>| {
        if let Err(error) = made {
            crate::log::stderr::line(format_args!("guests are started, perhaps again later: {error}"));
        }
    };
    mark(fs::DirBuilder::new().recursive(true).mode(0o700).create(&begun));
    let (configs, problems) = read(&dom0.env().config_dir).await;
    for problem in problems {
        crate::log::stderr::line(format_args!("autostart: {problem}"));
    }
    for (config, Autostart { delay, .. }) in in_order(configs) {
        let plan = Attempted::from(&config);
        let mine = begun.join(plan.name.as_str());
        if mine.exists() {
            continue;
        }
        // Somebody was quicker, or a dom0 before this one.
        if dom0.find(plan.name.as_str()).is_ok() {
            mark(fs::write(mine, ""));
            continue;
        }
        // One that is not waited for any longer is still being started, also under the next dom0.
        let started = timeout(PATIENCE, dom0.keep(config)).await;
        mark(fs::write(mine, ""));
        match started {
            Ok(Ok(domid)) => {
                crate::log::stderr::line(format_args!("{}: started with the host (ID {domid})", plan.name))
            }
            Err(_) => {
                let (name, seconds) = (&plan.name, PATIENCE.as_secs());
                crate::log::stderr::line(format_args!(
                    "autostart: {name}: has not started within {seconds} s: the next one is started meanwhile"
                ));
                continue;
            }
            Ok(Err(error)) => {
                let why = explain(&plan, &error);
                crate::log::stderr::line(format_args!("autostart: {why}: it is tried until it starts"));
                continue;
            }
        }
        sleep(delay).await;
    }
    mark(fs::write(marker, ""));
    let _ = fs::remove_dir_all(begun);
}

/// How [`stop`] ended: names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stopped {
    /// These guests have switched themselves off.
    pub shut_down: Vec<String>,
    /// These had to be destroyed.
    pub destroyed: Vec<String>,
}

/// Shuts all guests down in turns: first the guests without `autostart`, then the others in reverse order of their
/// start. A guest that still runs at the end of its turn is destroyed. The turns share `grace` evenly.
pub async fn stop(dom0: &Dom0, grace: Duration) -> Stopped {
    let deadline = Instant::now() + grace;
    // Without their turns they all end at once.
    let configs = timeout(grace / 4, read(&dom0.env().config_dir)).await;
    let configs = in_order(configs.map_or_else(|_| Vec::new(), |(configs, _)| configs));
    let ranks: BTreeMap<_, _> =
        configs.iter().map(|(config, autostart)| (config.name.clone(), autostart.order)).collect();
    let mut turns: BTreeMap<Option<u32>, Vec<String>> = BTreeMap::new();
    for view in dom0.list() {
        turns.entry(ranks.get(&view.name).copied()).or_default().push(view.name.to_string());
    }
    let strangers = turns.remove(&None);
    let turns: Vec<Vec<String>> = strangers.into_iter().chain(turns.into_values().rev()).collect();
    let mut stopped = Stopped::default();
    for (n, names) in turns.iter().enumerate() {
        let left = deadline.saturating_duration_since(Instant::now());
        let share = left / u32::try_from(turns.len() - n).unwrap_or(u32::MAX);
        let ends = join_all(names.iter().map(|name| end(dom0, name, share))).await;
        for (name, by_itself) in names.iter().zip(ends) {
            let list = if by_itself { &mut stopped.shut_down } else { &mut stopped.destroyed };
            list.push(name.clone());
        }
    }
    stopped
}

/// Ends one guest, within `grace` by its own doing if it can be; true if so.
async fn end(dom0: &Dom0, name: &str, grace: Duration) -> bool {
    let off = async {
        dom0.ask(name, Event::Retire).await?;
        dom0.wait(name).await
    };
    let ended = timeout(grace, off).await;
    let by_itself =
        matches!(&ended, Ok(Ok(view)) if matches!(view.state, State::Dead | State::Preserved { .. }));
    let _ = timeout(DESTROYED, dom0.ask(name, Event::Destroy)).await;
    by_itself
}

/// The configs that say `autostart`, and what is wrong with those that cannot be read.
async fn read(config_dir: &Path) -> (Vec<(DomainConfig, Autostart)>, Vec<ConfigError>) {
    let domains = config_dir.join("domains");
    let (mut found, mut problems) = (Vec::new(), Vec::new());
    // Each may be on storage that does not answer.
    let listed = slow::with(&domains, configs).await;
    let paths = match listed.unwrap_or_else(|slow| Err(ConfigError::new(&domains, "", slow))) {
        Ok(paths) => paths,
        Err(problem) => return (found, vec![problem]),
    };
    for path in paths {
        let loaded = slow::with(&path, |path| {
            is_trusted(path, fs::Metadata::is_file).and_then(|()| config::load(path))
        });
        match loaded.await.unwrap_or_else(|slow| Err(ConfigError::new(&path, "", slow))) {
            Ok(config) => found.extend(config.autostart.map(|autostart| (config, autostart))),
            Err(problem) => problems.push(problem),
        }
    }
    (found, problems)
}

/// The files of configs in a folder.
fn configs(domains: &Path) -> Result<Vec<PathBuf>, ConfigError> {
    let paths = files::json_files(domains, MAX_CONFIGS);
    if !paths.is_empty() {
        is_trusted(domains, fs::Metadata::is_dir)?;
    }
    Ok(paths)
}

/// Refuses a file or folder that others than root, or whom dom0 runs as, may write to: what starts by itself runs with
/// dom0's rights.
fn is_trusted(path: &Path, is_kind: fn(&fs::Metadata) -> bool) -> Result<(), ConfigError> {
    let refuse = |problem: String| ConfigError::new(path, "", problem);
    let meta = path.metadata().map_err(|error| refuse(format!("cannot be looked at: {error}")))?;
    let (mode, uid, gid) = (meta.mode(), meta.uid(), meta.gid());
    if !is_kind(&meta) {
        return Err(refuse("is no regular file: name a domain's config so".into()));
    }
    let own = [0, nix::unistd::geteuid().as_raw()];
    let group = [0, nix::unistd::getegid().as_raw()];
    let (who, cure) = if !own.contains(&uid) {
        (format!("belongs to uid {uid}"), "chown root")
    } else if mode & 0o002 != 0 {
        (format!("may be written to by everybody (mode {:03o})", mode & 0o777), "chmod o-w")
    } else if mode & 0o020 != 0 && !group.contains(&gid) {
        (format!("may be written to by group {gid} (mode {:03o})", mode & 0o777), "chmod g-w")
    } else {
        return Ok(());
    };
    Err(refuse(format!("{who}, who could start anything as root: {cure} it")))
}

/// In the order in which they start: by number, then by name.
fn in_order(mut configs: Vec<(DomainConfig, Autostart)>) -> Vec<(DomainConfig, Autostart)> {
    configs.sort_by(|(a, first), (b, second)| (first.order, &a.name).cmp(&(second.order, &b.name)));
    configs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn guests_start_by_number_then_name_and_a_config_that_is_wrong_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let domains = dir.path().join("domains");
        fs::create_dir(&domains).unwrap();
        for (name, autostart) in [
            ("web", r#""autostart": true"#),
            ("db", r#""autostart": { "order": 1, "delay": 5 }"#),
            ("app", r#""autostart": { "order": 1 }"#),
            ("never", r#""autostart": false"#),
            ("wrong", r#""autostart": 7"#),
        ] {
            let text = format!(r#"{{ "name": "{name}", "boot": {{ "kernel": "k" }}, {autostart} }}"#);
            fs::write(domains.join(format!("{name}.json")), text).unwrap();
        }
        fs::write(domains.join("notes.txt"), "no config").unwrap();
        fs::write(domains.join(".web.json"), "an editor's").unwrap();
        let (configs, problems) = read(dir.path()).await;
        let order: Vec<String> =
            in_order(configs).iter().map(|(config, _)| config.name.to_string()).collect();
        // A number that is not given is 100: there is room before and after.
        assert_eq!(order, ["app", "db", "web"]);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].to_string().contains("autostart"), "{}", problems[0]);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_config_that_others_may_write_to_does_not_start_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let domains = dir.path().join("domains");
        fs::create_dir(&domains).unwrap();
        let mode = |path: &Path, mode| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        mode(&domains, 0o755);
        let path = domains.join("web.json");
        fs::write(&path, r#"{ "name": "web", "boot": { "kernel": "k" }, "autostart": true }"#).unwrap();
        let told = async |problem: &str| {
            let (configs, problems) = read(dir.path()).await;
            assert!(configs.is_empty());
            assert!(matches!(&problems[..], [one] if one.to_string().contains(problem)), "{problems:?}");
        };
        for safe in [0o644, 0o600, 0o664] {
            mode(&path, safe);
            assert_eq!(read(dir.path()).await.0.len(), 1, "{safe:o}");
        }
        mode(&path, 0o646);
        told("by everybody (mode 646), who could start anything as root: chmod o-w").await;
        mode(&path, 0o644);
        mode(&domains, 0o777);
        told("by everybody (mode 777)").await;
        mode(&domains, 0o755);
        if nix::unistd::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            told("belongs to uid 12345").await;
            std::os::unix::fs::chown(&path, Some(0), Some(12345)).unwrap();
            mode(&path, 0o664);
            told("by group 12345").await;
        }
        fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        told("no regular file").await;
    }
}
