//! What all domains of one dom0 share.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use crate::device::Providers;
use crate::domain::events::{Events, Kind};
use crate::host::monitor::Monitor;
use crate::host::run_dir::RunDir;
use crate::network::managed::{Change, Means, Networks};
use crate::network::switches::Switches;
use crate::process::Supervisor;

/// Where cores go that nobody has named a file for.
pub const CORES: &str = "/var/lib/domus/dump";

/// What all domains of one dom0 have in common.
pub struct Environment {
    /// What exists only while domains run.
    pub run: RunDir,
    /// Where what outlives a boot of the host is kept.
    pub config_dir: PathBuf,
    /// What starts their processes, and what their NICs name and share.
    pub providers: Providers,
    /// Where cores go that nobody has named a file for.
    pub cores: PathBuf,
    /// What happens to them.
    pub events: Rc<Events>,
    /// What starts the processes that look into the files of a config that is checked.
    pub checks: Rc<dyn Supervisor>,
    /// Their RAM may be more than the host's in all.
    pub overcommit: bool,
    /// They end with the command that has begun them.
    pub foreground: bool,
}

impl Environment {
    /// Of a service that manages networks, defined in `config_dir`, and switches.
    pub fn of_service(run: &RunDir, config_dir: &Path, supervisor: Rc<dyn Supervisor>) -> Self {
        let (events, monitor) = (Rc::<Events>::default(), Monitor::default());
        let told = events.clone();
        let tell = Rc::new(move |change| match change {
            Change::Fault(text) => told.tell(None, Kind::NetworkFault, Some(text)),
            Change::Mended(text) => told.tell(None, Kind::NetworkMended, Some(text)),
        });
        let means =
            Means { supervisor: supervisor.clone(), run: run.clone(), monitor: monitor.clone(), tell };
        Self {
            run: run.clone(),
            config_dir: config_dir.into(),
            providers: Providers {
                networks: Rc::new(Networks::of_service(config_dir, run.path(), means)),
                monitor,
                switches: Rc::new(Switches::new(run.clone(), Some(supervisor.clone()))),
                supervisor: supervisor.clone(),
                kernels: Rc::default(),
            },
            checks: supervisor,
            overcommit: false,
            cores: CORES.into(),
            events,
            foreground: false,
        }
    }

    /// Of a command, which uses the networks of the service in the same run directory.
    pub fn of_command(run: &RunDir, config_dir: &Path, supervisor: Rc<dyn Supervisor>) -> Self {
        Self {
            run: run.clone(),
            config_dir: config_dir.into(),
            providers: Providers {
                networks: Rc::new(Networks::of_others(config_dir, run.path())),
                monitor: Monitor::default(),
                switches: Rc::new(Switches::new(run.clone(), None)),
                supervisor: supervisor.clone(),
                kernels: Rc::default(),
            },
            checks: supervisor,
            // The service's domains are not known here.
            overcommit: true,
            cores: CORES.into(),
            events: Rc::default(),
            foreground: true,
        }
    }
}
