//! Kernels of a few bytes: an ELF file with a PVH entry that prints a line and then does one thing.
//!
//! Most of the code means the same in 32-bit and in 64-bit mode, so that it boots by Linux's protocol, too.

/// Where the code is loaded and entered.
pub const START: u32 = 0x10_0000;

/// What a kernel does after its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "unit tests and integration tests use different ones")]
pub enum Then {
    /// Soft-off through the sleep control register.
    PowerOff,
    /// The FADT's reset register.
    ResetRegister,
    /// 0xfe to port 0x64.
    KeyboardReset,
    /// A fault without an IDT.
    TripleFault,
    /// Prints its first five bytes again with one string instruction, then soft-off.
    Echo,
    /// An endless loop.
    Spin,
}

/// An ELF file of the kernel that prints `line` to COM1, then does `then`.
pub fn elf(line: &str, then: Then) -> Vec<u8> {
    file(&program(line, then), START, START)
}

/// An ELF file of one segment at `address`, with a note that names `entry`.
pub fn file(code: &[u8], address: u32, entry: u32) -> Vec<u8> {
    const HEADERS: u64 = 64 + 2 * 56;
    const NOTE: u64 = 20;
    let note = [4, 4, 18, u32::from_le_bytes(*b"Xen\0"), entry].map(u32::to_le_bytes).concat();
    let size = NOTE + code.len() as u64;
    let mut elf = b"\x7fELF\x02\x01\x01".to_vec();
    elf.resize(16, 0);
    // An executable for x86-64, version 1.
    elf.extend([2u16, 62, 1, 0].map(u16::to_le_bytes).concat());
    elf.extend([u64::from(entry), 64, 0].map(u64::to_le_bytes).concat());
    elf.extend([0u16, 0, 64, 56, 2, 0, 0, 0].map(u16::to_le_bytes).concat());
    // The segment holds the code and then the note, which a second header names.
    let code_size = code.len() as u64;
    for (kind, offset, at, length) in [
        (1u64 | 7 << 32, HEADERS, u64::from(address), size),
        (4 | 4 << 32, HEADERS + code_size, u64::from(address) + code_size, NOTE),
    ] {
        elf.extend([kind, offset, at, at, length, length, 1].map(u64::to_le_bytes).concat());
    }
    elf.extend(code);
    elf.extend(note);
    elf
}

/// The same file without its PVH note.
#[allow(dead_code, reason = "unit tests and integration tests use different ones")]
pub fn without_note(mut elf: Vec<u8>) -> Vec<u8> {
    // The type of the second program header: PT_NULL.
    elf[64 + 56] = 0;
    elf
}

/// 32-bit code for [`START`].
fn program(line: &str, then: Then) -> Vec<u8> {
    const OUT: u8 = 0xee;
    let mut code = vec![0x66, 0xba, 0xf8, 0x03]; // mov $0x3f8, %dx
    for byte in line.bytes() {
        code.extend([0xb0, byte, OUT]); // mov $byte, %al; out %al, (%dx)
    }
    let off = [0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, OUT]; // mov $0x600, %dx; mov $0x34, %al; out
    match then {
        Then::PowerOff => code.extend(off),
        Then::ResetRegister => code.extend([0x66, 0xba, 0x02, 0x06, 0xb0, 0x01, OUT]),
        Then::KeyboardReset => code.extend([0xb0, 0xfe, 0xe6, 0x64]), // mov $0xfe, %al; out %al, $0x64
        Then::TripleFault => {
            // lidt of six zero bytes, which 0x1000 holds; int3
            code.extend([0x0f, 0x01, 0x1d, 0x00, 0x10, 0x00, 0x00, 0xcc]);
        }
        Then::Echo => {
            // mov $5 bytes after START, %esi: the immediates of the first instructions; mov $5, %ecx; rep outsb
            code.push(0xbe);
            code.extend((START + 4).to_le_bytes());
            code.extend([0xb9, 5, 0, 0, 0, 0xf3, 0x6e]);
            code.extend(off);
        }
        Then::Spin => {}
    }
    code.extend([0xeb, 0xfe]); // 1: jmp 1b
    code
}
