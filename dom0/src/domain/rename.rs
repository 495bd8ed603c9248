//! Another name for a domain that runs on.
//!
//! Its directory is its claim on the name and takes the new one in one step (rename(2)), with the sockets in it, so
//! whoever comes after a dom0 that dies meanwhile finds it under one of the two. What the host calls its processes
//! (cgroup, units) keeps the name that they were started under, until the next machine is built; nobody else can have
//! that name till then.

use shared_abi::DomainName;

use crate::domain::lifecycle::State;
use crate::domain::task::Domain;

impl Domain {
    /// Gives the domain another name. Everybody else knows it by that when this returns.
    ///
    /// # Errors
    /// One line; it has its old name then.
    pub fn rename(&mut self, name: DomainName) -> Result<(), String> {
        let state = self.life.state();
        if !(state.has_machine() || matches!(state, State::Preserved { .. })) {
            return Err(format!("cannot be renamed: the domain {state}"));
        }
        self.machine.may_be_renamed().map_err(|why| format!("cannot be renamed: {why}"))?;
        self.dir.rename(&name).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => format!("cannot be renamed: the name \"{name}\" is taken"),
            _ => format!("cannot be renamed to \"{name}\": {error}"),
        })?;
        self.say(&format!("is called {name} from now on"));
        self.machine.rename(name, self.dir.path());
        self.publish();
        Ok(())
    }
}
