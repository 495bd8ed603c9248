//! What a domain's task waits for, so that `domus why` can tell it while it does.
//!
//! A task runs [inside](Waits::around) the list of its own waits. Whatever may take long and is not in dom0's hands
//! (storage, a child's answer, a process's end) is [told](waiting) to the list that it runs inside, if there is one,
//! for as long as it takes.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use tokio::time::Instant;

use crate::value::trouble::Trouble;

/// What takes longer than this is told.
const LONG: Duration = Duration::from_secs(2);

tokio::task_local! {
    static OWN: Rc<Waits>;
}

/// What one task waits for.
#[derive(Debug, Default)]
pub struct Waits {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, (String, Instant)>>,
}

impl Waits {
    /// Runs a task whose waits are told here.
    pub async fn around<T>(self: Rc<Self>, task: impl Future<Output = T>) -> T {
        OWN.scope(self, task).await
    }

    /// The oldest that has taken long: what is waited for, and since when.
    pub fn longest(&self) -> Option<(String, Instant)> {
        self.older_than(LONG).into_iter().min_by_key(|(_, since)| *since)
    }

    /// All that have taken long, as what an operator may want to know of.
    pub fn troubles(&self) -> Vec<Trouble> {
        let long = self.older_than(LONG).into_iter();
        long.map(|(what, since)| Trouble {
            layer: "dom0".into(),
            since: Some(since),
            cause: format!("waits for {what}"),
            next: "it goes on when that has come, or gives up by a deadline; domus destroy does not wait"
                .into(),
        })
        .collect()
    }

    fn older_than(&self, age: Duration) -> Vec<(String, Instant)> {
        self.open.borrow().values().filter(|(_, since)| since.elapsed() >= age).cloned().collect()
    }
}

/// Something is waited for until this is dropped.
#[derive(Debug)]
pub struct Waiting(Option<(Rc<Waits>, u64)>);

/// The task that this runs in waits for `what`: "the kernel of …".
pub fn waiting(what: impl FnOnce() -> String) -> Waiting {
    let own = OWN.try_with(Rc::clone).ok();
    Waiting(own.map(|own| {
        let number = own.next.replace(own.next.get() + 1);
        own.open.borrow_mut().insert(number, (what(), Instant::now()));
        (own, number)
    }))
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if let Some((own, number)) = &self.0 {
            own.open.borrow_mut().remove(number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_takes_long_is_told_while_it_does_and_by_nobody_elses_task() {
        let (waits, age) = (Rc::new(Waits::default()), Duration::from_millis(50));
        let task = waits.clone().around(async {
            let _storage = waiting(|| "\"/x\" to answer".into());
            tokio::time::sleep(age * 4).await;
        });
        let look = async {
            let _others = waiting(|| "nobody".into());
            assert_eq!(waits.older_than(age), []);
            tokio::time::sleep(age * 2).await;
            let waits = waits.older_than(age);
            assert_eq!(waits.len(), 1);
            assert_eq!(waits[0].0, "\"/x\" to answer");
        };
        tokio::join!(task, look);
        assert_eq!(waits.older_than(Duration::ZERO), []);
    }
}
