//! The storage of a disk, seen by its size: measure it and change it.

use std::sync::mpsc::sync_channel;
use std::time::Duration;

use vu_server::worker::Port;

use crate::worker_command::BlockCommand;

/// How long a disk may take to find its size, or to get another one.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is behind a disk, as far as its size is concerned. Errors are one line for the operator.
pub trait Storage: Send + Sync + 'static {
    /// Its size in bytes as it is now.
    ///
    /// # Errors
    /// It cannot be asked.
    fn measure(&self) -> Result<u64, String>;

    /// Gives it another size, in bytes.
    ///
    /// # Errors
    /// It has a size of its own, or cannot be changed.
    fn set_len(&self, bytes: u64) -> Result<(), String>;
}

/// The size of a disk whose thread is asked.
pub struct AskedThread(pub Port<BlockCommand>);

impl AskedThread {
    fn ask(&self, bytes: Option<u64>) -> Result<u64, String> {
        let (sender, done) = sync_channel(1);
        self.0.tell(BlockCommand::Resize(bytes, sender)).map_err(|gone| gone.to_string())?;
        done.recv_timeout(PATIENCE)
            .map_err(|_| format!("no answer from the disk within {} s", PATIENCE.as_secs()))?
    }
}

impl Storage for AskedThread {
    fn measure(&self) -> Result<u64, String> {
        self.ask(None)
    }

    fn set_len(&self, bytes: u64) -> Result<(), String> {
        self.ask(Some(bytes)).map(drop)
    }
}
