//! Another name for a domain that runs on.
//!
//! Its directory is its claim on the name and takes the new one in one step (rename(2)), with the sockets in it, so whoever
//! comes after a dom0 that dies meanwhile finds it under one of the two. What the host calls its processes (cgroup, units)
//! keeps the name that they were started under, until the next machine is built; nobody else can have that name till then.

use std::path::PathBuf;

use shared_abi::DomainName;

use crate::config::DomainConfig;
use crate::device::net::config::NetLink;
use crate::domain::Domain;
use crate::domain::lifecycle::State;

impl Domain {
    /// Gives the domain another name. `known` has everybody else know it by that, at once; it is called with the path of
    /// the console.
    ///
    /// # Errors
    /// One line; it has its old name then.
    pub fn rename(&mut self, name: DomainName, known: impl FnOnce(PathBuf)) -> Result<(), String> {
        if !(self.state.has_machine() || matches!(self.state, State::Preserved { .. })) {
            return Err(format!("cannot be renamed: the domain {}", self.state));
        }
        if !self.incarnation.reviving.is_empty() {
            return Err(
                "cannot be renamed while a backend is being started again: see domus why, and try again"
                    .into(),
            );
        }
        // A switch knows its ports by the names of domains.
        if let Some(nic) = self.config.nets.iter().find(|net| matches!(net.link, NetLink::Switch(_))) {
            return Err(format!(
                "cannot be renamed: its NIC {} is on a switch, which knows it by its name",
                nic.id
            ));
        }
        self.dir.rename(&name).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => format!("cannot be renamed: the name \"{name}\" is taken"),
            _ => format!("cannot be renamed to \"{name}\": {error}"),
        })?;
        self.say(&format!("is called {name} from now on"));
        if let Some(kept) = &self.incarnation.kept {
            kept.console.moved(self.dir.console());
        }
        let renamed = |config: &DomainConfig| DomainConfig { name: name.clone(), ..config.clone() }.into();
        self.next = self.next.take().map(|next| renamed(&next));
        self.config = renamed(&self.config);
        known(self.dir.console());
        self.keep();
        Ok(())
    }

    /// From now on its processes have its name. There are none.
    pub(super) fn settle_name(&mut self) {
        let DomainConfig { name, unit, .. } = &*self.config;
        if name == unit {
            return;
        }
        self.commons.providers.supervisor.release(unit);
        let config = DomainConfig { unit: name.clone(), ..(*self.config).clone() };
        self.view.send_modify(|view| view.unit.clone_from(&config.unit));
        self.config = config.into();
    }
}
