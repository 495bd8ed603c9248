//! A config of xl (xl.cfg(5), xl-disk-configuration(5), xl-network-configuration(5)).

mod devices;
mod syntax;

use crate::ImportError;
use crate::config::Config;
use crate::rules::{self, UNKNOWN};
use crate::translate::Translation;
use syntax::{Setting, Value, settings};

/// The unit of xl's memory.
const MIB: &str = "MiB";

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
    if settings.is_empty() {
        return Err(ImportError::Empty);
    }
    for setting in &settings {
        set(&mut translation, &mut line, setting);
    }
    // What is the same as the value that counts says nothing; and without one, the most is what the guest has.
    for setting in &settings {
        let text = text_of(&setting.value);
        let same = match setting.key.as_str() {
            "maxmem" if translation.config.memory.is_empty() => {
                translation.ram(setting.line, &shown(setting), text.unwrap_or_default(), MIB);
                true
            }
            "maxmem" => text
                .and_then(|text| rules::mib(text, MIB))
                .is_some_and(|mib| format!("{mib}MiB") == translation.config.memory),
            "maxvcpus" => text.and_then(rules::number) == Some(translation.config.vcpus),
            _ => continue,
        };
        if !same {
            lose(&mut translation, setting);
        }
    }
    command_line(&mut translation, line);
    Ok(translation)
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
        ("uuid", Value::Text(uuid)) => translation.uuid(at, uuid),
        ("memory", Value::Text(text)) => translation.ram(at, &shown(setting), text, MIB),
        ("vcpus", Value::Text(count)) => translation.cpus(at, &shown(setting), count),
        ("nestedhvm", Value::Text(wish)) if wish == "1" => translation.config.nested = Some(true),
        ("kernel", Value::Text(path)) => translation.kernel(at, path),
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
            "the guest has no firmware and no emulated devices but a serial port: its kernel is started directly, and \
             needs virtio drivers"
        }
        ("type" | "builder", _) => {
            "the kernel is started directly, and needs virtio drivers in place of Xen's"
        }
        (key, _) => rules::of_key(key).unwrap_or(UNKNOWN),
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
            let root = root.filter(|(_, root)| !root.trim().is_empty());
            let root = root.map(|(at, root)| (at, format!("root={}", root.trim())));
            let given: Vec<_> = [root, extra].into_iter().flatten().collect();
            let Some((at, _)) = given.first() else { return };
            (*at, given.iter().map(|(_, text)| text.as_str()).collect::<Vec<_>>().join(" "))
        }
    };
    translation.command_line(at, &text);
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
