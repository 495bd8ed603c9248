//! Releases units and slices at systemd: in order, by one task, since the callers cannot wait for systemd.

use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

use crate::process::systemd::bus::Bus;

/// One thing to release.
#[derive(Debug)]
pub enum Release {
    /// A unit is not needed any more; it is forgotten when it has ended.
    Unit(String),
    /// Nothing is left in a slice.
    Slice(String),
    /// Tells when all that was said before has been passed on.
    Until(oneshot::Sender<()>),
}

/// The queue of the task that releases.
#[derive(Debug, Clone)]
pub struct Releases(mpsc::UnboundedSender<Release>);

impl Releases {
    /// Starts the task, in the caller's `LocalSet`. It ends when nobody can say anything any more.
    pub fn start(bus: Rc<Bus>) -> Self {
        let (sender, mut releases) = mpsc::unbounded_channel();
        tokio::task::spawn_local(async move {
            while let Some(release) = releases.recv().await {
                // What fails was forgotten already, or is by a systemd that was started again.
                match release {
                    Release::Unit(unit) => drop(bus.manager("UnrefUnit", &(&*unit,)).await),
                    Release::Slice(slice) => drop(bus.manager("StopUnit", &(&*slice, "replace")).await),
                    Release::Until(passed_on) => drop(passed_on.send(())),
                }
            }
        });
        Self(sender)
    }

    /// Says one, and returns at once.
    pub fn say(&self, release: Release) {
        let _ = self.0.send(release);
    }

    /// Waits until all that was said before has been passed on.
    pub async fn passed_on(&self) {
        let (sender, passed_on) = oneshot::channel();
        self.say(Release::Until(sender));
        let _ = passed_on.await;
    }
}
