//! The guest proper, in ring 3: reads its command line, runs the checks it names, reports on COM1, ends as told.
//!
//! Command line: `mini.test=NAME[,NAME…]` (or `mini.test=shell`: one such list per line from COM1), `mini.end=HOW`
//! (see [`end`]), `mini.buttons=PORT` (see `shell`), `mini.seed=N`, `mini.rounds=N`, and what single checks read.
//!
//! Report, one line each, all beginning with `mini: `: `hello …`, then for each check `begin NAME`, any number of
//! `value NAME key=value…`, `reason …`, and `ok NAME` or `fail NAME`; at last `done passed=N failed=N` and `end HOW`.
//! A panic or a processor fault is `panic …` or `fault …`, and the end.

pub mod acpi;
pub mod arena;
pub mod blk;
pub mod boot;
pub mod checks;
pub mod clock;
pub mod end;
pub mod hostile;
pub mod irq;
pub mod net;
pub mod pci;
pub mod print;
pub mod ring;
pub mod rng;
pub mod smp;
pub mod sys;
pub mod virtio;

pub(crate) use print::{ensure, say};

use core::panic::PanicInfo;
use core::sync::atomic::{AtomicU64, Ordering};

/// A check did not hold; its reason has been printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failed;

/// How a check ends.
pub type Outcome = Result<(), Failed>;

/// What every check may look at.
pub struct Machine {
    /// The loader's word.
    pub start: boot::Start,
    /// The firmware's word.
    pub acpi: acpi::Acpi,
    /// Code for application processors.
    pub trampoline: &'static [u8],
    /// The last word of the stack: 0 while the stack has never been full.
    pub floor: &'static AtomicU64,
}

impl Machine {
    /// `mini.seed`, 1 if not given.
    pub fn seed(&self) -> u64 {
        self.start.line.number("mini.seed").unwrap_or(1)
    }

    /// `mini.rounds`, `default` if not given.
    pub fn rounds(&self, default: u64) -> u64 {
        self.start.line.number("mini.rounds").unwrap_or(default)
    }
}

/// The boot processor's life.
pub fn run(start_info: u64, trampoline: &'static [u8], floor: &'static AtomicU64) -> ! {
    let start = match boot::Start::read(start_info) {
        Ok(start) => start,
        Err(reason) => {
            say!("panic {reason}");
            sys::halt()
        }
    };
    if let Err(reason) = arena::init(&start) {
        say!("panic {reason}");
        sys::halt()
    }
    let clock = clock::init();
    irq::enable_lapic();
    let acpi = acpi::Acpi::read(start.rsdp);
    pci::init(acpi.ecam, start.line.number("mini.window"));
    say!(
        "hello ram={} cpus={} clock={clock} tsc_hz={} cmdline={}",
        start.ram(),
        acpi.cpu_count,
        clock::hz(),
        start.line.as_str()
    );
    let machine = Machine { start, acpi, trampoline, floor };
    let how = machine.start.line.value("mini.end").unwrap_or("poweroff");
    let tests = machine.start.line.value("mini.test").unwrap_or("");
    let mut score = Score::default();
    if tests == "shell" {
        shell(&machine, &mut score);
    } else {
        score.run(&machine, tests);
    }
    say!("done passed={} failed={}", score.passed, score.failed);
    end::end(how, &machine.acpi)
}

/// Runs the list of checks on each line that arrives on COM1, until `quit`, or ends at once with `end HOW`.
///
/// The guest sleeps between lines, and reports a break and the key after it. With `mini.buttons=PORT` it reads that
/// register ten times a second: bit 0, the power button, has the effect of `quit`.
fn shell(machine: &Machine, score: &mut Score) {
    let buttons = machine.start.line.number("mini.buttons").and_then(|port| u16::try_from(port).ok());
    let mut line = [0u8; 256];
    loop {
        print::interrupts(true);
        irq::tick(if buttons.is_some() { 100_000_000 } else { 0 });
        say!("ready");
        let mut len = 0;
        loop {
            if print::breaks() {
                let zero = print::receive();
                say!("break {zero:?} key {:?}", print::receive().map(char::from));
            }
            let seen = [irq::count(irq::UART), irq::count(irq::TIMER)];
            match print::receive() {
                None if buttons.is_some_and(|port| sys::inb(port) & 1 != 0) => return,
                None => irq::wait_either(irq::UART, irq::TIMER, seen),
                Some(b'\n' | b'\r') => break,
                Some(byte) if len < line.len() => {
                    line[len] = byte;
                    len += 1;
                }
                Some(_) => {}
            }
        }
        irq::tick(0);
        print::interrupts(false);
        match core::str::from_utf8(&line[..len]).unwrap_or("").trim() {
            "" => {}
            "quit" => return,
            text => match text.strip_prefix("end ") {
                Some(how) => end::end(how, &machine.acpi),
                None => score.run(machine, text),
            },
        }
    }
}

/// How many checks held.
#[derive(Default)]
struct Score {
    passed: u32,
    failed: u32,
}

impl Score {
    fn run(&mut self, machine: &Machine, names: &str) {
        for name in names.split(',').filter(|name| !name.is_empty()) {
            say!("begin {name}");
            arena::clear();
            match checks::run(machine, name) {
                Ok(()) => {
                    self.passed += 1;
                    say!("ok {name}");
                }
                Err(Failed) => {
                    self.failed += 1;
                    say!("fail {name}");
                }
            }
            assert!(machine.floor.load(Ordering::Relaxed) == 0, "the stack has overflowed");
        }
    }
}

/// Where ring 0 sends a CPU that faulted.
pub extern "C" fn fault(vector: u64, code: u64, rip: u64, cr2: u64) -> ! {
    say!("fault vector={vector} code={code:#x} rip={rip:#x} cr2={cr2:#x}");
    sys::halt()
}

/// Where panics go.
pub fn died(info: &PanicInfo) -> ! {
    match info.location() {
        Some(at) => say!("panic {} at {}:{}", info.message(), at.file(), at.line()),
        None => say!("panic {}", info.message()),
    }
    sys::halt()
}
