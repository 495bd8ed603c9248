//! The payload of an x86 bzImage (Linux `Documentation/arch/x86/boot.rst`), unpacked as a stream.
//!
//! The boot protocol has told where the payload is since version 2.08 (Linux 2.6.26). What follows it in the
//! bzImage, and the decompressor before it, are never run.

use std::io::{self, BufReader, Read};

use lzma_rust2::XzReader;
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::elf::Source;
use super::linux::SetupHeader;
use super::{BootError, Image, MAX_KERNEL, Section};

/// Fields of the setup header: where the payload is in the protected-mode part, and its bytes.
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version with `payload_offset` and `payload_length`.
const FIRST_VERSION: u16 = 0x0208;
/// Most memory for a decoder's window; kernels are packed with windows up to 128 MiB.
const MAX_WINDOW: u64 = 256 << 20;
/// Most bytes of one block of the legacy lz4 format, unpacked.
const LZ4_BLOCK: usize = 8 << 20;

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
    codec: &'static str,
    decoder: Box<dyn Read + 'a>,
    position: u64,
}

impl<'a> Payload<'a> {
    /// Finds the payload of the bzImage with this header, and its compression.
    pub fn open(image: &'a Image, header: &SetupHeader) -> Result<Self, BootError> {
        let start = (header.setup_sectors() + 1) * 512 + u64::from(header.word(PAYLOAD_OFFSET));
        let length = u64::from(header.word(PAYLOAD_LENGTH));
        image.check("its payload", start, length)?;
        if length < 16 {
            return Err(BootError::Payload(format!("only {length} bytes long")));
        }
        let mut magic = [0; 6];
        image.read_exact("its payload", start, &mut magic)?;
        let section = BufReader::with_capacity(64 << 10, image.section(start, start + length));
        let unpack = |codec| move |source| BootError::Unpack { codec, source };
        let (codec, decoder): (_, Box<dyn Read + 'a>) = match magic {
            [0xfd, b'7', b'z', b'X', b'Z', 0] => {
                let limit = (MAX_WINDOW >> 10) as u32;
                ("xz", Box::new(XzReader::new_mem_limit(section, false, limit)))
            }
            [0x28, 0xb5, 0x2f, 0xfd, ..] => {
                let mut frame = FrameDecoder::new();
                frame.set_max_window_size(MAX_WINDOW);
                let decoder = StreamingDecoder::new_with_decoder(section, frame);
                ("zstd", Box::new(Zstd(decoder.map_err(io::Error::other).map_err(unpack("zstd"))?)))
            }
            // The last four bytes are the size, which the kernel's build appends.
            [0x02, 0x21, 0x4c, 0x18, ..] => {
                ("lz4", Box::new(Lz4::new(image.section(start + 4, start + length - 4))))
            }
            [0x1f, 0x8b, ..] => return Err(BootError::Payload("packed with gzip".into())),
            [b'B', b'Z', b'h', ..] => return Err(BootError::Payload("packed with bzip2".into())),
            [0x5d, 0, 0, ..] => return Err(BootError::Payload("packed with lzma".into())),
            [0x89, b'L', b'Z', b'O', ..] => return Err(BootError::Payload("packed with lzo".into())),
            other => return Err(BootError::Payload(format!("of an unknown kind ({other:02x?})"))),
        };
        Ok(Self { codec, decoder, position: 0 })
    }

    /// Reads to the end, so that the decoder checks its checksum.
    pub fn finish(&mut self) -> Result<(), BootError> {
        let mut buffer = vec![0; 64 << 10];
        while self.read(&mut buffer)? > 0 {}
        Ok(())
    }

    fn read(&mut self, buffer: &mut [u8]) -> Result<usize, BootError> {
        let fail = |source| BootError::Unpack { codec: self.codec, source };
        let count = self.decoder.read(buffer).map_err(fail)?;
        self.position += count as u64;
        if self.position > MAX_KERNEL {
            return Err(fail(io::Error::other(format!("it unpacks to more than {} MiB", MAX_KERNEL >> 20))));
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
                return Err(BootError::Unpack { codec: self.codec, source });
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

/// A zstd frame whose checksum is compared at its end, which the decoder leaves to its caller.
struct Zstd<R: Read>(StreamingDecoder<R, FrameDecoder>);

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.0.read(buffer)?;
        let frame = &self.0.decoder;
        if count == 0
            && let Some(told) = frame.get_checksum_from_data()
            && frame.get_calculated_checksum() != Some(told)
        {
            return Err(io::Error::other("its checksum is wrong"));
        }
        Ok(count)
    }
}

/// The legacy lz4 format, as `lz4 -l` makes it: blocks of up to 8 MiB, each after its packed size.
struct Lz4<'a> {
    packed: Section<'a>,
    input: Vec<u8>,
    output: Vec<u8>,
    /// The part of `output` that has not been read yet.
    ready: std::ops::Range<usize>,
}

impl<'a> Lz4<'a> {
    fn new(packed: Section<'a>) -> Self {
        Self { packed, input: Vec::new(), output: vec![0; LZ4_BLOCK], ready: 0..0 }
    }

    /// Unpacks the next block; false at the end.
    fn next_block(&mut self) -> io::Result<bool> {
        if self.packed.next == self.packed.end {
            return Ok(false);
        }
        let mut size = [0; 4];
        self.packed.read_exact(&mut size)?;
        let size = u32::from_le_bytes(size) as usize;
        if size == 0 || size > lz4_flex::block::get_maximum_output_size(LZ4_BLOCK) {
            return Err(io::Error::other(format!("a block of {size} bytes")));
        }
        self.input.resize(size, 0);
        self.packed.read_exact(&mut self.input)?;
        let length =
            lz4_flex::block::decompress_into(&self.input, &mut self.output).map_err(io::Error::other)?;
        self.ready = 0..length;
        Ok(true)
    }
}

impl Read for Lz4<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            if !self.next_block()? {
                return Ok(0);
            }
        }
        let count = buffer.len().min(self.ready.len());
        let end = self.ready.start + count;
        buffer[..count].copy_from_slice(&self.output[self.ready.start..end]);
        self.ready.start = end;
        Ok(count)
    }
}
