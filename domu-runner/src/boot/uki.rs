//! Unified kernel images (UAPI group, "Unified Kernel Image"): a PE file whose sections hold a kernel, and may hold an
//! initrd and a command line. The stub in it, which firmware would run, is not.
//!
//! Of an image with profiles it is the first one, number 0, that counts. What else may be in it is for firmware
//! (`.sbat`, `.dtb`), for the host (`.ucode`) or for the eye (`.splash`): it is left alone.

use shared_abi::limits::MAX_CMDLINE;

use super::{BootError, Image};

/// Most sections looked at; the format allows 96.
const MAX_SECTIONS: u16 = 96;
const DOS_HEADER: usize = 64;
/// Where the DOS header says where the PE header is.
const PE_OFFSET: usize = 0x3c;
/// Signature and COFF header (PE format, "COFF File Header").
const PE_HEADER: usize = 24;
const SECTION_HEADER: usize = 40;
/// `IMAGE_FILE_MACHINE_AMD64`.
const AMD64: u16 = 0x8664;
/// Most bytes of a section that holds a command line: firmware's stubs leave white space around it.
const MAX_SECTION: u64 = 16 << 10;

/// What is in one.
pub struct Uki {
    /// The kernel.
    pub kernel: Image,
    /// The initial RAM disk.
    pub initrd: Option<Image>,
    /// The command line, at most [`MAX_CMDLINE`] bytes without a NUL.
    pub cmdline: Option<Vec<u8>>,
}

/// Sections of one name: that of the whole image, and that of its first profile, which goes before.
#[derive(Default)]
struct Found {
    base: Option<(u64, u64)>,
    profile: Option<(u64, u64)>,
}

impl Uki {
    /// Looks for one in `image`; none if it is not a PE file, or has no kernel in it. A bzImage is a PE file, too.
    ///
    /// # Errors
    /// [`BootError`] if it is one and cannot be used.
    pub fn open(image: &Image) -> Result<Option<Self>, BootError> {
        let Some((machine, headers)) = sections(image)? else { return Ok(None) };
        let [mut linux, mut initrd, mut cmdline] = [(); 3].map(|()| Found::default());
        let mut profiles = 0;
        for header in headers.chunks_exact(SECTION_HEADER) {
            let name = header[..8].split(|byte| *byte == 0).next().unwrap_or(&[]);
            let found = match name {
                b".profile" => {
                    profiles += 1;
                    continue;
                }
                b".linux" => &mut linux,
                b".initrd" => &mut initrd,
                b".cmdline" => &mut cmdline,
                _ => continue,
            };
            // The file has it in whole blocks, memory as long as it is; an old tool leaves that out.
            let (memory, file) = (word(header, 8), word(header, 16));
            let length = if memory == 0 { file } else { memory.min(file) };
            let place = match profiles {
                0 => &mut found.base,
                1 => &mut found.profile,
                _ => continue,
            };
            place.get_or_insert((word(header, 20).into(), length.into()));
        }
        let part = |what, found: Found| {
            let part = found.profile.or(found.base);
            part.map(|(start, length)| image.part(what, start, length)).transpose()
        };
        let Some(kernel) = part("its section .linux", linux)? else { return Ok(None) };
        if machine != AMD64 {
            return Err(BootError::Uki(format!("is for machine {machine:#x}, not for x86-64 ({AMD64:#x})")));
        }
        let cmdline = part("its section .cmdline", cmdline)?.map(|section| text(&section)).transpose()?;
        Ok(Some(Self { kernel, initrd: part("its section .initrd", initrd)?, cmdline }))
    }
}

/// The machine and the section headers of a PE file.
fn sections(image: &Image) -> Result<Option<(u16, Vec<u8>)>, BootError> {
    const WHAT: &str = "its PE header";
    let mut dos = [0; DOS_HEADER];
    if image.size < dos.len() as u64 {
        return Ok(None);
    }
    image.read_exact(WHAT, 0, &mut dos)?;
    let at = u64::from(word(&dos, PE_OFFSET));
    let mut pe = [0; PE_HEADER];
    // A bzImage without an EFI stub has code here.
    if !dos.starts_with(b"MZ") || image.check(WHAT, at, pe.len() as u64).is_err() {
        return Ok(None);
    }
    image.read_exact(WHAT, at, &mut pe)?;
    let short = |at: usize| u16::from_le_bytes([pe[at], pe[at + 1]]);
    let (machine, count, optional) = (short(4), short(6), short(20));
    if !pe.starts_with(b"PE\0\0") || count > MAX_SECTIONS {
        return Ok(None);
    }
    let mut headers = vec![0; SECTION_HEADER * usize::from(count)];
    image.read_exact(WHAT, at + pe.len() as u64 + u64::from(optional), &mut headers)?;
    Ok(Some((machine, headers)))
}

/// A command line as systemd's stub passes it on: up to a NUL, with spaces for control characters, and none around it.
fn text(section: &Image) -> Result<Vec<u8>, BootError> {
    if section.size > MAX_SECTION {
        return Err(too_long(section.size));
    }
    let mut text = vec![0; section.size as usize];
    section.read_exact("its section .cmdline", 0, &mut text)?;
    let text = text.split(|byte| *byte == 0).next().unwrap_or(&[]);
    let text: Vec<u8> = text.iter().map(|byte| if byte.is_ascii_control() { b' ' } else { *byte }).collect();
    let text = text.trim_ascii();
    if text.len() > MAX_CMDLINE { Err(too_long(text.len() as u64)) } else { Ok(text.to_vec()) }
}

fn too_long(length: u64) -> BootError {
    BootError::Uki(format!("has a command line of {length} bytes, and at most {MAX_CMDLINE} are possible"))
}

/// The 32-bit field at an offset within `bytes`, or 0 beyond.
fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}
