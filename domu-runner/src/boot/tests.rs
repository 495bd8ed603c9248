//! Kernels in every form, whole and broken, into guest memory.

use std::io::{Seek, Write};

use domus_startup::memfd;
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use proptest::prelude::*;

use super::*;

#[path = "../../tests/kernel/mod.rs"]
mod kernel;

use kernel::{START, Then};

fn image(bytes: &[u8]) -> Image {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    // Wherever the descriptor's position is, the file is read from its beginning.
    file.seek(io::SeekFrom::End(0)).unwrap();
    Image::new(StartPart::Kernel, file).unwrap()
}

fn load(
    ram: &GuestRam,
    kernel: &Image,
    initrd: Option<&Image>,
    cmdline: &str,
    vcpus: u8,
) -> Result<Entry, BootError> {
    let (kernel, initrd) = (kernel.clone(), initrd.cloned());
    Boot { kernel, initrd, cmdline: cmdline.into(), yields: false, unpacked: Unpacked::Unknown }
        .load(ram, vcpus)
}

fn load_bytes(bytes: &[u8]) -> Result<Entry, BootError> {
    load(&GuestRam::new(16 << 20).unwrap(), &image(bytes), None, "quiet", 1)
}

/// A bzImage of boot protocol 2.15 around a payload.
fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SETUP_SECTORS: u8 = 3;
    const OFFSET: u32 = 0x20;
    let mut file = vec![0; (usize::from(SETUP_SECTORS) + 1) * 512 + OFFSET as usize];
    file[0x1f1] = SETUP_SECTORS;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x248..0x24c].copy_from_slice(&OFFSET.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    // Up to 0x268, and the initrd below 2 GiB.
    file[0x201] = 0x66;
    file[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    file.extend_from_slice(payload);
    file
}

/// What follows every payload but gzip's: the unpacked size.
fn with_size(mut payload: Vec<u8>, vmlinux: &[u8]) -> Vec<u8> {
    payload.extend((vmlinux.len() as u32).to_le_bytes());
    payload
}

fn xz(bytes: &[u8]) -> Vec<u8> {
    let mut options = lzma_rust2::XzOptions::with_preset(0);
    options.prepend_pre_filter(lzma_rust2::filter::FilterType::BcjX86, 0);
    let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    ruzstd::encoding::compress_to_vec(bytes, ruzstd::encoding::CompressionLevel::Fastest)
}

fn lz4(bytes: &[u8]) -> Vec<u8> {
    let mut packed = 0x184c_2102u32.to_le_bytes().to_vec();
    for block in bytes.chunks(8 << 20) {
        let block = lz4_flex::block::compress(block);
        packed.extend((block.len() as u32).to_le_bytes());
        packed.extend(block);
    }
    packed
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

fn bzip2(bytes: &[u8]) -> Vec<u8> {
    let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// With an end marker in place of the size, as from a pipe.
fn lzma(bytes: &[u8]) -> Vec<u8> {
    let options = lzma_rust2::LzmaOptions::with_preset(0);
    let mut writer = lzma_rust2::LzmaWriter::new_use_header(Vec::new(), &options, None).unwrap();
    writer.write_all(bytes).unwrap();
    writer.finish().unwrap()
}

/// As lzop makes it, but that a block which becomes smaller is one of the same bytes all over; lzop's own is in the
/// corpus of the fuzz target.
fn lzo(bytes: &[u8]) -> Vec<u8> {
    let mut packed = b"\x89LZO\0\r\n\x1a\n".to_vec();
    packed.extend([0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 3, 9]);
    packed.extend([0, 0, 0, 1].iter().chain(&[0; 12]).chain(&[1, b'k']).chain(&[0; 4]));
    for block in bytes.chunks(256 << 10) {
        // A literal of four bytes; a match of 36 and 255 for each zero, one byte behind; the end.
        let run = (block.len() - 4 - 36) / 255;
        let all_the_same = (block.len() - 4 - 36) % 255 == 0 && block.iter().all(|byte| *byte == block[0]);
        let short = [&[21], &block[..4], &[32], &vec![0; run], &[3, 0, 0, 0x11, 0, 0]].concat();
        let data = if all_the_same { &short } else { block };
        for word in [block.len() as u32, data.len() as u32, adler2::adler32_slice(block)] {
            packed.extend(word.to_be_bytes());
        }
        packed.extend(data);
    }
    packed.extend([0; 4]);
    packed
}

/// Packed by each of the compressions.
fn packed(vmlinux: &[u8]) -> [Vec<u8>; 7] {
    let with_size = [xz, zstd, lz4, bzip2, lzma, lzo]
        .map(|pack: fn(&[u8]) -> Vec<u8>| bzimage(&with_size(pack(vmlinux), vmlinux)));
    let [xz, zstd, lz4, bzip2, lzma, lzo] = with_size;
    [xz, zstd, lz4, bzip2, lzma, lzo, bzimage(&gzip(vmlinux))]
}

/// A kernel of more than one block of any of the compressions: noise at its ends, nothing between.
fn large() -> Vec<u8> {
    const WORDS: u32 = 9 << 18;
    let noise = |i: u32| i.wrapping_mul(0x9e37_79b9).rotate_left(i % 31) ^ i.wrapping_mul(i);
    let word = |i: u32| if (1 << 14..WORDS - (1 << 14)).contains(&i) { 0 } else { noise(i) };
    let code: Vec<u8> = (0..WORDS).flat_map(|i| word(i).to_le_bytes()).collect();
    kernel::file(&code, START, START)
}

#[test]
fn a_kernel_is_the_same_in_memory_however_it_was_packed() {
    let vmlinux = large();
    for bytes in packed(&vmlinux).iter().chain([&vmlinux]) {
        let ram = GuestRam::new(16 << 20).unwrap();
        let entry = load(&ram, &image(bytes), None, "quiet", 1).unwrap();
        assert_eq!(entry, Entry::Pvh(START));
        let mut loaded = vec![0; vmlinux.len() - 176];
        ram.memory.read_slice(&mut loaded, GuestAddress(START.into())).unwrap();
        assert!(loaded == vmlinux[176..], "not the same");
    }
}

#[test]
fn a_kernel_is_told_of_its_memory_command_line_initrd_and_tables() {
    let ram = GuestRam::new(16 << 20).unwrap();
    let (vmlinux, initrd) = (kernel::elf("x", Then::Spin), image(&[7; 5000]));
    load(&ram, &image(&vmlinux), Some(&initrd), "root=/dev/vda", 2).unwrap();
    let long = |at: u64| ram.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    assert_eq!(long(0x6000) as u32, 0x336e_c578);
    let (modules, cmdline, rsdp, map, entries) =
        (long(0x6010), long(0x6018), long(0x6020), long(0x6028), long(0x6030));
    let mut text = [0; 14];
    ram.memory.read_slice(&mut text, GuestAddress(cmdline)).unwrap();
    assert_eq!(&text, b"root=/dev/vda\0");
    assert_eq!((long(modules), long(modules + 8)), ((16 << 20) - 8192, 5000));
    assert_eq!(ram.memory.read_obj::<u8>(GuestAddress(long(modules) + 4999)).unwrap(), 7);
    assert_eq!(long(rsdp), u64::from_le_bytes(*b"RSD PTR "));
    let usable: u64 =
        (0..entries).map(|i| map + 24 * i).filter(|at| long(at + 16) == 1).map(|at| long(at + 8)).sum();
    assert_eq!(usable, (16 << 20) - (0x10_0000 - 0x9_fc00));
}

/// What a kernel without a note finds in its zero page.
#[test]
fn a_kernel_without_a_note_is_told_the_same_by_linux_protocol() {
    let vmlinux = kernel::without_note(kernel::elf("x", Then::Spin));
    let bzimages = packed(&vmlinux);
    for file in bzimages.iter().chain([&vmlinux]) {
        let ram = GuestRam::new(5 << 30).unwrap();
        let entry = load(&ram, &image(file), Some(&image(&[7; 5000])), "root=/dev/vda", 2).unwrap();
        assert_eq!(entry, Entry::Linux(START.into()));
        let long = |at: u64| ram.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
        let word = |at: u64| ram.memory.read_obj::<u32>(GuestAddress(at)).unwrap();
        let byte = |at: u64| ram.memory.read_obj::<u8>(GuestAddress(at)).unwrap();
        const ZERO_PAGE: u64 = 0x7000;
        assert_eq!(word(ZERO_PAGE + 0x202), u32::from_le_bytes(*b"HdrS"));
        assert_eq!((byte(ZERO_PAGE + 0x210), byte(ZERO_PAGE + 0x211)), (0xff, 1));
        assert_eq!((byte(ZERO_PAGE + 0x1ef), long(ZERO_PAGE + 0x250)), (0, 0));
        let mut text = [0; 14];
        ram.memory.read_slice(&mut text, GuestAddress(word(ZERO_PAGE + 0x228).into())).unwrap();
        assert_eq!(&text, b"root=/dev/vda\0");
        let initrd = u64::from(word(ZERO_PAGE + 0x218));
        // The bzImages say that it may end at 2 GiB.
        let end = if file == &vmlinux { 3 << 30 } else { 2 << 30 };
        assert_eq!((initrd, word(ZERO_PAGE + 0x21c)), (end - 8192, 5000));
        assert_eq!(byte(initrd + 4999), 7);
        assert_eq!(long(long(ZERO_PAGE + 0x70)), u64::from_le_bytes(*b"RSD PTR "));
        let map = (0..byte(ZERO_PAGE + 0x1e8)).map(|i| ZERO_PAGE + 0x2d0 + 20 * u64::from(i));
        let map: Vec<_> = map.map(|at| (long(at), long(at + 8), word(at + 16))).collect();
        let usable: u64 = map.iter().filter(|range| range.2 == 1).map(|range| range.1).sum();
        assert_eq!(usable, (5 << 30) - (0x10_0000 - 0x9_fc00));
        assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:x?}");
    }
}

/// Walks the tables as a CPU does.
#[test]
fn a_kernel_without_a_note_is_entered_in_64_bit_mode_with_memory_where_it_is() {
    let ram = GuestRam::new(16 << 20).unwrap();
    let vmlinux = kernel::without_note(kernel::elf("x", Then::Spin));
    let entry = load(&ram, &image(&vmlinux), None, "", 1).unwrap();
    let (regs, sregs) = entry.registers(kvm_sregs::default());
    assert_eq!((regs.rip, regs.rsi, regs.rflags & 1 << 9), (START.into(), 0x7000, 0));
    let long = |at: u64| ram.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let frame = |entry: u64| entry & 0x000f_ffff_ffff_f000;
    for address in [0, 0x7000, START.into(), 0x7fff_f123, 0xc000_0000, 0xffff_ffffu64] {
        let mut table = sregs.cr3;
        for shift in [39, 30, 21] {
            let entry = long(table + 8 * (address >> shift & 511));
            assert_eq!(entry & 3, 3, "{address:#x}");
            assert_eq!(entry & 1 << 7 != 0, shift == 21, "{address:#x}");
            table = frame(entry);
        }
        assert_eq!(table | address & 0x1f_ffff, address);
    }
    for (segment, selector, wanted) in
        [(sregs.cs, 0x10, 0x00af_9b00_0000_ffff), (sregs.ds, 0x18, 0x00cf_9300_0000_ffff)]
    {
        assert_eq!(segment.selector, selector);
        assert_eq!(long(sregs.gdt.base + u64::from(selector)), wanted);
    }
    assert!(sregs.gdt.limit >= 0x1f && sregs.cs.l == 1 && sregs.cs.db == 0);
}

/// A PE file of these sections, each padded to 512 bytes.
fn pe(machine: u16, sections: &[(&str, &[u8])]) -> Vec<u8> {
    const HEADERS: usize = 0x400;
    let mut file = vec![0; HEADERS];
    file[..2].copy_from_slice(b"MZ");
    file[0x3c] = 0x80;
    file[0x80..0x84].copy_from_slice(b"PE\0\0");
    file[0x84..0x86].copy_from_slice(&machine.to_le_bytes());
    file[0x86] = sections.len() as u8;
    // An optional header of 16 bytes, which nobody reads.
    file[0x94] = 16;
    for (index, (name, content)) in sections.iter().enumerate() {
        let header = 0x80 + 24 + 16 + 40 * index;
        let padded = content.len().next_multiple_of(512);
        file[header..header + name.len()].copy_from_slice(name.as_bytes());
        for (at, word) in [(8, content.len()), (16, padded), (20, file.len())] {
            file[header + at..header + at + 4].copy_from_slice(&(word as u32).to_le_bytes());
        }
        file.extend(*content);
        file.resize(file.len() + padded - content.len(), 0);
    }
    file
}

/// The command line that a guest is told, and the first byte and the length of its initrd.
fn told(boot: Boot) -> Result<(String, Option<(u8, u64)>), BootError> {
    let ram = GuestRam::new(16 << 20).unwrap();
    assert_eq!(boot.load(&ram, 1)?, Entry::Pvh(START));
    let long = |at: u64| ram.memory.read_obj::<u64>(GuestAddress(at)).unwrap();
    let mut text = vec![0; 2048];
    ram.memory.read_slice(&mut text, GuestAddress(long(0x6018))).unwrap();
    let text = text.split(|byte| *byte == 0).next().unwrap();
    let modules = (long(0x6008) >> 32 != 0).then(|| long(0x6010));
    let initrd = modules.map(|at| (ram.memory.read_obj(GuestAddress(long(at))).unwrap(), long(at + 8)));
    Ok((String::from_utf8(text.to_vec()).unwrap(), initrd))
}

#[test]
fn a_unified_kernel_image_has_kernel_initrd_and_command_line_and_the_configs_go_before() {
    let vmlinuz = bzimage(&gzip(&kernel::elf("x", Then::Spin)));
    let own = |yields, initrd| Boot {
        kernel: image(&pe(
            0x8664,
            &[
                (".osrel", b"ID=debian"),
                (".cmdline", b" root=/dev/vda\nquiet \0\0"),
                (".initrd", &[7; 700]),
                (".linux", &vmlinuz),
            ],
        )),
        initrd,
        cmdline: "console=ttyS0".into(),
        yields,
        unpacked: Unpacked::Unknown,
    };
    assert_eq!(told(own(true, None)).unwrap(), ("root=/dev/vda quiet".into(), Some((7, 700))));
    let configs = own(false, Some(image(&[9; 30])));
    assert_eq!(told(configs).unwrap(), ("console=ttyS0".into(), Some((9, 30))));
    let bare = pe(0x8664, &[(".linux", &vmlinuz)]);
    let bare = Boot { kernel: image(&bare), ..own(true, None) };
    assert_eq!(told(bare).unwrap(), ("console=ttyS0".into(), None));
}

#[test]
fn the_first_profile_of_a_unified_kernel_image_counts() {
    let vmlinux = kernel::elf("x", Then::Spin);
    let profiles = pe(
        0x8664,
        &[
            (".linux", &vmlinux),
            (".cmdline", b"base"),
            (".initrd", &[7; 700]),
            (".profile", b"ID=main"),
            (".cmdline", b"main"),
            (".profile", b"ID=rescue"),
            (".cmdline", b"rescue"),
            (".initrd", &[8; 800]),
        ],
    );
    let boot = Boot {
        kernel: image(&profiles),
        initrd: None,
        cmdline: String::new(),
        yields: true,
        unpacked: Unpacked::Unknown,
    };
    assert_eq!(told(boot).unwrap(), ("main".into(), Some((7, 700))));
}

#[test]
fn a_unified_kernel_image_that_cannot_be_used_is_refused_by_name() {
    let vmlinux = kernel::elf("x", Then::Spin);
    let long = [b'x'; 2048];
    let whole = pe(0x8664, &[(".cmdline", b"quiet"), (".linux", &vmlinux)]);
    for (file, part) in [
        (pe(0xaa64, &[(".linux", &vmlinux)]), "machine 0xaa64"),
        (pe(0x8664, &[(".linux", &vmlinux), (".cmdline", &long)]), "2048 bytes"),
        (whole[..whole.len() - 512].to_vec(), ".linux ends at byte"),
        (pe(0x8664, &[(".text", &vmlinux)]), "neither an ELF vmlinux"),
        (pe(0x8664, &[(".linux", b"")]), "its first word"),
    ] {
        let error = load_bytes(&file).unwrap_err().to_string();
        assert!(error.contains(part), "{error} does not name {part}");
    }
}

/// A start that keeps what the kernel unpacks to: its result, and the file.
fn load_and_keep(bytes: &[u8], limit: u64) -> (Result<Entry, BootError>, File) {
    let file = memfd::open("kernel").unwrap();
    let unpacked = Unpacked::Keep(Keep::new(file.try_clone().unwrap(), limit));
    let boot = Boot { kernel: image(bytes), initrd: None, cmdline: String::new(), yields: true, unpacked };
    (boot.load(&GuestRam::new(16 << 20).unwrap(), 1), file)
}

fn seals(file: &File) -> SealFlag {
    // Of the seals, one may have been there before: that it is never executable.
    SealFlag::from_bits_retain(fcntl(file, FcntlArg::F_GET_SEALS).unwrap()) & SealFlag::from_bits_retain(0xf)
}

const WHOLE: SealFlag = SealFlag::from_bits_retain(0xf);

#[test]
fn what_a_kernel_unpacks_to_is_kept_and_loads_the_same_without_being_unpacked() {
    let vmlinux = kernel::without_note(large());
    for file in packed(&vmlinux) {
        let (entry, mut kept) = load_and_keep(&file, u64::MAX);
        assert_eq!(entry.unwrap(), Entry::Linux(START.into()));
        assert_eq!(seals(&kept), WHOLE);
        assert!(kept.write_all(b"x").is_err(), "it can be changed");
        let mut bytes = vec![0; vmlinux.len()];
        kept.read_exact_at(&mut bytes, 0).unwrap();
        assert!(bytes == vmlinux && kept.metadata().unwrap().len() == vmlinux.len() as u64);
        // The payload is damaged, and nobody looks at it; the setup header is the bzImage's.
        let mut file = file;
        let middle = file.len() / 2;
        file[middle..].fill(0x55);
        let unpacked = Unpacked::Kept(Image::new(StartPart::Kernel, kept).unwrap());
        let (kernel, initrd) = (image(&file), Some(image(&[7; 5000])));
        let boot = Boot { kernel, initrd, cmdline: String::new(), yields: true, unpacked };
        let ram = GuestRam::new(16 << 20).unwrap();
        assert_eq!(boot.load(&ram, 1).unwrap(), Entry::Linux(START.into()));
        assert_eq!(ram.memory.read_obj::<u32>(GuestAddress(0x7000 + 0x22c)).unwrap(), 0x7fff_ffff);
        let mut loaded = vec![0; vmlinux.len() - 176];
        ram.memory.read_slice(&mut loaded, GuestAddress(START.into())).unwrap();
        assert!(loaded == vmlinux[176..], "not the same");
    }
}

#[test]
fn what_is_not_whole_is_never_kept_and_can_never_become_so() {
    let vmlinux = kernel::elf("x", Then::Spin);
    let vmlinuz = bzimage(&gzip(&vmlinux));
    let mut damaged = vmlinuz.clone();
    let checksum = damaged.len() - 8;
    damaged[checksum] ^= 1;
    for (file, limit, works) in [
        (&vmlinux, u64::MAX, true),
        (&vmlinuz, vmlinux.len() as u64 - 1, true),
        (&damaged, u64::MAX, false),
        (&b"nothing of a kernel".to_vec(), u64::MAX, false),
    ] {
        let (entry, kept) = load_and_keep(file, limit);
        assert_eq!(entry.is_ok(), works);
        assert_eq!(seals(&kept), SealFlag::F_SEAL_SEAL);
        assert!(fcntl(&kept, FcntlArg::F_ADD_SEALS(WHOLE)).is_err());
    }
}

#[test]
fn a_kernel_that_says_nowhere_how_it_is_entered_is_refused() {
    let mut file = kernel::without_note(kernel::elf("x", Then::Spin));
    file[24..32].copy_from_slice(&0xffff_ffff_8100_0000u64.to_le_bytes());
    let error = load_bytes(&file).unwrap_err().to_string();
    assert!(error.contains("0xffffffff81000000") && error.contains("PVH"), "{error}");
}

#[test]
fn an_initrd_larger_than_the_room_left_is_refused_with_the_numbers() {
    let ram = GuestRam::new(16 << 20).unwrap();
    let initrd = image(&vec![0; 15 << 20]);
    let error = load(&ram, &image(&kernel::elf("x", Then::Spin)), Some(&initrd), "", 1).unwrap_err();
    assert!(error.to_string().contains("15728640"), "{error}");
}

#[test]
fn a_segment_outside_ram_or_below_the_tables_is_refused() {
    for address in [0, 0x6000, 0xf_ffff, (16 << 20) - 4, 0xc000_0000, 0xffff_fff0] {
        let error = load_bytes(&kernel::file(&[0; 64], address, address)).unwrap_err();
        assert!(error.to_string().contains("does not lie in RAM"), "{address:#x}: {error}");
    }
    let error = load_bytes(&kernel::file(&[0; 64], START, START - 1)).unwrap_err();
    assert!(error.to_string().contains("outside all segments"), "{error}");
}

#[test]
fn a_payload_that_is_cut_off_damaged_or_of_another_kind_is_refused_by_name() {
    let vmlinux = kernel::elf("x", Then::Spin);
    for file in packed(&vmlinux) {
        let error = load_bytes(&file[..file.len() - 1]).unwrap_err();
        assert!(matches!(error, BootError::Truncated { .. }), "{error}");
    }
    for (payload, part) in [
        (&b"0123456789abcdef"[..], "unknown kind"),
        (b"\x1f\x8b\x08\0\0\0\0\0\0\0\0\0\0\0\0\0", "gzip"),
        (b"BZh91AY&SY\0\0\0\0\0\0", "bzip2"),
        // A dictionary of 4 GiB.
        (b"\x5d\0\0\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", "lzma"),
        (b"\x89LZO\0\r\n\x1a\n\x10\x40\x20\xa0\x09\x40\x63\0\0\0\0\0", "lzo"),
        (b"\xfd7zXZ\0", "only 6 bytes"),
        (b"\x02\x21\x4c\x18\xff\xff\xff\xff\0\0\0\0\0\0\0\0", "lz4"),
        (b"\x28\xb5\x2f\xfd\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff", "zstd"),
    ] {
        let error = load_bytes(&bzimage(payload)).unwrap_err().to_string();
        assert!(error.contains(part), "{error} does not name {part}");
    }
    let files = packed(&large());
    // lz4 as Linux has it, and lzma, have no checksum; bzip2 makes nonsense of a whole block before it finds out.
    for (codec, mut file) in ["xz", "zstd", "", "", "", "lzo", "gzip"].into_iter().zip(files.clone()) {
        let middle = file.len() / 2;
        file[middle] ^= 0x55;
        let result = load_bytes(&file);
        let named = result.as_ref().is_err_and(|error| error.to_string().contains(codec));
        assert!(codec.is_empty() || named, "{codec}: {result:?}");
    }
    for mut file in files {
        let end = file.len() - 4;
        file[end] ^= 1;
        assert!(matches!(load_bytes(&file), Err(BootError::Unpack { .. })), "another size than it says");
    }
}

/// What the tools themselves have made: the seeds of the fuzz target.
#[test]
fn every_kernel_of_the_corpus_loads() {
    let corpus = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fuzz/corpus/kernel");
    let mut seen = 0;
    for seed in std::fs::read_dir(corpus).unwrap() {
        let path = seed.unwrap().path();
        let loaded = load_bytes(&std::fs::read(&path).unwrap());
        loaded.unwrap_or_else(|error| panic!("{}: {error:?}", path.display()));
        seen += 1;
    }
    assert!(seen >= 9, "{seen}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn no_change_to_an_elf_file_is_worse_than_an_error_of_one_line(changes in proptest::collection::vec((0usize..240, any::<u8>()), 1..8)) {
        let mut file = kernel::elf("hello", Then::Spin);
        for (at, value) in changes {
            let at = at % file.len();
            file[at] = value;
        }
        if let Err(error) = load_bytes(&file) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn no_change_to_a_unified_kernel_image_is_worse_than_an_error_of_one_line(
        changes in proptest::collection::vec((0usize..0x600, any::<u8>()), 1..8),
    ) {
        let vmlinux = kernel::elf("hello", Then::Spin);
        let mut file = pe(0x8664, &[(".cmdline", b"quiet"), (".initrd", &[7; 300]), (".linux", &vmlinux)]);
        for (at, value) in changes {
            file[at] = value;
        }
        let boot = Boot { kernel: image(&file), initrd: None, cmdline: String::new(), yields: true, unpacked: Unpacked::Unknown };
        if let Err(error) = boot.load(&GuestRam::new(16 << 20).unwrap(), 1) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn no_change_to_a_bzimage_is_worse_than_an_error_of_one_line(
        which in 0usize..7,
        changes in proptest::collection::vec((any::<u16>(), any::<u8>()), 1..8),
        cut in any::<u16>(),
    ) {
        let mut file = packed(&kernel::elf("hello", Then::Spin))[which].clone();
        for (at, value) in changes {
            let at = 0x1f0 + usize::from(at) % (file.len() - 0x1f0);
            file[at] = value;
        }
        if cut % 4 == 0 {
            file.truncate(usize::from(cut) % file.len());
        }
        if let Err(error) = load_bytes(&file) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }
}
