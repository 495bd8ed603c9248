//! Domains as machines of systemd-machined, where there is one: `machinectl list` shows them.
//!
//! A courtesy: nothing waits for it, and a machined that is absent or refuses is worth a line in the log, once.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use nix::unistd::Pid;
use tokio::time::sleep;
use uuid::Uuid;

use crate::process::systemd::bus::Bus;

/// machined's object.
const MACHINED: (&str, &str, &str) =
    ("org.freedesktop.machine1", "/org/freedesktop/machine1", "org.freedesktop.machine1.Manager");

/// How often, and how far apart, it is tried again.
const TRIES: u32 = 10;
const RETRY_PAUSE: Duration = Duration::from_millis(300);

/// The machines of one dom0.
#[derive(Debug)]
pub struct Machines {
    bus: Rc<Bus>,
    complained: Rc<Cell<bool>>,
}

impl Machines {
    /// None yet.
    pub fn new(bus: Rc<Bus>) -> Self {
        Self { bus, complained: Rc::default() }
    }

    /// Has machined list a domain until its runner's unit ends. Returns at once; must be called in a `LocalSet`.
    pub fn register(&self, name: &str, uuid: Uuid, runner: Pid) {
        let (bus, complained) = (self.bus.clone(), self.complained.clone());
        let (name, leader) = (name.to_owned(), runner.as_raw().unsigned_abs());
        tokio::task::spawn_local(async move {
            let id = uuid.as_bytes().as_slice();
            let machine = (&*name, id, "domus", "vm", leader, "");
            let mut registered = bus.call(MACHINED, "RegisterMachine", &machine).await;
            // The one before a restart of the guest goes when systemd has told machined of its unit's end.
            for _ in 0..TRIES {
                if registered.is_ok() || complained.get() {
                    break;
                }
                sleep(RETRY_PAUSE).await;
                registered = bus.call(MACHINED, "RegisterMachine", &machine).await;
            }
            if let Err(error) = registered
                && !complained.replace(true)
            {
                crate::log::stderr::line(format_args!("{name}: machinectl does not list domains: {error}"));
            }
        });
    }
}
