//! The machine without its devices: memory map, ACPI tables, clocks, processors.

use crate::body::{Machine, Outcome, acpi::Acpi, arena, clock, ensure, irq, print, say, smp, sys};

/// Prints the loader's protocol and memory map; always holds.
pub fn info(machine: &Machine) -> Outcome {
    say!("value info protocol={:?}", machine.start.protocol);
    for range in machine.start.map() {
        say!("value info start={:#x} len={:#x} type={}", range.start, range.len, range.kind);
    }
    let acpi: &Acpi = &machine.acpi;
    say!(
        "value info sleep={:?} reset={:?} ecam={:x?} reduced={}",
        acpi.sleep,
        acpi.reset,
        acpi.ecam,
        acpi.reduced
    );
    Ok(())
}

/// ACPI is there, is whole, and can end this machine.
pub fn acpi(machine: &Machine) -> Outcome {
    let acpi = &machine.acpi;
    ensure!(acpi.sums.0 >= 4, "only {} ACPI tables were found", acpi.sums.0);
    ensure!(acpi.sums.1 == 0, "{} ACPI tables have a wrong checksum", acpi.sums.1);
    ensure!(acpi.cpu_count >= 1, "the MADT has no enabled processor");
    ensure!(acpi.sleep.is_some() || acpi.pm1a.is_some(), "the FADT has no way to sleep");
    ensure!(acpi.reset.is_some(), "the FADT has no reset register");
    Ok(())
}

/// kvm-clock and the TSC go on, together.
pub fn clock() -> Outcome {
    let Some(first) = clock::sample() else {
        ensure!(!clock::offered(), "kvm-clock is offered, but does not fill its page");
        say!("value clock kvm_clock=0");
        return Ok(());
    };
    let begin = sys::tsc();
    clock::spin(20_000);
    let second = clock::sample().unwrap_or(first);
    let now = sys::tsc();
    let (expected, seen) = (second.at(now), first.at(now));
    say!(
        "value clock kvm_clock=1 hz={} spun_ns={} drift_ns={}",
        first.hz(),
        clock::ns(now - begin),
        expected.abs_diff(seen)
    );
    ensure!(second.at(now) > first.at(begin), "kvm-clock went backwards");
    ensure!(
        expected.abs_diff(seen) < 1_000_000,
        "kvm-clock and the TSC disagree by {} ns",
        expected.abs_diff(seen)
    );
    Ok(())
}

/// Prints what CPUID says of virtualization and of the PMU, and that kvm-clock's leaf is there.
pub fn cpu() -> Outcome {
    let ([_, _, one, _], [_, _, extended, _]) = (sys::cpuid(1, 0), sys::cpuid(0x8000_0001, 0));
    let (vmx, svm) = (one >> 5 & 1, extended >> 2 & 1);
    let [svm_leaf, ..] = sys::cpuid(0x8000_000a, 0);
    let [pmu, ..] = sys::cpuid(0xa, 0);
    say!("value cpu vmx={vmx} svm={svm} svm_leaf={svm_leaf} pmu={} ecx1={one}", pmu & 0xff);
    ensure!(sys::cpuid(0x4000_0000, 0)[1] == u32::from_le_bytes(*b"KVMK"), "KVM's own leaf is not there");
    Ok(())
}

/// Reads the model-specific register `mini.msr`; one that is not there is a fault.
pub fn msr(machine: &Machine) -> Outcome {
    let index = machine.start.line.number("mini.msr").and_then(|index| u32::try_from(index).ok());
    ensure!(index.is_some(), "mini.msr names no register");
    let index = index.unwrap_or(0);
    let value = sys::rdmsr(index);
    say!("value msr index={index:#x} value={value:#x}");
    Ok(())
}

/// Every 2 MiB of RAM, above 4 GiB too, holds its own address.
pub fn memory(machine: &Machine) -> Outcome {
    const STEP: u64 = 2 << 20;
    const GIB: u64 = 1 << 30;
    // Page directories for what boot.S has not mapped: its identity map ends at 4 GiB.
    let (pml4, mut tables) = (0x1f_8000u64, 0u64);
    let pdpt = sys::read64(pml4) & !0xfff;
    let mut pages = 0u64;
    for pass in 0..2 {
        for range in machine.start.map().iter().filter(|r| r.kind == 1 && r.start >= 1 << 20) {
            let end = range.start + range.len;
            for at in (range.start.next_multiple_of(STEP)..end.saturating_sub(7)).step_by(STEP as usize) {
                if (sys::IMAGE.start..arena::end()).contains(&at) {
                    continue;
                }
                ensure!(at < 512 * GIB, "RAM at {at:#x} is beyond what this guest maps");
                let slot = pdpt + at / GIB * 8;
                if sys::read64(slot) == 0 {
                    let table = arena::alloc(4096, 4096);
                    for page in 0..512 {
                        sys::write64(table + page * 8, at / GIB * GIB + page * STEP + 0xe7);
                    }
                    sys::write64(slot, table + 0x27);
                    sys::flush_tlb();
                    tables += 1;
                }
                if pass == 0 {
                    sys::write64(at, at ^ machine.seed());
                    pages += 1;
                } else {
                    let seen = sys::read64(at);
                    ensure!(seen == at ^ machine.seed(), "RAM at {at:#x} holds {seen:#x}");
                }
            }
        }
    }
    // The tables are in the arena, which the next check empties.
    for slot in (4..512).map(|i| pdpt + i * 8).filter(|_| tables > 0) {
        if sys::read64(slot) != 0 {
            sys::write64(slot, 0);
        }
    }
    if tables > 0 {
        sys::flush_tlb();
    }
    say!("value memory pages={pages} above_4gib_tables={tables}");
    Ok(())
}

/// All processors of the MADT come up and work at the same time.
pub fn smp(machine: &Machine) -> Outcome {
    let cpus = machine.acpi.cpu_count as u32;
    let up = smp::start_all(machine);
    ensure!(up == cpus, "{up} of {cpus} processors came up");
    let begin = sys::tsc();
    let finished = smp::count_together();
    let counted = smp::COUNTER.load(core::sync::atomic::Ordering::SeqCst);
    say!("value smp cpus={cpus} counted={counted} ns={}", clock::ns(sys::tsc() - begin));
    ensure!(finished + 1 == cpus, "{} of {cpus} processors answered their interrupt", finished + 1);
    ensure!(counted == finished * 100_000, "{counted} is not {finished} times 100000");
    Ok(())
}

/// The local APIC's timer wakes a sleeping processor.
pub fn timer() -> Outcome {
    irq::tick(1_000_000);
    let begin = sys::tsc();
    let mut held = true;
    for _ in 0..20 {
        held &= irq::wait(irq::TIMER, irq::count(irq::TIMER), clock::deadline(1000));
    }
    irq::tick(0);
    let ns = clock::ns(sys::tsc() - begin);
    say!("value timer ticks=20 ns={ns}");
    ensure!(held, "the timer stopped");
    ensure!(ns > 10_000_000, "20 ticks of 1 ms took {ns} ns");
    Ok(())
}

/// COM1 raises IRQ 4: its transmitter-empty interrupt arrives through the IOAPIC.
pub fn uart() -> Outcome {
    irq::route(4, Some((irq::UART, irq::apic_id())));
    let before = irq::count(irq::UART);
    sys::outb(print::COM1 + 4, 0x08);
    sys::outb(print::COM1 + 1, 0x02);
    let deadline = clock::deadline(1000);
    while irq::count(irq::UART) == before && sys::tsc() < deadline {
        core::hint::spin_loop();
    }
    let came = irq::count(irq::UART) - before;
    sys::outb(print::COM1 + 1, 0);
    irq::route(4, None);
    say!("value uart interrupts={came}");
    ensure!(came > 0, "COM1 raised no interrupt within 1 s");
    Ok(())
}
