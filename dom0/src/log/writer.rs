//! Lines for whoever may not read them, or for storage that may hang: each place has a thread that writes there.
//!
//! dom0's only thread never waits for one: a line for which there is no room is lost, and how many were is said when
//! there is room again.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::{Duration, Instant};

/// Lines that wait for the thread at most.
const MOST: usize = 1024;

enum Order<T> {
    Write(T),
    /// Tells that all that came before is written, by hanging up.
    Flush(SyncSender<()>),
}

/// A place where lines go to.
pub struct Writer<T: 'static> {
    /// What writes a line; it is also called with how many were lost before that one.
    write: fn(T, u64),
    thread: OnceLock<Option<SyncSender<Order<T>>>>,
    lost: AtomicU64,
}

impl<T: Send> Writer<T> {
    /// A place, without a thread until there is a line.
    pub const fn new(write: fn(T, u64)) -> Self {
        Self { write, thread: OnceLock::new(), lost: AtomicU64::new(0) }
    }

    /// Has a line written. Does not wait.
    pub fn put(&'static self, line: T) {
        let thread = self.thread.get_or_init(|| {
            let (orders, ordered) = sync_channel(MOST);
            let run = move || self.run(&ordered);
            std::thread::Builder::new().name("log".into()).spawn(run).ok().map(|_| orders)
        });
        if thread.as_ref().is_none_or(|thread| thread.try_send(Order::Write(line)).is_err()) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn run(&self, ordered: &Receiver<Order<T>>) {
        for order in ordered {
            match order {
                Order::Write(line) => (self.write)(line, self.lost.swap(0, Ordering::Relaxed)),
                Order::Flush(done) => drop(done),
            }
        }
    }

    /// Waits until all is written, for `patience` at most. For a process that ends.
    pub fn flush(&self, patience: Duration) {
        let Some(Some(thread)) = self.thread.get() else { return };
        let (deadline, (done, written)) = (Instant::now() + patience, sync_channel(0));
        let mut order = Order::Flush(done);
        while let Err(TrySendError::Full(back)) = thread.try_send(order) {
            if Instant::now() >= deadline {
                return;
            }
            order = back;
            std::thread::sleep(Duration::from_millis(1));
        }
        let _ = written.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    static GATE: Mutex<()> = Mutex::new(());
    static SEEN: Mutex<Vec<(u32, u64)>> = Mutex::new(Vec::new());
    static WRITER: Writer<u32> = Writer::new(|line, lost| {
        let _gate = GATE.lock().unwrap();
        SEEN.lock().unwrap().push((line, lost));
    });

    #[test]
    fn a_place_that_hangs_holds_nobody_up_and_what_was_lost_is_counted() {
        let hangs = GATE.lock().unwrap();
        // One may be in the thread's hands.
        (0..2000).for_each(|line| WRITER.put(line));
        WRITER.flush(Duration::from_millis(20));
        assert!(SEEN.lock().unwrap().is_empty());
        drop(hangs);
        let enough = Duration::from_secs(10);
        WRITER.flush(enough);
        WRITER.put(2000);
        WRITER.flush(enough);
        let seen = SEEN.lock().unwrap();
        assert!(seen.len() >= MOST && seen.last().unwrap().0 == 2000, "{}", seen.len());
        let lost: u64 = seen.iter().map(|(_, lost)| lost).sum();
        assert_eq!(lost + seen.len() as u64, 2001);
    }
}
