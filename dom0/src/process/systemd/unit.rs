//! A systemd unit that dom0 has started: it stays loaded until systemd has told how it ended.

use std::cell::{OnceCell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use nix::sys::signal::Signal;
use tokio::time::sleep;

use crate::process::systemd::bus::Bus;
use crate::process::systemd::release::{Release, Releases};
use crate::process::{Telling, Witness};

/// How often systemd is asked whether it has seen the end of a process, a millisecond apart at first.
const MAX_POLLS: u32 = 60;

/// Exit statuses of systemd's own and of env(1), from before there was a program (systemd.exec(5)).
const NOT_EXECUTED: [i32; 3] = [126, 127, 203];

/// `si_code` of a child's end (sigaction(2)).
const CLD_EXITED: i32 = 1;

/// A unit that is in use.
#[derive(Debug)]
pub struct Unit {
    bus: Rc<Bus>,
    name: String,
    used: Used,
    releases: Releases,
    said: OnceCell<String>,
}

/// The names of all units in use.
pub type Used = Rc<RefCell<BTreeSet<String>>>;

impl Unit {
    /// Takes the name of a unit; none if it is in use.
    pub fn take(bus: &Rc<Bus>, used: &Used, releases: &Releases, name: &str) -> Option<Self> {
        if !used.borrow_mut().insert(name.to_owned()) {
            return None;
        }
        let (bus, used, releases) = (bus.clone(), used.clone(), releases.clone());
        Some(Self { bus, name: name.to_owned(), used, releases, said: OnceCell::new() })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// It has no process, and none is being started or ended.
    ///
    /// # Errors
    /// One line.
    pub async fn is_idle(&self) -> Result<bool, String> {
        let state: String = self.bus.property(&self.name, "Unit", "ActiveState").await?;
        Ok(matches!(&*state, "inactive" | "failed"))
    }

    async fn ask(&self) -> Result<String, String> {
        for asked in 0..MAX_POLLS {
            if self.is_idle().await? {
                break;
            }
            // It learns of the end by a signal as everybody does.
            sleep(Duration::from_millis(1 + u64::from(asked))).await;
        }
        let code: i32 = self.bus.property(&self.name, "Service", "ExecMainCode").await?;
        let status: i32 = self.bus.property(&self.name, "Service", "ExecMainStatus").await?;
        Ok(told(code, status))
    }
}

/// How a process ended, for people.
fn told(code: i32, status: i32) -> String {
    match (code, Signal::try_from(status)) {
        (0, _) => "ended".into(),
        (CLD_EXITED, _) if NOT_EXECUTED.contains(&status) => "could not be executed".into(),
        (CLD_EXITED, _) => format!("exited with status {status}"),
        (_, Ok(signal)) => crate::process::killed_by(signal),
        (_, Err(_)) => format!("was killed by signal {status}"),
    }
}

impl Witness for Unit {
    fn how(&self) -> Telling<'_> {
        Box::pin(async {
            if let Some(said) = self.said.get() {
                return said.clone();
            }
            // Without an answer there is still no doubt that it has ended.
            let said = self.ask().await.unwrap_or_else(|_| "ended".into());
            self.said.get_or_init(|| said).clone()
        })
    }
}

impl Drop for Unit {
    fn drop(&mut self) {
        self.used.borrow_mut().remove(&self.name);
        // From then on systemd forgets it when it ends (CollectMode=).
        self.releases.say(Release::Unit(std::mem::take(&mut self.name)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_told_as_that_of_a_child_is() {
        assert_eq!(told(1, 3), "exited with status 3");
        assert_eq!(told(1, 203), "could not be executed");
        assert_eq!(told(2, 9), "was killed by SIGKILL");
        assert_eq!(told(3, 31), "was killed by its system call filter (SIGSYS)");
        assert_eq!(told(2, 64), "was killed by signal 64");
    }
}
