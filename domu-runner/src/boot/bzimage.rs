//! The payload of an x86 bzImage (Linux `Documentation/arch/x86/boot.rst`), unpacked as a stream.
//!
//! The boot protocol has told where the payload is since version 2.08 (Linux 2.6.26). What follows it in the
//! bzImage, and the decompressor before it, are never run.

use std::io::{self, Read};

use super::codec::Codec;
use super::elf::Source;
use super::linux::SetupHeader;
use super::{BootError, Image, Keep, MAX_KERNEL, Unpacked};

/// Fields of the setup header: where the payload is in the protected-mode part, and its bytes.
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version with `payload_offset` and `payload_length`.
const FIRST_VERSION: u16 = 0x0208;

/// The setup header. `first` are the file's first bytes, for the error.
pub fn header(image: &Image, first: [u8; 4]) -> Result<SetupHeader, BootError> {
    const WHAT: &str = "its setup header";
    let mut file = [0; SetupHeader::LENGTH];
    image.check(WHAT, 0, file.len() as u64).map_err(|error| {
        // Too short for a bzImage, and nothing says that it is one.
        if image.size < 0x206 { BootError::NoKernel(first) } else { error }
    })?;
    image.read_exact(WHAT, 0, &mut file)?;
    let header = SetupHeader::of_bzimage(file).ok_or(BootError::NoKernel(first))?;
    let version = header.version();
    if version < FIRST_VERSION {
        let old = format!("of boot protocol {}.{:02}, before 2.08", version >> 8, version & 0xff);
        return Err(BootError::Payload(old));
    }
    Ok(header)
}

/// A kernel that comes out of a decoder, read forwards.
pub struct Payload<'a> {
    codec: Codec,
    decoder: Box<dyn Read + 'a>,
    position: u64,
    /// What it unpacks to, modulo 4 GiB.
    size: Option<u32>,
    keep: Option<&'a mut Keep>,
}

impl<'a> Payload<'a> {
    /// Finds the payload of the bzImage with this header, and its compression.
    pub fn open(
        image: &'a Image,
        header: &SetupHeader,
        unpacked: &'a mut Unpacked,
    ) -> Result<Self, BootError> {
        let start = (header.setup_sectors() + 1) * 512 + u64::from(header.word(PAYLOAD_OFFSET));
        let length = u64::from(header.word(PAYLOAD_LENGTH));
        image.check("its payload", start, length)?;
        if length < 16 {
            return Err(BootError::Payload(format!("only {length} bytes long")));
        }
        let mut magic = [0; 6];
        image.read_exact("its payload", start, &mut magic)?;
        let codec = Codec::of(magic)
            .ok_or_else(|| BootError::Payload(format!("of an unknown kind ({magic:02x?})")))?;
        // All but gzip, whose format has it, are followed by the size, which the kernel's build appends.
        let (end, size) = if codec == Codec::Gzip {
            (start + length, None)
        } else {
            let mut size = [0; 4];
            image.read_exact("its payload", start + length - 4, &mut size)?;
            (start + length - 4, Some(u32::from_le_bytes(size)))
        };
        let decoder = codec.decoder(image.section(start, end));
        let decoder = decoder.map_err(|source| BootError::Unpack { codec: codec.name(), source })?;
        let keep = if let Unpacked::Keep(keep) = unpacked { Some(keep) } else { None };
        Ok(Self { codec, decoder, position: 0, size, keep })
    }

    /// Reads to the end, so that the decoder checks its checksum.
    pub fn finish(&mut self) -> Result<(), BootError> {
        let mut buffer = vec![0; 64 << 10];
        while self.read(&mut buffer)? > 0 {}
        match self.size {
            Some(size) if size != self.position as u32 => {
                let text =
                    format!("it unpacks to {} bytes, and ends with {size} for their number", self.position);
                Err(self.broken(io::Error::other(text)))
            }
            _ => {
                if let Some(keep) = &mut self.keep {
                    keep.finish();
                }
                Ok(())
            }
        }
    }

    fn broken(&self, source: io::Error) -> BootError {
        BootError::Unpack { codec: self.codec.name(), source }
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BootError> {
        let count = self.decoder.read(buffer).map_err(|source| self.broken(source))?;
        self.position += count as u64;
        if self.position > MAX_KERNEL {
            let text = format!("it unpacks to more than {} MiB", MAX_KERNEL >> 20);
            return Err(self.broken(io::Error::other(text)));
        }
        if let Some(keep) = &mut self.keep {
            keep.write(&buffer[..count]);
        }
        Ok(count)
    }

    fn fill(&mut self, mut buffer: &mut [u8]) -> Result<(), BootError> {
        while !buffer.is_empty() {
            let count = self.read(buffer)?;
            if count == 0 {
                let source = io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "its kernel is shorter than its ELF headers say",
                );
                return Err(self.broken(source));
            }
            buffer = &mut buffer[count..];
        }
        Ok(())
    }
}

impl Source for Payload<'_> {
    fn read_at(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), BootError> {
        if offset < self.position {
            return Err(BootError::Elf("segments are not in the order of the file".into()));
        }
        let mut skipped = [0; 4096];
        while self.position < offset {
            let piece = skipped.len().min(usize::try_from(offset - self.position).unwrap_or(skipped.len()));
            self.fill(&mut skipped[..piece])?;
        }
        self.fill(buffer)
    }
}
