//! Keeps what a running network is made of as it was made.
//!
//! ```text
//!   a change is heard of ─▶ look ─┬─ all is well
//!                                 └─ something is amiss: told ─▶ (pause) ─▶ make ─┬─ told; all is well
//!                                                                  ▲              └─ told; tried again
//!                                                                  └──── (pause) ◀─┘
//! ```
//!
//! What is taken away again and again is put back ever more slowly, see [`backoff`]: dom0 does not fight. What it says
//! of that is bounded.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use domus_startup::control::chain;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep};

use crate::host::links::Links;
use crate::host::monitor::{Monitor, Watch};
use crate::network::managed::definition::Network;
use crate::network::managed::error::NetworkError;
use crate::network::managed::made::{self, Made};
use crate::network::managed::rules;
use crate::value::backoff::{self, EarlyDeaths};

/// Faults in a row that are told.
pub const SAID: u32 = 3;

/// What happens to a network; the text names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Something of it is not as it was made.
    Fault(String),
    /// It is again.
    Mended(String),
}

/// Something of a network that is not as it was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// What is amiss.
    pub how: String,
    /// Attempts to put it right.
    pub attempts: u32,
    /// Why the last one failed.
    pub problem: Option<String>,
}

impl Fault {
    /// One that nothing has been done about.
    pub fn new(how: String) -> Self {
        Self { how, attempts: 0, problem: None }
    }

    /// An attempt has failed.
    pub fn failed(&mut self, problem: String) {
        self.attempts = self.attempts.saturating_add(1);
        self.problem = Some(problem);
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.how)?;
        match &self.problem {
            None => Ok(()),
            Some(problem) => write!(f, "; attempt {} to put it right failed: {problem}", self.attempts),
        }
    }
}

/// What is amiss with a network just now.
#[derive(Debug, Default)]
pub struct Faults {
    /// With the bridge and the packet filter.
    pub made: RefCell<Option<Fault>>,
    /// With dnsmasq.
    pub dnsmasq: RefCell<Option<Fault>>,
}

impl Faults {
    /// All of them.
    pub fn all(&self) -> Vec<Fault> {
        [&self.made, &self.dnsmasq].into_iter().filter_map(|fault| fault.borrow().clone()).collect()
    }
}

/// The least pause before what has failed is tried again, when something has changed meanwhile.
const LEAST: Duration = Duration::from_millis(250);

/// An operator who wants it put right now, and is told what came of it.
pub type Wish = oneshot::Sender<Result<(), NetworkError>>;

/// What keeps a network.
pub struct Keeper {
    /// What it is.
    pub network: Rc<Network>,
    /// What it was made of.
    pub made: Made,
    /// What is amiss.
    pub faults: Rc<Faults>,
    /// Tells others.
    pub tell: Rc<dyn Fn(Change)>,
    /// The bridge is another one: whoever is bound to it is to be started again.
    pub rebind: Rc<tokio::sync::Notify>,
}

impl Keeper {
    /// Keeps it until this is dropped.
    pub async fn keep(mut self, monitor: Monitor, mut wishes: mpsc::UnboundedReceiver<Wish>) {
        let Network { name, bridge, .. } = &*self.network;
        let watch = monitor.watch([bridge.clone()], Some(rules::table_name(name)));
        let mut deaths = EarlyDeaths::default();
        loop {
            // What an operator's attempt has not put right is tried again.
            let is_amiss = self.faults.made.borrow().is_some();
            let wish = tokio::select! {
                () = watch.changed(), if !is_amiss => None,
                Some(wish) = wishes.recv(), if !is_amiss => Some(wish),
                else => None,
            };
            let result = self.put_right(&watch, &mut deaths, &mut wishes, wish.is_some()).await;
            if let Some(wish) = wish {
                let _ = wish.send(result);
            }
        }
    }

    /// Looks, and puts right what is amiss. For an operator there is one attempt, at once; without one it is tried
    /// until everything is right.
    async fn put_right(
        &mut self,
        watch: &Watch,
        deaths: &mut EarlyDeaths,
        wishes: &mut mpsc::UnboundedReceiver<Wish>,
        for_operator: bool,
    ) -> Result<(), NetworkError> {
        let mut links = Links::open().map_err(|error| self.network.io("open rtnetlink", error))?;
        let mut is_said = true;
        let mut attempts = 0;
        loop {
            let amiss = match made::amiss(&self.network, &self.made, &links).await {
                Ok(amiss) if amiss.is_empty() => {
                    if self.is_right(is_said) {
                        deaths.began(Instant::now().into_std());
                    }
                    return Ok(());
                }
                Ok(amiss) => amiss.join(", "),
                Err(error) => chain(&error),
            };
            if self.faults.made.borrow().is_none() {
                is_said = deaths.died_at(Instant::now().into_std()) <= SAID;
                self.is_amiss(amiss, is_said);
            }
            if !for_operator {
                // What was put right and is amiss all the same has failed, too.
                let pause = if attempts == 0 { deaths.pause() } else { backoff::pause(attempts) };
                // Whatever is in the way may have gone.
                let changed = async {
                    sleep(pause.min(LEAST)).await;
                    watch.changed().await;
                };
                // An operator does not wait for a pause that others have brought about.
                tokio::select! {
                    () = sleep(pause) => {}
                    () = changed => {}
                    Some(wish) = wishes.recv() => {
                        let _ = wish.send(self.make(&links).await);
                        continue;
                    }
                }
            }
            attempts += 1;
            if let Err(error) = self.make(&links).await {
                if attempts == 1 && is_said {
                    crate::log::stderr::line(format_args!("{}: it is tried again", chain(&error)));
                }
                if for_operator {
                    return Err(error);
                }
                // The connection itself may be what fails.
                if let Ok(another) = Links::open() {
                    links = another;
                }
            } else if for_operator && attempts > 1 {
                return Err(self.network.io("put it right", io::Error::other(self.how())));
            }
            // What has been heard of is what was done here, or is looked at now.
            let _ = poll_fn(|cx| Poll::Ready(watch.poll_changed(cx))).await;
        }
    }

    /// What is amiss, for people.
    fn how(&self) -> String {
        self.faults.made.borrow().as_ref().map_or_else(String::new, |fault| fault.how.clone())
    }

    async fn make(&mut self, links: &Links) -> Result<(), NetworkError> {
        let made = made::make(&self.network, links).await;
        let made = made.inspect_err(|error| {
            if let Some(fault) = &mut *self.faults.made.borrow_mut() {
                fault.failed(chain(error));
            }
        })?;
        if made.bridge != self.made.bridge {
            self.rebind.notify_one();
        }
        self.made = made;
        Ok(())
    }

    fn is_amiss(&self, how: String, is_said: bool) {
        if is_said {
            crate::log::stderr::line(format_args!("network {}: {how}", self.network.name));
            (self.tell)(Change::Fault(format!("network {}: {how}", self.network.name)));
        }
        *self.faults.made.borrow_mut() = Some(Fault::new(how));
    }

    /// True if it was not.
    fn is_right(&self, is_said: bool) -> bool {
        let Some(fault) = self.faults.made.take() else { return false };
        if is_said {
            let text = format!("network {}: {}: it is put back", self.network.name, fault.how);
            crate::log::stderr::line(format_args!("{text}"));
            (self.tell)(Change::Mended(text));
        }
        true
    }
}
