//! A config of xl (xl.cfg(5), xl-disk-configuration(5), xl-network-configuration(5)).

mod devices;
mod syntax;

use crate::ImportError;
use crate::config::Config;
use crate::translate::Translation;
use syntax::{Setting, Value, settings};

/// What Domus has no counterpart for, by the beginning of its key, and why. The first that fits.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("bios", "there is no firmware: the kernel is started by PVH"),
    ("firmware", "there is no firmware: the kernel is started by PVH"),
    ("bootloader", "no boot loader is run: name the guest's kernel in boot.kernel"),
    ("boot", "no boot loader is run: name the guest's kernel in boot.kernel"),
    ("vnc", "there is no display"),
    ("sdl", "there is no display"),
    ("spice", "there is no display"),
    ("vfb", "there is no display"),
    ("gfx", "there is no display"),
    ("vga", "there is no display"),
    ("stdvga", "there is no display"),
    ("videoram", "there is no display"),
    ("keymap", "there is no keyboard"),
    ("opengl", "there is no display"),
    ("usb", "there is no USB"),
    ("vkb", "there is no keyboard"),
    ("sound", "there is no sound"),
    ("soundhw", "there is no sound"),
    ("vsnd", "there is no sound"),
    ("pci", "no devices of the host are passed through"),
    ("rdm", "no devices of the host are passed through"),
    ("dtdev", "no devices of the host are passed through"),
    ("iomem", "no devices of the host are passed through"),
    ("ioports", "no devices of the host are passed through"),
    ("irqs", "no devices of the host are passed through"),
    ("serial", "the console is always the one on ttyS0: see domus console"),
    ("channel", "there are no channels"),
    ("p9", "give a virtiofsd's socket in devices[]"),
    ("vtpm", "there is no TPM"),
    ("device_model", "there is no device model: each kind of device has a process of its own"),
    ("stubdomain", "there is no device model"),
    ("maxmem", "the memory is fixed"),
    ("maxvcpus", "the number of vCPUs is fixed"),
    ("cpu_weight", "is not in the config: give it to the running domain with domus sched-set"),
    ("cap", "is not in the config: give it to the running domain with domus sched-set"),
    ("cpus", "is written otherwise: set \"cpus\" in the config, such as \"0-3\""),
    ("pool", "there are no CPU pools"),
    ("cpuid", "the guest sees the CPU that KVM offers"),
    ("nestedhvm", "guests run no hypervisor"),
    ("vnuma", "the guest sees one NUMA node"),
    ("driver_domain", "drivers run in processes of dom0's, not in domains"),
    ("claim_mode", "memory is the host's to give out"),
    ("tsc_mode", "the guest has kvmclock"),
    ("localtime", "there is no real-time clock: the guest has kvmclock"),
    ("rtc_timeoffset", "there is no real-time clock: the guest has kvmclock"),
    ("seclabel", "there are no labels of XSM"),
    ("init_seclabel", "there are no labels of XSM"),
    ("xen_platform_pci", "the guest does not run on Xen"),
    ("viridian", "no Windows runs here"),
    ("on_watchdog", "there is no watchdog"),
    ("on_soft_reset", "there is no soft reset"),
    ("altp2m", "there are no alternate page tables"),
    ("timer_mode", "is Xen's own"),
    ("e820_host", "the memory map is Domus's own"),
];

/// What Domus always does: said in a config, it is not lost.
const ALWAYS_DONE: &[(&str, &[&str])] = &[
    ("acpi", &["1"]),
    ("apic", &["1"]),
    ("pae", &["1"]),
    ("nx", &["1"]),
    ("hap", &["1"]),
    ("acpi_s3", &["0"]),
    ("acpi_s4", &["0"]),
    ("nestedhvm", &["0"]),
    ("usb", &["0"]),
    ("vnc", &["0"]),
    ("sdl", &["0"]),
    ("spice", &["0"]),
    ("nographic", &["1"]),
    ("xen_platform_pci", &["0"]),
    ("localtime", &["0"]),
    ("type", &["pvh"]),
    ("builder", &["pvh"]),
    ("pvh", &["1"]),
    ("serial", &["pty"]),
    ("vga", &["none"]),
    ("viridian", &["0"]),
    ("hpet", &["0"]),
];

/// What of the kernel's command line xl puts together.
#[derive(Default)]
struct CommandLine {
    whole: Option<(u32, String)>,
    root: Option<(u32, String)>,
    extra: Option<(u32, String)>,
}

/// Reads it.
///
/// # Errors
/// [`ImportError::Syntax`].
pub fn read(text: &str) -> Result<Translation, ImportError> {
    let mut translation =
        Translation { config: Config { vcpus: 1, ..Config::default() }, ..Translation::default() };
    let mut line = CommandLine::default();
    let settings = settings(text)?;
    for setting in &settings {
        set(&mut translation, &mut line, setting);
    }
    // What is the same as the value that counts says nothing.
    for setting in &settings {
        let same = match setting.key.as_str() {
            "maxmem" => {
                text_of(&setting.value).is_some_and(|mib| format!("{mib}MiB") == translation.config.memory)
            }
            "maxvcpus" => text_of(&setting.value) == Some(translation.config.vcpus.to_string().as_str()),
            _ => continue,
        };
        if !same {
            lose(&mut translation, setting);
        }
    }
    command_line(&mut translation, line);
    Ok(translation.whole())
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::Text(text) => Some(text),
        Value::List(_) => None,
    }
}

fn set(translation: &mut Translation, line: &mut CommandLine, setting: &Setting) {
    let at = setting.line;
    match (setting.key.as_str(), &setting.value) {
        ("name", Value::Text(name)) => translation.name(at, name),
        ("uuid", Value::Text(uuid)) => translation.config.uuid = Some(uuid.clone()),
        ("memory", Value::Text(mib)) => {
            if let Some(mib) = translation.number(at, &shown(setting), mib, 1, 1 << 32) {
                translation.memory(mib);
            }
        }
        ("vcpus", Value::Text(count)) => {
            if let Some(count) = translation.number(at, &shown(setting), count, 0, u64::MAX) {
                translation.vcpus(at, &shown(setting), count);
            }
        }
        ("kernel", Value::Text(path)) => translation.config.boot.kernel.clone_from(path),
        ("ramdisk", Value::Text(path)) => translation.config.boot.initrd = Some(path.clone()),
        ("cmdline", Value::Text(text)) => line.whole = Some((at, text.clone())),
        ("root", Value::Text(text)) => line.root = Some((at, text.clone())),
        ("extra", Value::Text(text)) => line.extra = Some((at, text.clone())),
        (key @ ("on_poweroff" | "on_reboot" | "on_crash"), Value::Text(wish)) => {
            translation.policy(at, key, wish)
        }
        // A single string is a list of one to xl.
        ("disk", value) => for_each(translation, at, value, devices::disk),
        ("vif", value) => for_each(translation, at, value, devices::nic),
        // Compared with what counts, at the end.
        ("maxmem" | "maxvcpus", Value::Text(_)) => {}
        _ => lose(translation, setting),
    }
}

/// Notes a setting that is not in the config, unless it says what is so anyway.
fn lose(translation: &mut Translation, setting: &Setting) {
    let Setting { line, key, value } = setting;
    let always = ALWAYS_DONE.iter().filter(|(always, _)| always == key).flat_map(|(_, values)| *values);
    let mut said = always.filter(|always| text_of(value) == Some(always));
    if said.next().is_some() {
        return;
    }
    let why = match (key.as_str(), text_of(value)) {
        ("type" | "builder", Some("hvm" | "generic")) => {
            "the guest has no firmware and no emulated devices but a serial port: its kernel is started by PVH, and \
             needs virtio drivers"
        }
        ("type" | "builder", _) => "the kernel is started by PVH, and needs virtio drivers in place of Xen's",
        (key, _) => UNSUPPORTED
            .iter()
            .find(|(lost, _)| key.starts_with(lost))
            .map_or("there is no such thing here", |(_, why)| *why),
    };
    translation.lose(*line, &shown(setting), why);
}

fn for_each(
    translation: &mut Translation,
    at: u32,
    value: &Value,
    read: impl Fn(&mut Translation, u32, &str),
) {
    match value {
        Value::Text(text) => read(translation, at, text),
        Value::List(list) => {
            for (line, value) in list {
                match value {
                    Value::Text(text) => read(translation, *line, text),
                    Value::List(_) => translation.lose(*line, "a list within a list", "a string would do"),
                }
            }
        }
    }
}

/// `cmdline` is the whole of it; otherwise `root` and `extra` are.
fn command_line(translation: &mut Translation, line: CommandLine) {
    let CommandLine { whole, root, extra } = line;
    let (at, text) = match whole {
        Some(whole) => {
            for (at, text) in [root, extra].into_iter().flatten() {
                translation.lose(at, &text, "cmdline is given, which is all of the kernel's command line");
            }
            whole
        }
        None => {
            let root = root.map(|(at, root)| (at, format!("root={root}")));
            let given: Vec<_> =
                [root, extra].into_iter().flatten().filter(|(_, text)| !text.is_empty()).collect();
            let Some((at, _)) = given.first() else { return };
            (*at, given.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" "))
        }
    };
    if text.contains("/dev/xvd") {
        translation.lose(
            at,
            &text,
            "is kept, but names a disk as Xen does: the first disk is /dev/vda here, better root=UUID=…",
        );
    }
    let mut words: Vec<&str> = text.split_whitespace().collect();
    if words.contains(&"console=hvc0") {
        translation.lose(at, "console=hvc0", "is console=ttyS0 here");
        words.iter_mut().filter(|word| **word == "console=hvc0").for_each(|word| *word = "console=ttyS0");
    }
    if !words.iter().any(|word| word.starts_with("console=")) {
        words.push("console=ttyS0");
    }
    translation.config.boot.cmdline = Some(words.join(" "));
}

/// A setting as one line.
fn shown(setting: &Setting) -> String {
    fn value(value: &Value) -> String {
        match value {
            Value::Text(text) => format!("\"{text}\""),
            Value::List(list) => match list.as_slice() {
                [] => "[]".into(),
                [(_, Value::Text(text))] => format!("[\"{text}\"]"),
                _ => "[…]".into(),
            },
        }
    }
    format!("{} = {}", setting.key, value(&setting.value))
}
