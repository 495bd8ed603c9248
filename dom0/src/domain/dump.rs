//! Cores that an operator asks for.

use std::path::PathBuf;

use shared_abi::control::RunnerRequest;

use crate::domain::lifecycle::Event;
use crate::domain::machine::CoreFile;
use crate::domain::task::Domain;

/// What becomes of the machine when its core is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It goes on.
    GoOn,
    /// The domain is destroyed.
    Destroy,
    /// It is reset, as if the guest had done so.
    Reset,
}

/// A core to write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dump {
    /// The file; none for one in the directory of cores.
    pub file: Option<PathBuf>,
    /// The vCPUs run on meanwhile.
    pub live: bool,
    /// What comes then.
    pub then: Then,
}

impl Domain {
    /// Writes a core; returns where it is.
    ///
    /// # Errors
    /// One line.
    pub async fn dump(&mut self, dump: Dump) -> Result<PathBuf, String> {
        let Dump { file, live, then } = dump;
        self.running("dump its core")?;
        let core = match file {
            Some(path) => CoreFile::at(path).await?,
            None => CoreFile::among(&self.env.cores, self.name(), self.machine.memory()).await?,
        };
        let path = self.machine.write_core(core, live, then == Then::Destroy).await?;
        match then {
            Then::GoOn => {}
            Then::Destroy => {
                self.view.send_modify(|view| view.ended = Some("was destroyed".into()));
                self.step_with(&Event::Destroy);
            }
            Then::Reset => {
                let reset = self.machine.command(&RunnerRequest::Reset, "reset").await;
                reset.map_err(|why| format!("the core is in {}, but {why}", path.display()))?;
            }
        }
        Ok(path)
    }
}
