//! What there is to say of a disk.

use shared_abi::DeviceId;
use shared_abi::control::{Cache, DiskStatistics, IoLimits};

use crate::device::block::config::{DiskData, DiskSource};
use crate::device::block::open::OpenDisk;

/// What there is to say of a disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskReport {
    /// Its id.
    pub id: DeviceId,
    /// Path, URI or socket.
    pub source: String,
    /// `raw`, `qcow2`, `nbd` or `vhost-user`.
    pub format: &'static str,
    /// The guest cannot write.
    pub read_only: bool,
    /// Number of virtqueues.
    pub queues: u16,
    /// `none`, `writeback`, `unsafe`, or nothing if that is the server's matter.
    pub cache: &'static str,
    /// The process that serves it, if it is the domain's own and there.
    pub backend: Option<i32>,
    /// `serving`, `held` or `waiting`.
    pub state: &'static str,
    /// What it may do.
    pub limits: IoLimits,
    /// What it has done since its backend started, if it is the domain's own and there.
    pub statistics: Option<DiskStatistics>,
}

impl DiskReport {
    /// Of a disk that is served; whoever knows its process adds that.
    pub(super) fn of(open: &OpenDisk) -> Self {
        let (source, format) = match &open.disk.source {
            DiskSource::VhostUser(socket) => (socket.display().to_string(), "vhost-user"),
            DiskSource::Own(own) => match &own.data {
                DiskData::Raw(path) => (path.display().to_string(), "raw"),
                DiskData::Qcow2(path, _) => (path.display().to_string(), "qcow2"),
                DiskData::Nbd(uri) => (uri.to_string(), "nbd"),
            },
        };
        Self {
            id: open.disk.id.clone(),
            source,
            format,
            read_only: open.disk.own().is_some_and(|own| own.read_only),
            queues: open.disk.queues,
            // A remote disk has no image here.
            cache: if open.files.is_empty() { "" } else { cache_name(open.cache) },
            backend: None,
            state: "serving",
            limits: open.limits,
            statistics: None,
        }
    }
}

fn cache_name(cache: Cache) -> &'static str {
    match cache {
        Cache::None => "none",
        Cache::Writeback => "writeback",
        Cache::Unsafe => "unsafe",
    }
}
