//! The compressions that Linux is packed with (`scripts/Makefile.lib`), each as a stream of what was packed.
//!
//! A decoder holds no more than its format's window and tables: at most [`MAX_WINDOW`]. What comes out of it is bounded
//! by whoever reads.

use std::io::{self, BufReader, Read};

use bzip2::bufread::BzDecoder;
use flate2::bufread::GzDecoder;
use lzma_rust2::{LzmaReader, XzReader};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::Section;

/// Most memory for a decoder's window; kernels are packed with windows up to 128 MiB.
const MAX_WINDOW: u64 = 256 << 20;
/// Most bytes of one block of the legacy lz4 format, unpacked.
const LZ4_BLOCK: usize = 8 << 20;
/// Most bytes of one block of lzop's format, unpacked: what lzop makes, and what Linux itself takes.
const LZO_BLOCK: usize = 256 << 10;

/// A compression.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// `gzip`.
    Gzip,
    /// `bzip2`.
    Bzip2,
    /// `lzma`: the format before `xz`, which has no checksum.
    Lzma,
    /// `xz`, with an x86 filter.
    Xz,
    /// `lzop`.
    Lzo,
    /// `lz4 -l`: the legacy format.
    Lz4,
    /// `zstd`.
    Zstd,
}

impl Codec {
    /// By the first bytes.
    pub fn of(magic: [u8; 6]) -> Option<Self> {
        match magic {
            [0x1f, 0x8b, ..] => Some(Self::Gzip),
            [b'B', b'Z', b'h', ..] => Some(Self::Bzip2),
            // The usual properties, and the lower half of a dictionary's size.
            [0x5d, 0, 0, ..] => Some(Self::Lzma),
            [0xfd, b'7', b'z', b'X', b'Z', 0] => Some(Self::Xz),
            [0x89, b'L', b'Z', b'O', ..] => Some(Self::Lzo),
            [0x02, 0x21, 0x4c, 0x18, ..] => Some(Self::Lz4),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            _ => None,
        }
    }

    /// What its tool is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// A stream of what was packed in `section`.
    ///
    /// # Errors
    /// If the beginning of it is not of this format, or asks for a larger window. The stream has errors of its own.
    pub fn decoder<'a>(self, section: Section<'a>) -> io::Result<Box<dyn Read + 'a>> {
        const LIMIT_KIB: u32 = (MAX_WINDOW >> 10) as u32;
        let buffered = |section| BufReader::with_capacity(64 << 10, section);
        Ok(match self {
            Self::Gzip => Box::new(GzDecoder::new(buffered(section))),
            Self::Bzip2 => Box::new(BzDecoder::new(buffered(section))),
            Self::Lzma => Box::new(LzmaReader::new_mem_limit(buffered(section), LIMIT_KIB, None)?),
            Self::Xz => Box::new(XzReader::new_mem_limit(buffered(section), false, LIMIT_KIB)),
            Self::Lzo => Box::new(Blocks::new(Lzo::open(buffered(section))?, LZO_BLOCK)),
            Self::Lz4 => Box::new(Blocks::new(Lz4::new(section), LZ4_BLOCK)),
            Self::Zstd => {
                let mut frame = FrameDecoder::new();
                frame.set_max_window_size(MAX_WINDOW);
                let decoder = StreamingDecoder::new_with_decoder(buffered(section), frame);
                Box::new(Zstd(decoder.map_err(io::Error::other)?))
            }
        })
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

/// A format of blocks that are unpacked one by one.
trait Unpack {
    /// Unpacks the next block into the buffer, which has room for the largest: its bytes, or none at the end.
    fn next(&mut self, block: &mut [u8]) -> io::Result<Option<usize>>;
}

/// Such a format as a stream.
struct Blocks<U> {
    format: U,
    block: Vec<u8>,
    /// The part of `block` that has not been read yet.
    ready: std::ops::Range<usize>,
}

impl<U> Blocks<U> {
    fn new(format: U, largest: usize) -> Self {
        Self { format, block: vec![0; largest], ready: 0..0 }
    }
}

impl<U: Unpack> Read for Blocks<U> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.ready.is_empty() {
            match self.format.next(&mut self.block)? {
                Some(length) => self.ready = 0..length,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.ready.len());
        let end = self.ready.start + count;
        buffer[..count].copy_from_slice(&self.block[self.ready.start..end]);
        self.ready.start = end;
        Ok(count)
    }
}

/// The legacy lz4 format: after a magic number, blocks of up to 8 MiB, each after its packed size.
struct Lz4<'a> {
    packed: Section<'a>,
    input: Vec<u8>,
}

impl<'a> Lz4<'a> {
    fn new(mut packed: Section<'a>) -> Self {
        // The magic number.
        packed.next += 4;
        Self { packed, input: Vec::new() }
    }
}

impl Unpack for Lz4<'_> {
    fn next(&mut self, block: &mut [u8]) -> io::Result<Option<usize>> {
        if self.packed.next == self.packed.end {
            return Ok(None);
        }
        let mut size = [0; 4];
        self.packed.read_exact(&mut size)?;
        let size = u32::from_le_bytes(size) as usize;
        if size == 0 || size > lz4_flex::block::get_maximum_output_size(LZ4_BLOCK) {
            return Err(io::Error::other(format!("a block of {size} bytes")));
        }
        self.input.resize(size, 0);
        self.packed.read_exact(&mut self.input)?;
        lz4_flex::block::decompress_into(&self.input, block).map(Some).map_err(io::Error::other)
    }
}

/// What lzop makes: a header, and blocks of up to 256 KiB, each after its sizes and checksums.
struct Lzo<R> {
    packed: R,
    input: Vec<u8>,
    /// Which checksums each block has.
    flags: u32,
}

impl<R: Read> Lzo<R> {
    /// Checksums of what was packed, and of what it was packed to.
    const ADLER32: u32 = 1;
    const ADLER32_PACKED: u32 = 1 << 1;
    const CRC32: u32 = 1 << 8;
    const CRC32_PACKED: u32 = 1 << 9;
    /// The header has one more word, and what was packed was changed before.
    const FILTER: u32 = 1 << 11;
    /// From this version on there are three more fields.
    const NEWER: u16 = 0x0940;

    /// Reads the header.
    fn open(packed: R) -> io::Result<Self> {
        let mut lzo = Self { packed, input: Vec::new(), flags: 0 };
        if lzo.bytes()? != *b"\x89LZO\0\r\n\x1a\n" {
            return Err(io::Error::other("a wrong magic number"));
        }
        let [high, low] = lzo.bytes()?;
        let newer = u16::from_be_bytes([high, low]) >= Self::NEWER;
        // The library's version, the version needed; the method, the level.
        let _: [u8; 2] = lzo.bytes()?;
        if newer {
            let _: [u8; 2] = lzo.bytes()?;
        }
        let [method] = lzo.bytes()?;
        if !(1..=3).contains(&method) {
            return Err(io::Error::other(format!("method {method}, which is none of LZO1X")));
        }
        if newer {
            let _: [u8; 1] = lzo.bytes()?;
        }
        lzo.flags = lzo.word()?;
        if lzo.flags & Self::FILTER != 0 {
            return Err(io::Error::other("a filter, which Linux is not packed with"));
        }
        // Mode and times.
        let _: [u8; 8] = lzo.bytes()?;
        if newer {
            let _: [u8; 4] = lzo.bytes()?;
        }
        let [name] = lzo.bytes()?;
        for _ in 0..name {
            let _: [u8; 1] = lzo.bytes()?;
        }
        // The header's checksum.
        lzo.word()?;
        Ok(lzo)
    }

    fn bytes<const N: usize>(&mut self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.packed.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn word(&mut self) -> io::Result<u32> {
        self.bytes().map(u32::from_be_bytes)
    }
}

impl<R: Read> Unpack for Lzo<R> {
    fn next(&mut self, block: &mut [u8]) -> io::Result<Option<usize>> {
        let length = self.word()? as usize;
        if length == 0 {
            return Ok(None);
        }
        let size = self.word()? as usize;
        let Some(block) = block.get_mut(..length).filter(|_| (1..=length).contains(&size)) else {
            return Err(io::Error::other(format!("a block of {size} bytes for {length}")));
        };
        let mut checksum = None;
        if self.flags & Self::ADLER32 != 0 {
            checksum = Some(self.word()?);
        }
        if self.flags & Self::CRC32 != 0 {
            self.word()?;
        }
        // What did not become smaller is there as it was.
        if size < length {
            for flag in [Self::ADLER32_PACKED, Self::CRC32_PACKED] {
                if self.flags & flag != 0 {
                    self.word()?;
                }
            }
            self.input.resize(size, 0);
            self.packed.read_exact(&mut self.input)?;
            let unpacked = lzo::decompress_into(&self.input, block).map_err(io::Error::other)?;
            if unpacked != length {
                return Err(io::Error::other(format!("a block of {unpacked} bytes in place of {length}")));
            }
        } else {
            self.packed.read_exact(block)?;
        }
        if checksum.is_some_and(|told| adler2::adler32_slice(block) != told) {
            return Err(io::Error::other("a block's checksum is wrong"));
        }
        Ok(Some(length))
    }
}
