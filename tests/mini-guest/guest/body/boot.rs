//! What the loader says: PVH's `hvm_start_info` version 1 (Xen public/arch-x86/hvm/start_info.h), or Linux's zero page
//! (Documentation/arch/x86/zero-page.rst).

use super::sys;

const MAGIC: u32 = 0x336e_c578;
/// "HdrS", at 0x202 of a zero page.
const LINUX_MAGIC: u32 = u32::from_le_bytes(*b"HdrS");
const TEXT: usize = 1024;

/// The kernel command line, as words of `key=value`.
pub struct CommandLine {
    text: [u8; TEXT],
    len: usize,
}

impl CommandLine {
    /// Takes at most 1 KiB of a command line; bytes that are not ASCII become `?`.
    pub fn new(bytes: impl Iterator<Item = u8>) -> Self {
        let mut line = Self { text: [0; TEXT], len: 0 };
        for byte in bytes.take(TEXT) {
            line.text[line.len] = if byte.is_ascii() { byte } else { b'?' };
            line.len += 1;
        }
        line
    }

    /// The whole line.
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.text[..self.len]).unwrap_or("")
    }

    /// The value of the last `key=value`.
    pub fn value(&self, key: &str) -> Option<&str> {
        self.as_str()
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .rfind(|(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// A number, decimal or `0x` hexadecimal.
    pub fn number(&self, key: &str) -> Option<u64> {
        let text = self.value(key)?;
        match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        }
    }
}

/// One range of the memory map. Types are E820's: 1 is RAM.
#[derive(Clone, Copy)]
pub struct Range {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// E820 type.
    pub kind: u32,
}

/// Which protocol the loader spoke.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Protocol {
    /// With an `hvm_start_info`.
    Pvh,
    /// With a zero page.
    Linux,
}

/// What the loader said.
pub struct Start {
    /// How it said it.
    pub protocol: Protocol,
    /// Kernel command line.
    pub line: CommandLine,
    /// Physical address of ACPI's RSDP.
    pub rsdp: u64,
    map: [Range; 32],
    ranges: usize,
}

impl Start {
    /// Reads the `hvm_start_info` or the zero page at `addr`, or says that nothing like them is there.
    pub fn read(addr: u64) -> Result<Self, &'static str> {
        if sys::read32(addr) == MAGIC {
            if sys::read32(addr + 4) < 1 {
                return Err("hvm_start_info is version 0: no memory map");
            }
            let (text, rsdp) = (sys::read64(addr + 24), sys::read64(addr + 32));
            let (table, count) = (sys::read64(addr + 40), sys::read32(addr + 48) as usize);
            Ok(Self::new(Protocol::Pvh, text, rsdp, (table, count, 24)))
        } else if sys::read32(addr + 0x202) == LINUX_MAGIC {
            let (text, rsdp) = (sys::read32(addr + 0x228).into(), sys::read64(addr + 0x70));
            let (table, count) = (addr + 0x2d0, sys::read8(addr + 0x1e8).into());
            Ok(Self::new(Protocol::Linux, text, rsdp, (table, count, 20)))
        } else {
            Err("neither EBX points to an hvm_start_info nor RSI to a zero page")
        }
    }

    /// The memory map is a table of so many entries of so many bytes.
    fn new(protocol: Protocol, text: u64, rsdp: u64, (table, count, size): (u64, usize, u64)) -> Self {
        let bytes = (0..).map(|i| sys::read8(text + i)).take_while(|&byte| byte != 0);
        let line = CommandLine::new(bytes.take(if text == 0 { 0 } else { TEXT }));
        let mut map = [Range { start: 0, len: 0, kind: 0 }; 32];
        let ranges = count.min(map.len());
        let long = |at| u64::from(sys::read32(at)) | u64::from(sys::read32(at + 4)) << 32;
        for (entry, i) in map.iter_mut().zip(0..ranges as u64) {
            let at = table + i * size;
            *entry = Range { start: long(at), len: long(at + 8), kind: sys::read32(at + 16) };
        }
        Self { protocol, line, rsdp, map, ranges }
    }

    /// The memory map.
    pub fn map(&self) -> &[Range] {
        &self.map[..self.ranges]
    }

    /// Whether all of this is RAM, by one entry of the map.
    pub fn is_ram(&self, start: u64, len: u64) -> bool {
        self.map().iter().any(|r| r.kind == 1 && r.start <= start && start + len <= r.start + r.len)
    }

    /// Bytes of RAM.
    pub fn ram(&self) -> u64 {
        self.map().iter().filter(|r| r.kind == 1).map(|r| r.len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_of_repeated_keys_wins_and_numbers_come_in_two_bases() {
        let line = CommandLine::new("mini.test=a mini.seed=0x10 mini.test=b,c".bytes());
        assert_eq!(line.value("mini.test"), Some("b,c"));
        assert_eq!(line.number("mini.seed"), Some(16));
        assert_eq!(line.number("mini.test"), None);
        assert_eq!(line.value("mini"), None);
    }
}
