//! `cargo xtask bench start`: how long a start takes, and what the processes weigh.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domus_tests::environment::Environment;
use domus_tests::images::Images;
use domus_tests::lab::bench::FIGURE;
use domus_tests::lab_vm::Serial;
use serde_json::{Value, json};

use crate::command::{command, read};
use crate::images::{KERNELS, images};
use crate::lab::{STEP_HEAD, lab_vm};
use crate::packages::{Consent, Need, install_packages, is_root};
use crate::workspace;

/// What is aimed at, by the case's name: the peer of a figure that has no other.
const TARGETS: &[(&str, f64)] = &[
    ("create to first guest instruction, plain kernel", 60.0),
    ("private memory of domu-runner", 4.0),
    ("private memory of domus-block", 4.0),
    ("private memory of domus-net", 4.0),
    ("private memory of domus-console", 4.0),
    ("lines of domu-runner without tests", 6000.0),
];

/// Each process and the folders whose allow-lists make up its own.
const PROCESSES: &[(&str, &[&str])] = &[
    ("domu-runner", &["domu-runner/src"]),
    ("domus-block", &["backends/block/src", "backends/vu-server/src"]),
    ("domus-net", &["backends/net/src", "backends/vu-server/src"]),
    ("domus-switch", &["backends/switch/src", "backends/vu-server/src"]),
    ("domus-console", &["backends/console/src"]),
];

/// Measures a start, and what the processes weigh.
pub fn start(consent: Consent, json: bool) -> Result<()> {
    install_packages(consent, &[Need::Images, Need::TestGuest, Need::Guest, Need::Qemu])?;
    let bin = workspace::build_binaries()?;
    let images = images(KERNELS)?;
    let environment = Environment::detect();
    if !json {
        println!("This machine: {environment}");
        if environment != Environment::Hardware {
            println!(
                "Debian's times are the lab's: one emulated instruction is one nanosecond. They compare programs, not machines."
            );
        }
    }
    let print = |case: &str, ours: f64, unit: &str| print(json, case, ours, unit);
    sources(&print)?;
    for name in ["dom0", "domus", "domu-runner", "domus-block", "domus-net", "domus-console"] {
        print(&format!("binary of {name}"), kib(&bin.join(name))?, "KiB");
    }
    let mut take = |line: &str| {
        let Some(figure) =
            line.strip_prefix(FIGURE).and_then(|text| serde_json::from_str::<Value>(text).ok())
        else {
            return;
        };
        let (case, unit) =
            (figure["case"].as_str().unwrap_or_default(), figure["unit"].as_str().unwrap_or_default());
        print(case, figure["ours"].as_f64().unwrap_or_default(), unit);
    };
    if environment != Environment::None {
        let folder = workspace::target().join("lab/runs");
        fs::create_dir_all(&folder)?;
        direct(&bin, &["bench-plain"], &folder, &mut take)?;
    }
    match environment {
        Environment::Hardware => {
            let folder = workspace::target().join("lab/runs/bench-direct");
            fs::create_dir_all(&folder)?;
            let list = folder.join("images.json");
            images.save(&list)?;
            direct(&bin, &["bench", "--images", &list.display().to_string()], &folder, &mut take)
        }
        Environment::Paravirtual | Environment::None => nested(&bin, &images, &mut take),
    }
}

fn nested(bin: &Path, images: &Images, take: &mut dyn FnMut(&str)) -> Result<()> {
    let mut vm = lab_vm(images, bin, "bench", false, false, Duration::from_secs(20 * 60))?;
    vm.counted = true;
    let arguments = "--images /lab/images/images.json --bin /run/bin --folder /var/tmp/domus-lab";
    match vm.run(&format!("{STEP_HEAD}exec /run/bin/domus-lab bench {arguments}\n"), Serial::Lines(take))? {
        0 => Ok(()),
        status => bail!("domus-lab bench ended with status {status}; see {}", vm.folder.display()),
    }
}

/// Runs `domus-lab` on this host.
fn direct(bin: &Path, action: &[&str], folder: &Path, take: &mut dyn FnMut(&str)) -> Result<()> {
    let program = bin.join("domus-lab").display().to_string();
    let mut bench = if is_root() { command(&program, action) } else { command("sudo", [&program]) };
    if !is_root() {
        bench.args(action);
    }
    bench.arg("--bin").arg(bin).arg("--folder").arg(folder);
    read(&mut bench)?.lines().for_each(take);
    Ok(())
}

/// What can be read off the source: lines of the runner, allowed system calls.
fn sources(print: &dyn Fn(&str, f64, &str)) -> Result<()> {
    let root = workspace::root();
    let mut lines = 0;
    rust_files(&root.join("domu-runner/src"), &mut |text| {
        let code = text.split("#[cfg(test)]").next().unwrap_or_default();
        lines +=
            code.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//")).count();
    })?;
    print("lines of domu-runner without tests", lines as f64, "lines");
    for (process, folders) in PROCESSES {
        let mut calls = std::collections::BTreeSet::new();
        for folder in folders.iter().chain(&["shared-abi/startup/src/sandbox"]) {
            rust_files(&root.join(folder), &mut |text| {
                for piece in text.split("Allow::").skip(1) {
                    let call = piece.split("libc::SYS_").nth(1).filter(|_| !piece.starts_with("Ioctl"));
                    let name =
                        call.and_then(|rest| rest.split(|c: char| !c.is_alphanumeric() && c != '_').next());
                    calls.extend(name.map(str::to_owned));
                }
                if text.contains("Allow::Ioctl(") {
                    calls.insert("ioctl".to_owned());
                }
            })?;
        }
        print(&format!("system calls allowed to {process}"), calls.len() as f64, "calls");
    }
    Ok(())
}

fn rust_files(folder: &Path, take: &mut dyn FnMut(&str)) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            rust_files(&path, take)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests.rs") {
            take(&fs::read_to_string(&path)?);
        }
    }
    Ok(())
}

fn kib(path: &Path) -> Result<f64> {
    Ok((fs::metadata(path)?.len() as f64 / 1024.0).round())
}

fn print(json: bool, case: &str, ours: f64, unit: &str) {
    let target = TARGETS.iter().find(|(name, _)| *name == case).map(|(_, value)| *value);
    if json {
        let ratio = target.map(|target| (ours / target * 1000.0).round() / 1000.0);
        let peer = target.map(|_| "target");
        println!(
            "{}",
            json!({
                "bench": "start", "case": case, "ours": ours,
                "peer": peer, "peer_value": target, "ratio": ratio, "unit": unit,
            })
        );
    } else {
        let aim = target.map(|target| format!("(target {target})")).unwrap_or_default();
        println!("{case:<45} {ours:>10.2} {unit:<6} {aim}");
    }
}
