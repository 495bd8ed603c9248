//! Another config for a running domain: its next machine is made from it, what it says of the end of this one counts at
//! once.
//!
//! Refused is what makes it another domain (name, UUID), and what this host could not start now whatever becomes of the
//! machine that runs: its kernel, its memory, its CPUs. Images and NICs are this machine's until it has ended, so they
//! are looked at when the next one is built.

use domus_startup::control::chain;

use crate::config::{self, DomainConfig, Policy};
use crate::domain::check;
use crate::domain::lifecycle::State;
use crate::domain::record::Source;
use crate::domain::task::Domain;
use crate::value::place::ConfigError;

impl From<&DomainConfig> for Source {
    fn from(config: &DomainConfig) -> Self {
        Self { file: config.file.clone(), directory: config.directory.clone(), text: config.text.clone() }
    }
}

impl Domain {
    /// What is done when the machine stops.
    pub(super) fn policy(&self) -> Policy {
        self.pending_config.as_ref().unwrap_or(&self.config).policy
    }

    /// Keeps the config for the next machine.
    ///
    /// # Errors
    /// One line; the config of the next machine is as before then.
    pub async fn update(&mut self, next: DomainConfig) -> Result<(), String> {
        let state = self.life.state();
        if matches!(state, State::Dying(_) | State::Dead) {
            return Err(format!("cannot update its config: the domain {state}"));
        }
        let refuse = |at: &str, problem| Err(ConfigError::new(&next.file, at, problem).to_string());
        let (name, uuid) = (self.name(), self.config.uuid);
        if next.name != *name {
            return refuse(
                "name",
                format!("\"{}\" is not the name of the domain: \"{name}\" would do", next.name),
            );
        }
        if next.uuid != uuid {
            return refuse("uuid", format!("{} would be another machine: {uuid} would do", next.uuid));
        }
        check::startable(&next).await.map_err(|error| chain(&error))?;
        self.pending_config = Some(next.into());
        Ok(())
    }

    /// The config that a dom0 before this one has kept for the next machine.
    pub(super) fn inherit_pending(&mut self, kept: &Source) {
        match config::parse(&kept.file, &kept.directory, &kept.text) {
            Ok(next) => self.pending_config = Some(next.into()),
            Err(error) => self.say(&format!("the config of its next start is left out: {error}")),
        }
    }

    /// From now on the pending config is the config; true if there was one. Nothing of a machine is there.
    pub(super) fn apply_pending(&mut self) -> bool {
        let Some(next) = self.pending_config.take() else { return false };
        self.config = next;
        true
    }
}
