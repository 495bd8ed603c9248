//! Another process in the place of a backend that works.
//!
//! ```text
//!   new one connected ─▶ serves ─▶ Detach: the old one drains ─▶ Attach ─▶ the old one ends      Handover::Overlap
//!   new one connected ─▶ serves ─▶ Detach ─▶ the old one ends ─▶ Attach                          Handover::AfterEnd
//!   new one connected ─▶ Detach ─▶ the old one ends ─▶ the new one serves ─▶ Attach              Handover::Exclusive
//! ```
//!
//! Whatever fails, the devices are served or will be, by the program from before.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use shared_abi::control::{RunnerReply, RunnerRequest};
use shared_abi::{DeviceId, Role};

use crate::device::Handover;
use crate::device::loss::Loss;
use crate::domain::error::StartError;
use crate::domain::machine::Machine;
use crate::domain::machine::attempt::Served;
use crate::domain::machine::backend::BackendProcess;
use crate::host::fault;
use crate::process::link::SILENT;

/// Within this time a runner has let go of its devices. It waits for each backend as long as for any answer.
const DRAIN: Duration = Duration::from_secs(120);

/// The process that an exchange has started.
enum New {
    /// It waits to be told what to serve.
    Connected(BackendProcess),
    /// It serves, and is not attached yet.
    Serves(Served),
}

impl Machine {
    /// Exchanges the process that serves `device` for a new one, of `program` if given, while the guest runs; returns
    /// how long its devices stood still.
    ///
    /// # Errors
    /// One line. Whatever has failed, the device is served or will be, by the program from before.
    pub async fn exchange(
        &mut self,
        device: &DeviceId,
        program: Option<PathBuf>,
    ) -> Result<Duration, String> {
        let mut destroyed = self.destroyed.clone();
        tokio::select! {
            biased;
            // Whatever is half-way is removed with the machine.
            Ok(_) = destroyed.wait_for(|destroyed| *destroyed) => Err("the domain is being destroyed".into()),
            exchanged = self.exchange_process(device, program) => exchanged,
        }
    }

    async fn exchange_process(
        &mut self,
        device: &DeviceId,
        program: Option<PathBuf>,
    ) -> Result<Duration, String> {
        let class = self.devices.of_device(device).filter(|class| class.serves(device));
        let role = class.and_then(|class| class.role()).ok_or_else(|| {
            let name = &self.owner.name;
            format!("no backend of Domus' serves a device \"{device}\": see domus block-list {name}")
        })?;
        let served = self.backends.iter().position(|backend| backend.role == role);
        let (Some(served), Some(mut launcher)) = (served, self.launcher(role)) else {
            return Err(format!("{} is being started just now: see domus why", role.program()));
        };
        self.devices.disks.serve_again(device);
        launcher.program = program.or(launcher.program);
        if let Some(silent) = self.backends[served].silent_since().filter(|since| since.elapsed() >= SILENT) {
            // It would not drain. Another one takes its place as that of one that hangs does.
            self.programs.extend(launcher.program.map(|program| (role, program)));
            let seconds = silent.elapsed().as_secs();
            self.backends[served].kill_hung(seconds);
            let program = role.program();
            return Err(format!(
                "{program} has not answered for {seconds} s and is killed: another one takes its place, see domus why"
            ));
        }
        // Nothing of the old one is touched before the new one is there.
        let failed = |error: StartError| chain(&error);
        let handover = launcher.class.handover();
        let new = launcher.connected_beside().await.map_err(failed)?;
        let new = match handover {
            Handover::Exclusive => New::Connected(new),
            Handover::Overlap | Handover::AfterEnd => New::Serves(launcher.serve(new).await.map_err(failed)?),
        };
        let drained = self.detach(role).await?;
        fault::point();
        let (process, leftovers) = self.backends.swap_remove(served).into_parts();
        self.losses.paused.clear();
        let exchanged = async {
            process.kill();
            fault::point();
            if drained && handover == Handover::Overlap {
                tokio::task::spawn_local(process.reap());
            } else {
                process.reap().await;
                leftovers.gone().await.map_err(|error| error.to_string())?;
            }
            let served = match new {
                New::Connected(new) => launcher.serve(new).await.map_err(failed)?,
                New::Serves(served) => served,
            };
            self.join(served).await
        };
        match exchanged.await {
            Ok(stalled) => {
                launcher.in_its_place();
                self.programs.extend(launcher.program.map(|program| (role, program)));
                Ok(stalled)
            }
            Err(error) => {
                self.lost(Loss::Process(role), "could not be upgraded".into(), 0, Rc::new(leftovers));
                Err(error)
            }
        }
    }

    /// Has the runner let go of all devices of a backend; true if that backend has finished with them.
    async fn detach(&mut self, role: Role) -> Result<bool, String> {
        let (Some(class), Some(runner)) = (self.devices.in_role(role), &mut self.runner) else {
            return Ok(false);
        };
        let own = class.specs().into_iter().map(|spec| spec.id).filter(|device| class.serves(device));
        let request = RunnerRequest::Detach(own.collect());
        match runner.ask(&request, Vec::new(), DRAIN, "let go of its devices").await {
            Ok(RunnerReply::Detached { drained }) => Ok(drained),
            Ok(_) => Ok(false),
            Err(error) => Err(chain(&error)),
        }
    }
}
