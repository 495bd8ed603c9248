//! The rules that both readers bring a foreign config under: one table for xl and for libvirt.

use shared_abi::cpu::FeatureName;

use crate::config::Disk;
use crate::translate::Translation;

/// What Domus has no counterpart for: how xl calls it, by the beginning of the key; how libvirt does, by the element;
/// and why.
const UNSUPPORTED: &[(&[&str], &[&str], &str)] = &[
    (&["bios", "firmware"], &["loader", "nvram", "firmware", "bios"], FIRMWARE),
    (
        &["bootloader", "boot"],
        &["bootloader", "bootloader_args", "boot", "bootmenu"],
        "no boot loader is run: name the guest's kernel in boot.kernel",
    ),
    (
        &["vnc", "sdl", "spice", "vfb", "gfx", "vga", "stdvga", "videoram", "opengl"],
        &["graphics", "video"],
        "there is no display",
    ),
    (&["keymap", "vkb"], &["input"], "there are neither keyboard nor pointer"),
    (&["usb"], &["redirdev", "redirfilter", "hub", "smartcard"], "there is no USB"),
    (&["sound", "vsnd"], &["audio", "sound"], "there is no sound"),
    (
        &["pci", "rdm", "dtdev", "iomem", "ioports", "irqs"],
        &["hostdev"],
        "no devices of the host are passed through",
    ),
    (&["serial"], &["serial", "console", "parallel"], CONSOLE),
    (&["channel"], &["channel"], "there are no channels"),
    (&["p9"], &["filesystem"], "give a virtiofsd's socket in devices[]"),
    (&["vtpm"], &["tpm"], "there is no TPM"),
    (
        &["device_model", "stubdomain"],
        &["emulator"],
        "there is no device model: each kind of device has a process of its own",
    ),
    (&["maxmem"], &["currentMemory", "maxMemory", "memballoon"], "the memory is fixed"),
    (&["maxvcpus"], &["vcpus"], VCPUS),
    (
        &["cpu_weight", "cap"],
        &["cputune"],
        "is not in the config: give it to the running domain with domus sched-set",
    ),
    (&["cpus"], &[], CPUS),
    (&["pool"], &[], "there are no CPU pools"),
    (&["cpuid"], &["cpu"], CPU),
    (&["nestedhvm"], &[], "0 or 1 would do"),
    (&["vnuma"], &["numatune"], "the guest sees one NUMA node, and the host's scheduler places its memory"),
    (&["driver_domain"], &[], "drivers run in processes of dom0's, not in domains"),
    (&["claim_mode"], &["memtune", "memoryBacking"], "memory is the host's to give out"),
    (
        &["tsc_mode", "localtime", "rtc_timeoffset"],
        &["clock"],
        "there is no real-time clock: the guest has kvmclock",
    ),
    (
        &["seclabel", "init_seclabel"],
        &["seclabel"],
        "each process is shut in by namespaces and seccomp, with a user id of its own",
    ),
    (&["xen_platform_pci", "viridian"], &["xen", "hyperv"], "the guest sees what KVM offers"),
    (&["on_watchdog"], &["watchdog"], "there is no watchdog"),
    (&["on_soft_reset"], &[], "there is no soft reset"),
    (&["altp2m"], &[], "there are no alternate page tables"),
    (&["timer_mode"], &[], "is Xen's own"),
    (&["e820_host"], &[], "the memory map is Domus's own"),
    (&["acpi_s3", "acpi_s4"], &["pm"], "there is neither suspend to RAM nor to disk"),
    (&["smbios"], &["smbios", "sysinfo"], "there are no SMBIOS tables"),
    (&[], &["metadata", "genid"], "is for other tools"),
    (&[], &["title", "description", "perf", "shmem", "mirror"], "has no counterpart"),
    (&[], &["blkiotune"], "give limits in disks[].limits"),
    (&[], &["resource"], "each domain has a cgroup of its own"),
    (&[], &["iothreads", "iothreadids"], "each backend has the threads it needs"),
    (&[], &["controller"], "every device is on the one PCI root"),
    (&[], &["address"], "Domus gives out PCI slots itself"),
    (&[], &["panic"], "a crash is seen by its triple fault"),
    (&[], &["rng", "vsock"], "give a vhost-user backend's socket in devices[]"),
    (&[], &["filterref"], "the NIC's own filter allows its own MAC address, and what addresses lists"),
    (&[], &["on_lockfailure"], "an image that is in use is refused"),
];

/// Why a CPU by another name is not in the config.
pub const CPU: &str =
    "the guest has the host's CPU: \"cpu\" takes x86-64-v2, -v3 or -v4, or lists of features, in its place";

const FIRMWARE: &str = "there is no firmware: the kernel is started directly";
/// The one console.
pub const CONSOLE: &str = "the console is always the one on ttyS0: see domus console";
/// The number of vCPUs.
pub const VCPUS: &str = "the number of vCPUs is fixed";
/// Where vCPUs may run.
pub const CPUS: &str = "is written otherwise: set \"cpus\" in the config, such as \"0-3\"";
/// What has no other reason.
pub const UNKNOWN: &str = "there is no such thing here";
/// A drive that is empty.
pub const NO_MEDIUM: &str = "there are no drives without a medium: the disk is left out";
/// A medium in a drive.
pub const CDROM: &str = "there are no CD-ROM drives: it is a disk that cannot be written to";

/// What other toolstacks are given for a kernel that is not the guest's, by a part of the file's name.
const FIRMWARES: [&str; 13] = [
    "hvmloader",
    "ovmf",
    "aavmf",
    "seabios",
    "edk2",
    "qemu_efi",
    "bios.bin",
    "bios-256k",
    "pygrub",
    "pvgrub",
    "pv-grub",
    "-xen.bin",
    "ipxe",
];

/// Disks as other machines name them, behind `/dev/`.
const OTHERS_DISKS: [&str; 9] =
    ["xvd", "sd", "hd", "nvme", "sr", "ubd", "mmcblk", "disk/by-id/", "disk/by-path/"];

/// Consoles that other machines have.
const OTHERS_CONSOLES: [&str; 6] = ["hvc", "xvc", "ttyS", "ttyAMA", "ttyUSB", "ttysclp"];

/// Why there is no such key of xl's. The longest beginning counts.
pub fn of_key(key: &str) -> Option<&'static str> {
    let rows = UNSUPPORTED.iter().flat_map(|(keys, _, why)| keys.iter().map(move |known| (*known, *why)));
    rows.filter(|(known, _)| key.starts_with(known)).max_by_key(|(known, _)| known.len()).map(|(_, why)| why)
}

/// Why there is no such element of libvirt's.
pub fn of_element(name: &str) -> Option<&'static str> {
    UNSUPPORTED.iter().find(|(_, elements, _)| elements.contains(&name)).map(|(.., why)| *why)
}

/// A number as both toolstacks take one: decimal, or as C writes hexadecimal.
pub fn number(text: &str) -> Option<u64> {
    let text = text.trim();
    let (digits, radix) = match text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        Some(digits) => (digits, 16),
        None => (text, 10),
    };
    // A sign is none of these.
    digits.bytes().all(|b| b.is_ascii_alphanumeric()).then(|| u64::from_str_radix(digits, radix).ok())?
}

/// An amount of memory in MiB, rounded up: a number, and its own unit or the usual one.
///
/// Units have no case. `k`, `KiB`: 1024; `KB`: 1000; so up to `E`. `b`, `byte`, `bytes`: 1.
pub fn mib(text: &str, usual: &str) -> Option<u64> {
    let text = text.trim();
    let hexadecimal = text.starts_with("0x") || text.starts_with("0X");
    let digits =
        if hexadecimal { text.len() } else { text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()) };
    let (amount, own) = text.split_at(digits);
    let unit = if own.trim().is_empty() { usual } else { own };
    let bytes = u128::from(number(amount)?).checked_mul(bytes_of(unit)?)?;
    u64::try_from(bytes.div_ceil(1 << 20)).ok()
}

fn bytes_of(unit: &str) -> Option<u128> {
    let unit = unit.trim().to_ascii_lowercase();
    if matches!(unit.as_str(), "b" | "byte" | "bytes") {
        return Some(1);
    }
    let power = "kmgtpe".find(unit.chars().next()?)? as u32 + 1;
    match unit.get(1..)? {
        "" | "ib" => Some(1 << (10 * power)),
        "b" => Some(1000_u128.pow(power)),
        _ => None,
    }
}

impl Translation {
    /// A feature of its CPU by libvirt's policy. Those of virtualization are one key here.
    pub(crate) fn feature(&mut self, line: u32, what: &str, policy: &str, name: &str) {
        // libvirt has dashes and dots where Linux has underscores.
        let own = name.replace(['-', '.'], "_");
        let has = match policy {
            "force" | "require" => true,
            "disable" | "forbid" => false,
            // Features that the host has are there anyway.
            "optional" => return,
            _ => return self.lose(line, what, "there is no such policy"),
        };
        if ["vmx", "svm"].contains(&own.as_str()) {
            self.config.nested = has.then_some(true);
        } else if own.parse::<FeatureName>().is_err() {
            self.lose(line, what, "Domus knows no such CPU feature");
        } else {
            let cpu = self.config.cpu.get_or_insert_default();
            let list = if has { &mut cpu.require } else { &mut cpu.disable };
            if !list.contains(&own) {
                list.push(own);
            }
        }
    }

    /// Its RAM, as `what` says.
    pub(crate) fn ram(&mut self, line: u32, what: &str, text: &str, unit: &str) {
        match mib(text, unit).filter(|mib| *mib > 0) {
            Some(mib) => self.memory(mib),
            None => self.lose(line, what, "is no amount of memory: a number, and a unit such as MiB or GB"),
        }
    }

    /// Its vCPUs: as many as it starts with.
    pub(crate) fn cpus(&mut self, line: u32, what: &str, text: &str) {
        match number(text) {
            Some(count) => self.vcpus(line, what, count),
            None => self.lose(line, what, "is no number of vCPUs"),
        }
    }

    /// The guest's kernel. What starts a guest in its place elsewhere is none.
    pub(crate) fn kernel(&mut self, line: u32, path: &str) {
        let path = path.trim();
        let name = path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
        if name.ends_with(".fd") || FIRMWARES.iter().any(|firmware| name.contains(firmware)) {
            self.lose(line, path, FIRMWARE);
        } else {
            self.config.boot.kernel = path.into();
        }
    }

    /// Which machine it is.
    pub(crate) fn uuid(&mut self, line: u32, text: &str) {
        let digits: String = text.trim().trim_matches(['{', '}']).chars().filter(|c| *c != '-').collect();
        if digits.len() != 32 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return self.lose(line, text, "is no UUID: the domain gets one made from its name");
        }
        let digits = digits.to_ascii_lowercase();
        let parts = [0..8, 8..12, 12..16, 16..20, 20..32].map(|part| &digits[part]);
        self.config.uuid = Some(parts.join("-"));
    }

    /// The kernel's command line, which begins at `line`: the console is the one that there is, the root is looked at.
    pub(crate) fn command_line(&mut self, line: u32, text: &str) {
        let mut kept: Vec<&str> = Vec::new();
        let mut console = false;
        for mut word in text.split_whitespace() {
            let (key, value) = word.split_once('=').unwrap_or((word, ""));
            match key {
                "console" => {
                    let device = value.split(',').next().unwrap_or_default();
                    if device == "ttyS0" {
                        console = true;
                    } else if OTHERS_CONSOLES.iter().any(|other| device.starts_with(other)) {
                        self.lose(line, word, "is console=ttyS0 here");
                        if std::mem::replace(&mut console, true) {
                            continue;
                        }
                        word = "console=ttyS0";
                    }
                }
                "root" | "resume" if is_others_disk(value) => {
                    let why = "is kept, but names a disk as another machine does: the first disk is /dev/vda here, \
                               better root=UUID=…";
                    self.lose(line, word, why);
                }
                "earlyprintk" | "earlycon" if value.starts_with("xen") => {
                    self.lose(line, word, "is kept: the guest does not run on Xen");
                }
                _ => {}
            }
            kept.push(word);
        }
        if kept.is_empty() {
            return;
        }
        if !console {
            kept.push("console=ttyS0");
        }
        self.config.boot.cmdline = Some(kept.join(" "));
    }

    /// A disk's format, by whatever name it is called; false if Domus has none such, and the disk is to be left out.
    pub(crate) fn format(&mut self, line: u32, what: &str, format: &str, disk: &mut Disk) -> bool {
        match format.trim().to_ascii_lowercase().as_str() {
            // An ISO is raw to a disk.
            "raw" | "" | "iso" => true,
            "qcow2" => {
                disk.format = Some("qcow2".into());
                true
            }
            _ => {
                let why = "is no format of Domus': convert the image with qemu-img convert -O qcow2, the disk is left out";
                self.lose(line, what, why);
                false
            }
        }
    }

    /// An image that may refer to others.
    pub(crate) fn behind_unknown(&mut self, line: u32, path: &str) {
        let why = "is kept; if the image refers to others, name them in backing: domus disk info tells";
        self.lose(line, path, why);
    }

    /// Compares the format of each disk with what its image is told to be: None if it cannot be looked at, or that no
    /// format is known by its bytes.
    pub(crate) fn look(&mut self, told: &dyn Fn(&str) -> Option<Option<&'static str>>) {
        for n in 0..self.config.disks.len() {
            let Some((line, said)) = self.formats.get(n).copied() else { continue };
            let disk = &mut self.config.disks[n];
            let Some(path) = disk.path.clone().filter(|path| path.starts_with('/')) else { continue };
            let is_qcow2 = disk.format.is_some();
            match (told(&path), is_qcow2) {
                (None, false) if !said => {
                    let ending = path.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
                    if matches!(ending.as_str(), "qcow2" | "qcow" | "vmdk" | "vdi" | "vhd" | "vhdx" | "qed") {
                        let why = format!(
                            "is taken for raw, and its name says {ending}: see domus disk info, and write \"format\": \"qcow2\" \
                             if it is that"
                        );
                        self.lose(line, &path, why);
                    }
                }
                (Some(Some("qcow2")), false) if said => {
                    disk.format = Some("raw".into());
                    let why = "is a qcow2 image, and said to be raw: the guest sees the file as it is, write \"format\": \
                               \"qcow2\" if that is not meant";
                    self.lose(line, &path, why);
                }
                (Some(Some("qcow2")), false) => {
                    disk.format = Some("qcow2".into());
                    self.lose(line, &path, "is a qcow2 image, and is served as one here");
                    self.behind_unknown(line, &path);
                }
                // A guest that encrypts its disk leaves that on it.
                (Some(Some("LUKS")), false) => {}
                (Some(Some(other)), false) => {
                    let why = format!(
                        "is a {other} image, which Domus does not serve: convert it with qemu-img convert -O qcow2"
                    );
                    self.lose(line, &path, why);
                }
                (Some(told), true) if told != Some("qcow2") => {
                    let why = format!(
                        "is said to be qcow2, and is {}: correct \"format\", or convert the image",
                        told.unwrap_or("raw")
                    );
                    self.lose(line, &path, why);
                }
                _ => {}
            }
        }
    }

    /// A disk, with the line where its format is said, or not said expressly.
    pub(crate) fn disk(&mut self, line: u32, disk: Disk, format_said: bool) {
        self.config.disks.push(disk);
        self.formats.push((line, format_said));
    }
}

fn is_others_disk(value: &str) -> bool {
    let named = |name: &str| OTHERS_DISKS.iter().any(|other| name.starts_with(other));
    let numbers = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match value.strip_prefix("/dev/") {
        Some(name) => named(name),
        // Major and minor number, as in 202:1 and 0x801.
        None => {
            value.split_once(':').is_some_and(|(major, minor)| numbers(major) && numbers(minor))
                || value.strip_prefix("0x").unwrap_or(value).len() >= 3
                    && value.bytes().all(|b| b.is_ascii_hexdigit())
                || !value.contains('=') && named(value)
        }
    }
}

/// What a stranger's file holds as text: UTF-8 or UTF-16 by its mark, else UTF-8, else Latin-1, in which any bytes are
/// text. The second value is true for that.
pub fn decode(bytes: &[u8]) -> (String, bool) {
    let wide = |of: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes[2..].as_chunks::<2>().0.iter().map(|pair| of(*pair)).collect();
        (String::from_utf16_lossy(&units), false)
    };
    if bytes.starts_with(b"\xff\xfe") {
        return wide(u16::from_le_bytes);
    }
    if bytes.starts_with(b"\xfe\xff") {
        return wide(u16::from_be_bytes);
    }
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    match std::str::from_utf8(bytes) {
        Ok(text) => (text.into(), false),
        Err(_) => (bytes.iter().map(|byte| char::from(*byte)).collect(), true),
    }
}
