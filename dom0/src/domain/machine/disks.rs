//! What an operator asks of a running machine's disks.

use domus_startup::control::chain;
use shared_abi::control::{BackendReply, BlockRequest, RunnerRequest};
use shared_abi::{DeviceId, Role};

use crate::device::Backend;
use crate::device::block::report::DiskReport;
use crate::domain::machine::Machine;
use crate::host::rlimits;
use crate::value::rate::LimitsFile;

impl Machine {
    async fn ask_block(&mut self, request: BlockRequest) -> Result<BackendReply, String> {
        self.ask_backend(Role::Block, &request).await
    }

    /// Reports on every disk.
    pub async fn disks(&mut self) -> Vec<DiskReport> {
        let mut reports = self.devices.disks.reports();
        for report in &mut reports {
            if self.devices.disks.serves(&report.id) {
                let request = BlockRequest::Statistics(report.id.clone());
                if let Some(BackendReply::Disk(statistics)) = self.question(Role::Block, &request).await {
                    report.statistics = Some(*statistics);
                }
                report.backend = self.backend(Role::Block).map(|backend| backend.process.pid().as_raw());
            }
            if self.is_waiting(&report.id) {
                report.state = "waiting";
            } else if self.is_paused(&report.id) {
                report.state = "held";
            }
        }
        reports
    }

    /// Asks for the size of each disk whose requests are to fail after a time: what takes its place must be as large.
    pub(super) async fn measure(&mut self) {
        self.losses.unmeasured = false;
        for disk in self.devices.disks.to_be_measured() {
            let request = BlockRequest::Statistics(disk.clone());
            if let Some(BackendReply::Disk(statistics)) = self.question(Role::Block, &request).await {
                self.devices.disks.keep_size(&disk, statistics.bytes);
            }
        }
    }

    /// Changes the limits of a disk, or with none of all together.
    ///
    /// # Errors
    /// One line; the limits are as before then.
    pub async fn limit(&mut self, disk: Option<DeviceId>, change: LimitsFile) -> Result<(), String> {
        if let Some(disk) = &disk {
            self.devices.disks.expect_own(disk)?;
        }
        let old = self.devices.disks.limits(disk.as_ref()).ok_or("the domain is not running")?;
        let limits = change.over(old);
        self.ask_block(BlockRequest::Limit { disk: disk.clone(), limits }).await?;
        self.devices.disks.keep_limits(disk.as_ref(), limits);
        Ok(())
    }

    /// Gives a disk another size in bytes, or measures it again; returns its size.
    ///
    /// # Errors
    /// One line.
    pub async fn resize(&mut self, disk: DeviceId, bytes: Option<u64>) -> Result<u64, String> {
        self.devices.disks.expect_own(&disk)?;
        if let Some(bytes) = bytes {
            self.allow_image_of(bytes)?;
        }
        let request = BlockRequest::Resize { disk: disk.clone(), bytes };
        let BackendReply::Size(size) = self.ask_block(request).await? else {
            return Err("the backend does not say what size the disk has now".into());
        };
        // Not what the backend says: it would allow itself what it likes.
        if bytes.is_none()
            && let Some(length) = self.devices.disks.image_length(&disk).await
        {
            self.allow_image_of(length)?;
        }
        self.devices.disks.keep_size(&disk, size);
        let told = self.tell_guest(disk).await;
        told.map_err(|error| format!("it has {size} bytes, and the guest is not told: {error}"))?;
        Ok(size)
    }

    /// Lets the backend write an image of so many bytes: it may make none longer than it was given.
    fn allow_image_of(&mut self, bytes: u64) -> Result<(), String> {
        let Some(backend) = self.backend(Role::Block) else { return Ok(()) };
        rlimits::raise_file_length(backend.process.pid(), bytes)
            .map_err(|error| format!("cannot let domus-block write an image of {bytes} bytes: {error}"))
    }

    /// Has the runner read a device's configuration space again, and tell the guest if it has changed.
    pub(super) async fn tell_guest(&mut self, device: DeviceId) -> Result<(), String> {
        let Some(runner) = &mut self.runner else { return Ok(()) };
        let told = runner.done(&RunnerRequest::ReadConfig(device), "told the guest").await;
        told.map_err(|error| chain(&error))
    }
}
