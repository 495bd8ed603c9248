//! The watcher of a switch's data thread sees every standstill, whenever it begins: it never sleeps through one.

#![allow(clippy::unwrap_used, reason = "only tests")]

use std::time::Duration;

use domus_models::beat::Beat;
use loom::sync::Arc;

/// A data thread that works so often, with a rest in between, and then stands still.
fn stands_still_after(works: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model.check(move || {
        let beat = Arc::new(Beat::default());
        let data = beat.clone();
        let data = loom::thread::spawn(move || {
            for _ in 1..works {
                data.works();
                data.rests();
            }
            data.works();
        });
        // It returns, or the model ends in a deadlock: nobody wakes a watcher that sleeps then.
        beat.watch(Duration::ZERO, || {});
        data.join().unwrap();
    });
}

#[test]
fn the_first_standstill_is_seen() {
    stands_still_after(1);
}

#[test]
fn one_that_begins_while_the_watcher_falls_asleep_is_seen() {
    stands_still_after(2);
}
