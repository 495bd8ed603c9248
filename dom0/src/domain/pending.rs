//! Another config for a running domain: its next machine is made from it, what it says of the end of this one counts at once.
//!
//! Refused is what makes it another domain (name, UUID), and what this host could not start now whatever becomes of the
//! machine that runs: its kernel, its memory, its CPUs. Images and NICs are this machine's until it has ended, so they are
//! looked at when the next one is built.

use std::rc::Rc;

use crate::config::{self, DomainConfig, Policy};
use crate::domain::lifecycle::State;
use crate::domain::record::Source;
use crate::domain::{Domain, check};
use crate::value::place::ConfigError;

/// Where a config came from, and its text.
pub(super) fn source(config: &DomainConfig) -> Source {
    Source { file: config.file.clone(), directory: config.directory.clone(), text: config.text.clone() }
}

impl Domain {
    /// What is done when the machine stops.
    pub(super) fn policy(&self) -> Policy {
        self.next.as_ref().unwrap_or(&self.config).policy
    }

    /// Keeps the config for the next machine.
    ///
    /// # Errors
    /// One line; the config of the next machine is as before then.
    pub fn update(&mut self, next: DomainConfig) -> Result<(), String> {
        if matches!(self.state, State::Dying(_) | State::Dead) {
            return Err(format!("cannot update its config: the domain {}", self.state));
        }
        let refuse = |at: &str, problem| Err(ConfigError::new(&next.file, at, problem).to_string());
        let (name, uuid) = (&self.config.name, self.config.uuid);
        if next.name != *name {
            return refuse(
                "name",
                format!("\"{}\" is not the name of the domain: \"{name}\" would do", next.name),
            );
        }
        if next.uuid != uuid {
            return refuse("uuid", format!("{} would be another machine: {uuid} would do", next.uuid));
        }
        check::startable(&next).map_err(|error| domus_startup::control::chain(&error))?;
        self.next = Some(self.named(next));
        self.keep();
        Ok(())
    }

    /// The config that a dom0 before this one has kept for the next machine.
    pub(super) fn take_over_next(&mut self, kept: &Source) {
        match config::parse(&kept.file, &kept.directory, &kept.text) {
            Ok(next) => self.next = Some(self.named(next)),
            Err(error) => self.say(&format!("the config of its next start is left out: {error}")),
        }
    }

    /// The config, as this domain's.
    fn named(&self, config: DomainConfig) -> Rc<DomainConfig> {
        let DomainConfig { name, unit, .. } = &*self.config;
        DomainConfig { name: name.clone(), unit: unit.clone(), ..config }.into()
    }

    /// From now on the next config is the config. Nothing of a machine is there.
    pub(super) fn turn_over(&mut self) {
        let Some(next) = self.next.take() else { return };
        self.scheduling.clone_from(&next.scheduling);
        self.view.send_modify(|view| {
            view.memory = next.memory;
            view.vcpus = next.vcpus;
        });
        self.config = Rc::clone(&next);
    }
}
