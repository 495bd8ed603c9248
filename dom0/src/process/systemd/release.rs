//! What systemd is told when something is over. In its order, by one task, since those who say it cannot wait.

use std::rc::Rc;

use tokio::sync::{mpsc, oneshot};

use crate::process::systemd::bus::Bus;

/// Something that is over.
#[derive(Debug)]
pub enum Farewell {
    /// A unit is not needed any more; it is forgotten when it has ended.
    Unit(String),
    /// Nothing is left in a slice.
    Slice(String),
    /// Tells when all that was said before has been passed on.
    Until(oneshot::Sender<()>),
}

/// Where that is said.
#[derive(Debug, Clone)]
pub struct Farewells(mpsc::UnboundedSender<Farewell>);

impl Farewells {
    /// Starts the task, in the caller's `LocalSet`. It ends when nobody can say anything any more.
    pub fn start(bus: Rc<Bus>) -> Self {
        let (sender, mut farewells) = mpsc::unbounded_channel();
        tokio::task::spawn_local(async move {
            while let Some(farewell) = farewells.recv().await {
                // What fails was forgotten already, or is by a systemd that was started again.
                match farewell {
                    Farewell::Unit(unit) => drop(bus.manager("UnrefUnit", &(&*unit,)).await),
                    Farewell::Slice(slice) => drop(bus.manager("StopUnit", &(&*slice, "replace")).await),
                    Farewell::Until(passed_on) => drop(passed_on.send(())),
                }
            }
        });
        Self(sender)
    }

    /// Says one, and returns at once.
    pub fn say(&self, farewell: Farewell) {
        let _ = self.0.send(farewell);
    }

    /// Waits until all that was said before has been passed on.
    pub async fn passed_on(&self) {
        let (sender, passed_on) = oneshot::channel();
        self.say(Farewell::Until(sender));
        let _ = passed_on.await;
    }
}
