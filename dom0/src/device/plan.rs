//! What starting a domain's devices would take, written down before anything is started.

use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use serde::Serialize;
use shared_abi::control::DeviceSpec;

/// What the classes of devices have written down.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Plan {
    /// Programs that would be started for them, or that they would use.
    pub processes: Vec<PlannedProcess>,
    /// What would be opened.
    pub files: Vec<PlannedFile>,
    /// What the guest would see on its PCI bus, by slot.
    pub devices: Vec<PlannedDevice>,
    /// What somebody should know who starts the domain.
    pub notes: Vec<String>,
}

/// Processes of one program.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedProcess {
    /// The program.
    pub program: &'static str,
    /// How many there are.
    pub count: usize,
    /// The devices that it serves.
    pub serves: Vec<String>,
    /// It is the domain's own, and not shared.
    pub own: bool,
}

impl PlannedProcess {
    /// One that is the domain's own.
    pub fn own(program: &'static str, serves: Vec<String>) -> Self {
        Self { program, count: 1, serves, own: true }
    }
}

/// A file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedFile {
    /// Its path, or the URI of a server.
    pub path: String,
    /// `kernel`, `initrd`, or the id of a disk.
    pub what: String,
    /// `file`, `block device`, or `nbd`.
    pub kind: &'static str,
    /// Its length, if it has one; of a qcow2 image that is not its disk's size.
    pub bytes: Option<u64>,
    /// `none`; `shared`: others may read, too; `exclusive`: nobody else may use it.
    pub lock: &'static str,
}

impl PlannedFile {
    /// The file at `path`, as it is now.
    pub fn at(path: &Path, what: String, lock: &'static str) -> Self {
        let meta = std::fs::metadata(path).ok();
        let is_block = meta.as_ref().is_some_and(|meta| meta.file_type().is_block_device());
        // A block device has no length there; whoever opens it learns its size.
        let bytes = meta.filter(|_| !is_block).map(|meta| meta.len());
        let kind = if is_block { "block device" } else { "file" };
        Self { path: path.display().to_string(), what, kind, bytes, lock }
    }
}

/// A device.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedDevice {
    /// Its slot on PCI bus 0.
    pub slot: usize,
    /// Its id.
    pub id: String,
    /// `block`, `net`, or `virtio` and the number of its type.
    pub kind: String,
    /// Virtqueues.
    pub queues: u16,
    /// Who serves it.
    pub backend: String,
    /// What is behind it: an image, a wire.
    pub is: String,
    /// What becomes of the domain if its backend is lost.
    pub on_backend_loss: String,
}

impl PlannedDevice {
    /// A device that its guest sees like this.
    pub fn new(
        spec: &DeviceSpec,
        kind: String,
        backend: String,
        is: String,
        on_backend_loss: String,
    ) -> Self {
        let slot = spec.slot.map_or(0, |slot| slot.number().into());
        Self { slot, id: spec.id.to_string(), kind, queues: spec.queues, backend, is, on_backend_loss }
    }
}
