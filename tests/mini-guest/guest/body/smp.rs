//! The other processors: brought up by INIT/SIPI, then asleep in [`serve`] until they are given a function.

use super::{Machine, boot, clock, irq, say, sys};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

const MAX_CPUS: usize = 255;
type Work = fn(u32);

static IDS: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static UP: AtomicU32 = AtomicU32::new(1);
static GIVEN: [AtomicUsize; MAX_CPUS] = [const { AtomicUsize::new(0) }; MAX_CPUS];
static DONE: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
static TASKS: [Work; 4] = [nothing, count_up, super::hostile::rage, super::hostile::scribble];
/// The task that counts up.
const COUNT: usize = 1;
/// Tasks of [`super::hostile`].
pub const RAGE: usize = 2;
/// See [`RAGE`].
pub const SCRIBBLE: usize = 3;
static BEFORE: [AtomicU32; MAX_CPUS] = [const { AtomicU32::new(0) }; MAX_CPUS];
/// What [`count_up`] adds to.
pub static COUNTER: AtomicU32 = AtomicU32::new(0);

fn nothing(_cpu: u32) {}

fn count_up(_cpu: u32) {
    for _ in 0..100_000 {
        COUNTER.fetch_add(1, Ordering::Relaxed);
    }
}

/// How many CPUs run, this one included.
pub fn running() -> u32 {
    UP.load(Ordering::SeqCst)
}

/// What an application processor does for the rest of its life.
pub fn serve(cpu: u32) -> ! {
    let index = cpu as usize % MAX_CPUS;
    irq::enable_lapic();
    IDS[index].store(u32::from(irq::apic_id()), Ordering::SeqCst);
    UP.fetch_add(1, Ordering::SeqCst);
    let vector = irq::wake(index);
    loop {
        let seen = irq::count(vector);
        let task = GIVEN[index].swap(0, Ordering::SeqCst);
        if task == 0 {
            sys::sleep_unless_moved(&irq::COUNTS[usize::from(vector)], seen);
        } else {
            TASKS[task % TASKS.len()](cpu);
            DONE[index].fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Starts the CPUs with these APIC ids, all but the caller's own; returns how many came up in time.
///
/// `trampoline` runs in real mode at a page of its own below 640 KiB.
fn start(start: &boot::Start, trampoline: &[u8], ids: &[u8]) -> Result<u32, &'static str> {
    let page = (0x1000..0x9f000)
        .step_by(0x1000)
        .find(|&page| start.is_ram(page, 4096) && (0..512).all(|i| sys::read64(page + i * 8) == 0));
    let page = page.ok_or("no free page below 640 KiB for the AP trampoline")?;
    sys::put(page, trampoline);
    let own = irq::apic_id();
    for &id in ids.iter().filter(|&&id| id != own) {
        let before = running();
        irq::ipi(id, 0x4500);
        clock::spin(10_000);
        for _ in 0..2 {
            irq::ipi(id, 0x4600 | (page >> 12) as u32);
            let deadline = clock::deadline(500);
            while running() == before && sys::tsc() < deadline {
                core::hint::spin_loop();
            }
            if running() != before {
                break;
            }
        }
    }
    sys::fill(page, 4096, 0);
    Ok(running())
}

/// Starts whichever CPUs of the MADT do not run yet; returns how many run.
pub fn start_all(machine: &Machine) -> u32 {
    let ids = &machine.acpi.cpus[..machine.acpi.cpu_count];
    if running() < ids.len() as u32
        && let Err(reason) = start(&machine.start, machine.trampoline, ids)
    {
        say!("reason {reason}");
    }
    running()
}

/// Gives every other CPU a task of the table.
pub fn give(task: usize) {
    for cpu in 1..running() as usize {
        BEFORE[cpu].store(DONE[cpu].load(Ordering::SeqCst), Ordering::SeqCst);
        GIVEN[cpu].store(task, Ordering::SeqCst);
        let wake = u32::from(irq::wake(cpu));
        irq::ipi(IDS[cpu].load(Ordering::SeqCst) as u8, 0x4000 | wake);
    }
}

fn has_finished(cpu: usize) -> bool {
    DONE[cpu].load(Ordering::SeqCst) != BEFORE[cpu].load(Ordering::SeqCst)
}

/// Waits until `deadline` (TSC) for all of them to finish what was given last.
pub fn finished(deadline: u64) -> bool {
    loop {
        if (1..running() as usize).all(has_finished) {
            return true;
        }
        if sys::tsc() > deadline {
            return false;
        }
        core::hint::spin_loop();
    }
}

/// Lets every other CPU count up natively at once; returns how many finished within 5 s.
pub fn count_together() -> u32 {
    COUNTER.store(0, Ordering::SeqCst);
    give(COUNT);
    finished(clock::deadline(5000));
    (1..running() as usize).filter(|&cpu| has_finished(cpu)).count() as u32
}
