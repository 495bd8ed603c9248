//! What all domains of one dom0 share.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::domain::dump::CORES;
use crate::events::Events;
use crate::networks::Networks;
use crate::resources::run_dir::RunDir;
use crate::supervisor::Supervisor;
use crate::switches::Switches;

/// What all domains of one dom0 have in common.
pub struct Commons {
    /// Where what outlives a boot of the host is kept.
    pub config_dir: PathBuf,
    /// Starts their processes.
    pub supervisor: Rc<dyn Supervisor>,
    /// What their NICs name.
    pub networks: Rc<Networks>,
    /// What their NICs share.
    pub switches: Rc<Switches>,
    /// Where cores go that nobody has named a file for.
    pub cores: PathBuf,
    /// What happens to them.
    pub events: Rc<Events>,
    /// They end with the command that has begun them.
    pub foreground: bool,
}

impl Commons {
    /// Of a service that manages networks, defined in `config_dir`, and switches.
    pub fn of_service(run: &RunDir, config_dir: &Path, supervisor: Rc<dyn Supervisor>) -> Self {
        Self {
            config_dir: config_dir.into(),
            networks: Rc::new(Networks::of_service(config_dir, run.path(), supervisor.clone())),
            switches: Rc::new(Switches::new(run.clone(), Some(supervisor.clone()))),
            supervisor,
            cores: CORES.into(),
            events: Rc::default(),
            foreground: false,
        }
    }

    /// Of a command, which uses the networks of the service in the same run directory.
    pub fn of_command(run: &RunDir, config_dir: &Path, supervisor: Rc<dyn Supervisor>) -> Self {
        Self {
            config_dir: config_dir.into(),
            networks: Rc::new(Networks::of_others(config_dir, run.path())),
            switches: Rc::new(Switches::new(run.clone(), None)),
            supervisor,
            cores: CORES.into(),
            events: Rc::default(),
            foreground: true,
        }
    }
}
