//! Another process in the place of a backend that works.
//!
//! ```text
//!   new one connected ─▶ serves ─▶ Detach: the old one drains ─▶ Attach ─▶ the old one ends      raw disks
//!   new one connected ─▶ Detach ─▶ the old one ends ─▶ the new one serves ─▶ Attach             all others
//! ```
//!
//! Whatever fails, the devices are served or will be, by the program from before.

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use domus_startup::control::chain;
use shared_abi::control::{RunnerReply, RunnerRequest};
use shared_abi::{DeviceId, Role};
use tokio::time::Instant;

use crate::domain::Domain;
use crate::domain::error::StartError;
use crate::domain::machine::attempt::{Lost, Revived};
use crate::domain::machine::backend::Backend;
use crate::host::fault;

/// Within this time a runner has let go of its devices. It waits for each backend as long as for any answer.
const DRAIN: Duration = Duration::from_secs(120);

/// The process that an upgrade has started.
enum New {
    /// It waits to be told what to serve.
    Connected(Backend),
    /// It serves, and is not attached yet.
    Serves(Revived),
}

impl Domain {
    /// Exchanges the process that serves `device` for a new one, of `program` if given, while the guest runs; returns how
    /// long its devices stood still.
    ///
    /// # Errors
    /// One line. Whatever has failed, the device is served or will be, by the program from before.
    pub async fn upgrade(&mut self, device: &DeviceId, program: Option<PathBuf>) -> Result<Duration, String> {
        let role = self.role_of(device).ok_or_else(|| {
            format!(
                "no backend of Domus' serves a device \"{device}\": see domus block-list {}",
                self.config.name
            )
        })?;
        let served = self.incarnation.backends.iter().position(|backend| backend.role == role);
        let (Some(served), Some(mut means)) = (served, self.means(role)) else {
            return Err(format!("{} is being started just now: see domus why", role.program()));
        };
        if let Some(kept) = &self.incarnation.kept {
            kept.disks.borrow_mut().lose(device, false);
        }
        means.program = program.or(means.program);
        // Nothing of the old one is touched before the new one is there. Where both can be at the same data, it serves
        // before the old one stops.
        let failed = |error: StartError| chain(&error);
        let one_at_a_time = means.kept.exclusive(role);
        let new = means.connected_beside(role).await.map_err(failed)?;
        let new = match one_at_a_time {
            true => New::Connected(new),
            false => New::Serves(means.serve(new).await.map_err(failed)?),
        };
        let drained = self.detach(role).await?;
        fault::point();
        let old = self.incarnation.backends.swap_remove(served);
        let (process, remains) = old.into_parts();
        self.held.clear();
        let exchanged = async {
            process.kill();
            fault::point();
            // A NIC's backend resets its tap when it is let go of, and must be gone before the next one sets it up.
            if drained && role == Role::Block && !one_at_a_time {
                tokio::task::spawn_local(process.reap());
            } else {
                process.reap().await;
                remains.gone().await.map_err(|error| error.to_string())?;
            }
            let revived = match new {
                New::Connected(new) => means.serve(new).await.map_err(failed)?,
                New::Serves(revived) => revived,
            };
            self.put_in_place(&Lost::Own(role), Instant::now(), revived).await
        };
        match exchanged.await {
            Ok(stalled) => {
                means.in_its_place();
                self.programs.extend(means.program.map(|program| (role, program)));
                self.keep();
                self.tell();
                Ok(stalled)
            }
            Err(error) => {
                self.lost(Lost::Own(role), "could not be upgraded".into(), 0, Rc::new(remains));
                Err(error)
            }
        }
    }

    /// Has the runner let go of all devices of a backend; true if that backend has finished with them.
    async fn detach(&mut self, role: Role) -> Result<bool, String> {
        let devices = match role {
            Role::Block => {
                let own = self.config.disks.iter().filter(|disk| disk.own().is_some());
                own.map(|disk| disk.id.clone()).collect()
            }
            _ => self.config.nets.iter().filter(|net| net.is_own()).map(|net| net.id.clone()).collect(),
        };
        match self.talk(&RunnerRequest::Detach(devices), DRAIN, "let go of its devices").await {
            Ok(Some(RunnerReply::Detached { drained })) => Ok(drained),
            Ok(_) => Ok(false),
            Err(error) => Err(chain(&error)),
        }
    }
}
