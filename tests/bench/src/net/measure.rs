//! Rounds: each program once, then each once more, so that what the host does meanwhile falls on all alike.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use domus_tests::link::{Link, ip};

use super::backend::Backend;
use super::cases::{Case, Program, Way};
use super::driver::{Driver, Ends};
use super::frames::{FIRST, Frame, SECOND};
use super::loops;
use super::wire::{Tap, Wire, counter};
use crate::cpu::{Clock, Places, Used};
use crate::median;

/// Before anything is counted: caches fill and clocks rise.
pub const WARM_UP: Duration = Duration::from_millis(300);

/// Bytes of a receive buffer, for short frames and for long ones, as Linux' driver posts them.
const SMALL_BUFFER: u32 = 1536;
const LARGE_BUFFER: u32 = 4096;

/// Frames that a tap's queue is filled with, short ones and long ones.
const SMALL_FILL: u64 = 16_384;
const LARGE_FILL: u64 = 512;

/// Pieces of a frame in a guest's memory: what Linux' driver makes of a long one.
const PIECE: usize = 32 << 10;

/// What one round of one program has shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    /// Frames a second.
    pub frames: f64,
    /// Median time of one frame there and back, µs; 0 where it is not measured.
    pub p50_us: f64,
    /// CPU time of the backend for each frame, µs; 0 for a loop.
    pub cpu_us: f64,
    /// What other processes used meanwhile, in shares of one CPU.
    pub others: f64,
}

/// The rounds of one program, or why there are none.
pub type Rounds = Result<Vec<Sample>>;

/// How a case is measured.
#[derive(Debug)]
pub struct Plan<'a> {
    /// The folder with Domus' programs.
    pub bin: &'a Path,
    /// A folder for sockets.
    pub folder: &'a Path,
    /// Who runs where.
    pub places: Places,
    /// How often.
    pub rounds: u32,
    /// How long each time.
    pub time: Duration,
}

impl Plan<'_> {
    /// Measures every program that does the case.
    pub fn case(&self, case: &Case) -> Vec<(Program, Rounds)> {
        let programs = Program::ALL.into_iter().filter(|program| program.does(case));
        let mut all: Vec<(Program, Rounds)> = programs.map(|program| (program, Ok(Vec::new()))).collect();
        for _ in 0..self.rounds {
            for (program, rounds) in &mut all {
                // What has failed once is not tried again.
                let Ok(samples) = rounds else { continue };
                match self.round(*program, case) {
                    Ok(sample) => samples.push(sample),
                    Err(why) => *rounds = Err(why),
                }
            }
        }
        all
    }

    fn round(&self, program: Program, case: &Case) -> Result<Sample> {
        match (case.way, program) {
            (Way::Transmit, Program::Loop) => self.loop_alone(|| {
                let tap = Tap::new("bench0", 500)?;
                let frame = Frame::new(SECOND, FIRST, case.length).short();
                loops::write(&tap.queue, &frame, WARM_UP)?;
                loops::write(&tap.queue, &frame, self.time)
            }),
            (Way::Transmit, _) => self.transmit(program, case),
            (Way::Receive, _) => self.receive(program, case),
            (Way::Echo, _) => self.echo(program, case),
            (Way::Bridge, Program::Loop) => {
                let (_bridge, first, second) = bridged()?;
                let frame = Frame::new(SECOND, FIRST, case.length).short();
                second.take_segments()?;
                self.places.everywhere()?;
                loops::bridge(&first.queue, &second.queue, &frame, WARM_UP)?;
                let rate = loops::bridge(&first.queue, &second.queue, &frame, self.time);
                self.places.client()?;
                Ok(Sample { frames: rate?, ..Sample::default() })
            }
            (Way::Bridge, _) => {
                let (_bridge, first, second) = bridged()?;
                // What is started now may run on both.
                self.places.everywhere()?;
                let backend = Backend::net(self.bin, self.folder, &[&first, &second]);
                let sample = backend.and_then(|backend| self.across(backend, case));
                self.places.client()?;
                sample
            }
            (Way::Switch, Program::Domus) => {
                let mut backend = Backend::switch(self.bin, self.folder)?;
                backend.pin(self.places.backend)?;
                self.across(backend, case)
            }
            (Way::Switch, _) => {
                let backend = Backend::testpmd(self.folder, self.places, None)?;
                self.across(backend, case)
            }
        }
    }

    /// A loop of this thread's own, on the backends' CPU.
    fn loop_alone(&self, run: impl FnOnce() -> Result<f64>) -> Result<Sample> {
        self.places.backend()?;
        let rate = run();
        self.places.client()?;
        Ok(Sample { frames: rate?, ..Sample::default() })
    }

    /// A backend with one NIC on a tap, and that tap.
    fn on_tap(&self, program: Program, frames: usize) -> Result<(Backend, Option<Tap>, &'static str)> {
        if program == Program::Testpmd {
            return Ok((Backend::testpmd(self.folder, self.places, Some("bench0"))?, None, "bench0"));
        }
        let tap = Tap::new("bench0", frames)?;
        let mut backend = Backend::net(self.bin, self.folder, &[&tap])?;
        backend.pin(self.places.backend)?;
        Ok((backend, Some(tap), "bench0"))
    }

    fn transmit(&self, program: Program, case: &Case) -> Result<Sample> {
        let (mut backend, tap, name) = self.on_tap(program, 500)?;
        let pid = backend.pid();
        let mut driver = Driver::connect(backend.sockets.remove(0), SMALL_BUFFER)?;
        let frame = Frame::new(SECOND, FIRST, case.length);
        driver.prepare(frame.header, &frame.bytes, PIECE);
        let mut sender = Sender::default();
        sender.run(&mut driver, WARM_UP, |_| Ok(()))?;
        let (before, clock) = (counter(name, "rx_packets")?, Clock::start(pid, std::process::id())?);
        let (frames, time) = sender.run(&mut driver, self.time, |_| Ok(()))?;
        let used = clock.stop()?;
        // The used ring says that a frame was done with, the tap that it came.
        let came = counter(name, "rx_packets")? - before;
        ensure!(came + 512 >= frames, "of {frames} frames sent, {came} came");
        driver.stop()?;
        drop(tap);
        Ok(sample(frames, time, used))
    }

    fn receive(&self, program: Program, case: &Case) -> Result<Sample> {
        let fill = if case.is_large() { LARGE_FILL } else { SMALL_FILL };
        let frame = Frame::new(FIRST, SECOND, case.length).short();
        let mut total = (0, Duration::ZERO);
        if program == Program::Loop {
            let tap = Tap::new("bench0", fill as usize * 2)?;
            tap.take_segments()?;
            let mut wire = Wire::new(tap.name)?;
            while total.1 < self.time {
                (0..fill).try_for_each(|_| wire.send(&frame))?;
                self.places.backend()?;
                let read = loops::read(&tap.queue);
                self.places.client()?;
                let (frames, time) = read?;
                ensure!(frames == fill, "of {fill} frames sent, {frames} came");
                total = (total.0 + frames, total.1 + time);
            }
            return Ok(Sample { frames: total.0 as f64 / total.1.as_secs_f64(), ..Sample::default() });
        }
        let (mut backend, tap, name) = self.on_tap(program, fill as usize * 2)?;
        let pid = backend.pid();
        let buffer = if case.is_large() { LARGE_BUFFER } else { SMALL_BUFFER };
        let mut driver = Driver::connect(backend.sockets.remove(0), buffer)?;
        let (mut wire, mut ends) = (Wire::new(name)?, Ends::default());
        driver.offer_buffers();
        let (mut cpu, mut others) = (Duration::ZERO, Vec::new());
        while total.1 < self.time {
            // The buffers of the ring take the first of them; then nothing is given back until the clock runs.
            (0..fill).try_for_each(|_| wire.send(&frame))?;
            std::thread::sleep(Duration::from_millis(2));
            let clock = Clock::start(pid, std::process::id())?;
            let before = driver.take_frames(&mut ends);
            let (mut frames, start) = (0, Instant::now());
            Driver::look(|| {
                frames += driver.take_frames(&mut ends);
                Ok(before + frames >= fill)
            })?;
            total = (total.0 + frames, total.1 + start.elapsed());
            let used = clock.stop()?;
            cpu += used.process;
            others.push(used.others);
        }
        driver.stop()?;
        drop(tap);
        Ok(Sample {
            frames: total.0 as f64 / total.1.as_secs_f64(),
            p50_us: 0.0,
            cpu_us: cpu.as_secs_f64() * 1e6 / total.0 as f64,
            others: median(others),
        })
    }

    fn echo(&self, program: Program, case: &Case) -> Result<Sample> {
        let frame = Frame::new(FIRST, SECOND, case.length).short();
        let mut room = vec![0; frame.len() + 100];
        if program == Program::Loop {
            let tap = Tap::new("bench0", 500)?;
            let mut wire = Wire::new(tap.name)?;
            return loops::echo(&tap.queue, self.places.backend, || {
                let mut once = || -> Result<()> {
                    wire.send(&frame)?;
                    wire.receive(&mut room).map(drop)
                };
                echoes(self.time, None, &mut once)
            });
        }
        let (mut backend, tap, name) = self.on_tap(program, 500)?;
        let pid = backend.pid();
        let mut driver = Driver::connect(backend.sockets.remove(0), SMALL_BUFFER)?;
        let back = Frame::new(SECOND, FIRST, case.length);
        driver.prepare(back.header, &back.bytes, PIECE);
        driver.offer_buffers();
        let (mut wire, mut ends) = (Wire::new(name)?, Ends::default());
        let chains = driver.chains().to_vec();
        let mut chains = chains.iter().cycle();
        driver.transmit.want_call(false);
        // A backend that has just met its driver may lose the first frames.
        Driver::look(|| {
            wire.send(&frame)?;
            std::thread::sleep(Duration::from_millis(100));
            Ok(driver.take_frames(&mut ends) > 0)
        })?;
        let mut once = || -> Result<()> {
            wire.send(&frame)?;
            while driver.take_frames(&mut ends) == 0 {
                driver.wait_receive()?;
            }
            while driver.transmit.take().is_some() {}
            driver.transmit.want_call(false);
            if let Some(chain) = chains.next() {
                driver.transmit.push(*chain);
            }
            driver.transmit.publish();
            wire.receive(&mut room).map(drop)
        };
        let sample = echoes(self.time, Some(pid), &mut once)?;
        driver.stop()?;
        drop(tap);
        Ok(sample)
    }

    /// From the first NIC of a backend to its second.
    fn across(&self, mut backend: Backend, case: &Case) -> Result<Sample> {
        let pid = backend.pid();
        let buffer = if case.is_large() { LARGE_BUFFER } else { SMALL_BUFFER };
        let mut first = Driver::connect(backend.sockets.remove(0), SMALL_BUFFER)?;
        let mut second = Driver::connect(backend.sockets.remove(0), buffer)?;
        first.offer_buffers();
        second.offer_buffers();
        // One frame back, so that the way is known.
        let frame = Frame::new(FIRST, SECOND, 60);
        second.prepare(frame.header, &frame.bytes, PIECE);
        let (mut ends, mut answers) = (Ends::default(), Ends::default());
        let chain = second.chains()[0];
        Driver::look(|| {
            second.transmit.push(chain);
            second.transmit.publish();
            Driver::look(|| Ok(second.transmit.take().is_some()))?;
            std::thread::sleep(Duration::from_millis(20));
            Ok(first.take_frames(&mut answers) > 0)
        })?;
        let frame = Frame::new(SECOND, FIRST, case.length);
        first.prepare(frame.header, &frame.bytes, PIECE);
        let (mut came, mut sender) = (0, Sender::default());
        let mut take = |came: &mut u64| -> Result<()> {
            *came += second.take_frames(&mut ends);
            Ok(())
        };
        sender.run(&mut first, WARM_UP, |_| take(&mut came))?;
        came = 0;
        let clock = Clock::start(pid, std::process::id())?;
        let (_, time) = sender.run(&mut first, self.time, |_| take(&mut came))?;
        let used = clock.stop()?;
        first.stop()?;
        second.stop()?;
        Ok(sample(came, time, used))
    }
}

/// Keeps a transmit ring full.
#[derive(Default)]
struct Sender {
    filled: bool,
}

impl Sender {
    /// For so long, doing `besides` in between; returns how many frames were used, and the time it took.
    fn run(
        &mut self,
        driver: &mut Driver,
        time: Duration,
        mut besides: impl FnMut(&mut Driver) -> Result<()>,
    ) -> Result<(u64, Duration)> {
        if !std::mem::replace(&mut self.filled, true) {
            let chains = driver.chains().to_vec();
            chains.into_iter().for_each(|chain| driver.transmit.push(chain));
        }
        driver.transmit.publish();
        let (mut frames, start) = (0, Instant::now());
        let mut last = start;
        loop {
            let before = frames;
            while let Some((head, _)) = driver.transmit.take() {
                driver.transmit.push(head);
                frames += 1;
            }
            driver.transmit.want_call(false);
            driver.transmit.publish();
            besides(driver)?;
            let now = Instant::now();
            if frames > before {
                last = now;
            }
            ensure!(now - last < Duration::from_secs(10), "the backend takes no frames any more");
            if now - start >= time {
                return Ok((frames, now - start));
            }
        }
    }
}

fn sample(frames: u64, time: Duration, used: Used) -> Sample {
    Sample {
        frames: frames as f64 / time.as_secs_f64(),
        p50_us: 0.0,
        cpu_us: used.process.as_secs_f64() * 1e6 / frames as f64,
        others: used.others,
    }
}

/// Times one exchange after the other.
fn echoes(time: Duration, pid: Option<u32>, once: &mut impl FnMut() -> Result<()>) -> Result<Sample> {
    let mut times = Vec::with_capacity(1 << 20);
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        once()?;
    }
    let own = std::process::id();
    let (clock, start) = (Clock::start(pid.unwrap_or(own), own)?, Instant::now());
    let mut before = start;
    while before - start < time {
        once()?;
        let now = Instant::now();
        times.push((now - before).as_secs_f64() * 1e6);
        before = now;
    }
    let (count, used) = (times.len() as u64, clock.stop()?);
    let measured = sample(count, before - start, used);
    let cpu_us = if pid.is_some() { measured.cpu_us } else { 0.0 };
    Ok(Sample { p50_us: median(times), cpu_us, ..measured })
}

/// A bridge with two taps, on which nothing is learnt by itself but addresses.
fn bridged() -> Result<(Link, Tap, Tap)> {
    let bridge = Link::bridge("bench-br", std::net::Ipv4Addr::new(192, 0, 2, 1))?;
    let (first, second) = (Tap::new("bench0", 1000)?, Tap::new("bench1", 1000)?);
    for tap in [&first, &second] {
        ip(&format!("link set {} master {}", tap.name, bridge.name()))?;
    }
    Ok((bridge, first, second))
}
