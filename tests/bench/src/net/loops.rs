//! The limit: what the kernel lets a plain loop do with the same taps and frames, without a guest and without looking
//! at them.

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::wire::{await_frame, drain};
use crate::cpu::pin_this_thread;

/// Room for the longest frame with its header.
const ROOM: usize = 70_000;

/// How often a loop looks at the clock.
const BATCH: u64 = 64;

/// Writes one frame again and again; returns how many a second.
pub fn write(mut tap: &File, frame: &[u8], time: Duration) -> Result<f64> {
    let (start, mut frames) = (Instant::now(), 0);
    while start.elapsed() < time {
        for _ in 0..BATCH {
            tap.write_all(frame).context("cannot write to a tap")?;
        }
        frames += BATCH;
    }
    Ok(frames as f64 / start.elapsed().as_secs_f64())
}

/// Reads all frames that wait; returns how many there were, and how long it took.
pub fn read(tap: &File) -> Result<(u64, Duration)> {
    let mut room = vec![0; ROOM];
    let start = Instant::now();
    let frames = drain(tap, &mut room)?;
    Ok((frames, start.elapsed()))
}

/// Sends back what comes, on CPU `cpu`, while `with` runs.
pub fn echo<T>(tap: &File, cpu: usize, with: impl FnOnce() -> Result<T>) -> Result<T> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let echoing = scope.spawn(|| -> Result<()> {
            pin_this_thread(cpu)?;
            let mut room = vec![0; ROOM];
            while !done.load(Ordering::Relaxed) {
                if !await_frame(tap, Duration::from_millis(100))? {
                    continue;
                }
                match (&*tap).read(&mut room) {
                    Ok(length) => (&*tap).write_all(&room[..length])?,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error).context("cannot read a tap"),
                }
            }
            Ok(())
        });
        let result = with();
        done.store(true, Ordering::Relaxed);
        echoing.join().ok().context("a thread has panicked")??;
        result
    })
}

/// Writes one frame to the first tap and reads what comes out of the second; returns how many came a second.
pub fn bridge(first: &File, second: &File, frame: &[u8], time: Duration) -> Result<f64> {
    let (done, came) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let reading = scope.spawn(|| -> Result<()> {
            let mut room = vec![0; ROOM];
            while !done.load(Ordering::Relaxed) {
                if await_frame(second, Duration::from_millis(100))? {
                    came.fetch_add(drain(second, &mut room)?, Ordering::Relaxed);
                }
            }
            Ok(())
        });
        let wrote = write(first, frame, time);
        let rate = came.load(Ordering::Relaxed) as f64 / time.as_secs_f64();
        done.store(true, Ordering::Relaxed);
        reading.join().ok().context("a thread has panicked")??;
        wrote.map(|_| rate)
    })
}
