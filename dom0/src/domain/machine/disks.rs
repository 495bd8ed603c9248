//! What an operator asks of a running domain's disks.

use domus_startup::control::chain;
use domus_startup::fds::Outgoing;
use shared_abi::control::{BackendReply, BlockRequest, Cache, DiskStatistics, IoLimits, RunnerRequest};
use shared_abi::{DeviceId, Role};

use crate::device::block::config::{DiskData, DiskSource};
use crate::domain::Domain;
use crate::value::rate::LimitsFile;

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

impl Domain {
    /// Reports on every disk.
    pub async fn disks(&mut self) -> Vec<DiskReport> {
        let config = self.config.clone();
        let mut reports = Vec::new();
        for disk in &config.disks {
            let id = disk.id.clone();
            let mut report = match &disk.source {
                DiskSource::VhostUser(socket) => DiskReport {
                    id,
                    source: socket.display().to_string(),
                    format: "vhost-user",
                    read_only: false,
                    queues: disk.queues,
                    cache: "",
                    backend: None,
                    state: "serving",
                    limits: IoLimits::default(),
                    statistics: None,
                },
                DiskSource::Own(own) => {
                    let (source, format) = match &own.data {
                        DiskData::Raw(path) => (path.display().to_string(), "raw"),
                        DiskData::Qcow2(path, _) => (path.display().to_string(), "qcow2"),
                        DiskData::Nbd(uri) => (uri.to_string(), "nbd"),
                    };
                    let asked = BlockRequest::Statistics(id.clone());
                    let statistics = match self.ask_block(&asked, Outgoing::default()).await {
                        Ok(BackendReply::Disk(statistics)) => Some(*statistics),
                        _ => None,
                    };
                    let block = self.incarnation.backends.iter().find(|one| one.role == Role::Block);
                    let kept = self.incarnation.kept.as_ref();
                    DiskReport {
                        source,
                        format,
                        read_only: own.read_only,
                        queues: disk.queues,
                        cache: kept.and_then(|kept| kept.disks.borrow().cache(&id)).map_or("", cache_name),
                        backend: block.map(|backend| backend.process.pid().as_raw()),
                        state: if self.is_held(&id) { "held" } else { "serving" },
                        limits: kept
                            .and_then(|kept| kept.disks.borrow().limits(Some(&id)))
                            .unwrap_or_default(),
                        statistics,
                        id,
                    }
                }
            };
            if self.is_waiting(&report.id) {
                report.state = "waiting";
            }
            reports.push(report);
        }
        reports
    }

    /// The disk named, if this domain's own backend serves it.
    fn own_disk(&self, disk: &DeviceId) -> Result<(), String> {
        match self.config.disks.iter().find(|one| one.id == *disk) {
            Some(found) if found.own().is_some() => Ok(()),
            Some(_) => {
                Err(format!("disk {disk} is served by a backend that Domus did not start: ask that one"))
            }
            None => {
                let disks = self.config.disks.iter().map(|disk| disk.id.as_str()).collect::<Vec<_>>();
                Err(format!("there is no disk \"{disk}\": the domain has {}", disks.join(", ")))
            }
        }
    }

    /// Changes the limits of a disk, or with none of all together.
    ///
    /// # Errors
    /// One line; the limits are as before then.
    pub async fn limit(&mut self, disk: Option<DeviceId>, change: LimitsFile) -> Result<(), String> {
        if let Some(disk) = &disk {
            self.own_disk(disk)?;
        }
        let kept = self.incarnation.kept.clone().ok_or("the domain is not running")?;
        let old = kept.disks.borrow().limits(disk.as_ref()).ok_or("the domain is not running")?;
        let limits = change.over(old);
        self.ask_block(&BlockRequest::Limit { disk: disk.clone(), limits }, Outgoing::default()).await?;
        kept.disks.borrow_mut().keep_limits(disk.as_ref(), limits);
        self.keep();
        Ok(())
    }

    /// Gives a disk another size in bytes, or measures it again; returns its size.
    ///
    /// # Errors
    /// One line.
    pub async fn resize(&mut self, disk: DeviceId, bytes: Option<u64>) -> Result<u64, String> {
        self.own_disk(&disk)?;
        let request = BlockRequest::Resize { disk: disk.clone(), bytes };
        let BackendReply::Size(size) = self.ask_block(&request, Outgoing::default()).await? else {
            return Err("the backend does not say what size the disk has now".into());
        };
        if let Some(kept) = &self.incarnation.kept {
            kept.disks.borrow_mut().keep_size(&disk, size);
            self.keep();
        }
        let told = self.request(&RunnerRequest::ReadConfig(disk), "told the guest").await;
        told.map_err(|error| format!("it has {size} bytes, and the guest is not told: {}", chain(&error)))?;
        Ok(size)
    }
}

fn cache_name(cache: Cache) -> &'static str {
    match cache {
        Cache::None => "none",
        Cache::Writeback => "writeback",
        Cache::Unsafe => "unsafe",
    }
}
