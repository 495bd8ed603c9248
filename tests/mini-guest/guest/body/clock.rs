//! Time: kvm-clock gives the TSC's scale (Linux Documentation/virt/kvm/x86/msr.rst), the TSC is the clock.

use super::{arena, sys};
use core::sync::atomic::{AtomicU64, Ordering};

const SYSTEM_TIME_NEW: u32 = 0x4b56_4d01;
static HZ: AtomicU64 = AtomicU64::new(0);

/// A kvm-clock page (`pvclock_vcpu_time_info`), read once, consistently.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    /// TSC when the page was written.
    pub tsc: u64,
    /// Nanoseconds then.
    pub ns: u64,
    /// Nanoseconds per tick, as a fraction of 2^32, after `shift`.
    pub mul: u32,
    /// Binary shift of a tick count, before `mul`.
    pub shift: i8,
}

impl Sample {
    /// Nanoseconds on kvm-clock at `tsc`.
    pub fn at(&self, tsc: u64) -> u64 {
        let ticks = u128::from(tsc.saturating_sub(self.tsc));
        let scaled = if self.shift >= 0 { ticks << self.shift } else { ticks >> -i32::from(self.shift) };
        self.ns + ((scaled * u128::from(self.mul)) >> 32) as u64
    }

    /// Ticks of the TSC in a second.
    pub fn hz(&self) -> u64 {
        if self.mul == 0 {
            return 0;
        }
        let hz = (1_000_000_000u128 << 32) / u128::from(self.mul);
        (if self.shift >= 0 { hz >> self.shift } else { hz << -i32::from(self.shift) }) as u64
    }
}

/// Whether the hypervisor offers kvm-clock (CPUID 0x4000_0001, bit 3).
pub fn offered() -> bool {
    let [_, b, c, d] = sys::cpuid(0x4000_0000, 0);
    let name = [b, c, d].map(u32::to_le_bytes);
    name == [*b"KVMK", *b"VMKV", *b"M\0\0\0"] && sys::cpuid(0x4000_0001, 0)[0] & 8 != 0
}

/// Reads kvm-clock once; `None` where it is not offered or does not fill its page.
pub fn sample() -> Option<Sample> {
    if !offered() {
        return None;
    }
    let page = arena::alloc(64, 64);
    sys::wrmsr(SYSTEM_TIME_NEW, page | 1);
    let mut sample = None;
    for _ in 0..1000 {
        let version = sys::read32(page);
        let read = Sample {
            tsc: sys::read64(page + 8),
            ns: sys::read64(page + 16),
            mul: sys::read32(page + 24),
            shift: sys::read8(page + 28) as i8,
        };
        if version != 0 && version & 1 == 0 && version == sys::read32(page) {
            sample = Some(read);
            break;
        }
    }
    sys::wrmsr(SYSTEM_TIME_NEW, 0);
    sample
}

/// Learns the TSC's rate: kvm-clock, else CPUID 0x15/0x16, else a guess of 2 GHz (time-outs only).
pub fn init() -> &'static str {
    let (hz, from) = match sample().map(|s| s.hz()) {
        Some(hz) if hz > 0 => (hz, "kvm-clock"),
        _ => (2_000_000_000, "guess"),
    };
    HZ.store(hz, Ordering::Relaxed);
    from
}

/// Ticks of the TSC in a second.
pub fn hz() -> u64 {
    HZ.load(Ordering::Relaxed).max(1)
}

/// Nanoseconds that `ticks` last.
pub fn ns(ticks: u64) -> u64 {
    (u128::from(ticks) * 1_000_000_000 / u128::from(hz())) as u64
}

/// The TSC `ms` milliseconds from now.
pub fn deadline(ms: u64) -> u64 {
    sys::tsc().saturating_add(hz() / 1000 * ms)
}

/// Spins for `us` microseconds.
pub fn spin(us: u64) {
    let end = sys::tsc() + hz() / 1_000_000 * us;
    while sys::tsc() < end {
        core::hint::spin_loop();
    }
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn pvclock_scale_converts_both_ways() {
        let sample = Sample { tsc: 1000, ns: 5, mul: 1 << 31, shift: 0 };
        assert_eq!(sample.at(3000), 1005);
        assert_eq!(sample.hz(), 2_000_000_000);
        let shifted = Sample { shift: -1, mul: 0xffff_ffff, ..sample };
        assert_eq!(shifted.hz(), 2_000_000_000);
        assert_eq!(shifted.at(1000), 5);
    }
}
