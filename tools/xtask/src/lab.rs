//! Puts binaries and images where the scenarios run: into the nested lab's machine, or beside each other on this host.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use domus_tests::images::{Images, KernelFiles};
use domus_tests::lab_vm::{Failure, LabVm, STEP, Serial};
use domus_tests::report::Tally;

use crate::command::{command, read};
use crate::demo;
use crate::images::{KERNELS, images};
use crate::packages::{Consent, Need, install_packages};
use crate::terminal::Terminal;
use crate::workspace;

/// Enough for two guests and for one of 5 GiB, of which little is touched.
const MEMORY_MIB: u32 = 8192;

/// A run of the lab's machine with Domus' binaries in `/lab/bin` and the images in `/lab/images`.
pub fn lab_vm<'a>(
    images: &'a Images,
    bin: &Path,
    name: &str,
    second_disk: bool,
    systemd: bool,
    limit: Duration,
) -> Result<LabVm<'a>> {
    let folder = free_folder(name)?;
    let vm = LabVm { images, folder, memory_mib: MEMORY_MIB, second_disk, systemd, counted: false, limit };
    vm.prepare()?;
    for binary in workspace::BINARIES {
        vm.place(&bin.join(binary), &format!("bin/{binary}"))?;
    }
    let mut inside = images.clone();
    for (id, files) in &images.kernels {
        let (vmlinuz, initrd) = (format!("vmlinuz-{}", id.name()), format!("initrd-{}", id.name()));
        vm.place(&files.vmlinuz, &format!("images/{vmlinuz}"))?;
        vm.place(&files.initrd, &format!("images/{initrd}"))?;
        inside.kernels.insert(*id, KernelFiles { vmlinuz: vmlinuz.into(), initrd: initrd.into() });
    }
    // The demo has none.
    if !images.guest.as_os_str().is_empty() {
        vm.place(&images.guest, "images/guest.ext4")?;
        inside.guest = "guest.ext4".into();
    }
    for (name, file) in &images.repacked {
        let place = format!("repacked-{name}");
        vm.place(file, &format!("images/{place}"))?;
        inside.repacked.insert(name.clone(), place.into());
    }
    inside.debian = "/dev/nvme1n1".into();
    inside.save(&vm.share().join("images/images.json"))?;
    Ok(vm)
}

/// A folder for a run that no other process uses: two `cargo xtask` may be at work in one tree.
fn free_folder(name: &str) -> Result<PathBuf> {
    let runs = workspace::target().join("lab/runs");
    std::fs::create_dir_all(&runs).with_context(|| format!("cannot make {}", runs.display()))?;
    for number in 1..100 {
        let folder = runs.join(format!("{name}.{number}"));
        let lock = File::create(folder.with_added_extension("lock"))?;
        if lock.try_lock().is_ok() {
            // Held until this process ends, whatever becomes of the run.
            std::mem::forget(lock);
            return Ok(folder);
        }
    }
    bail!("a hundred runs of {name} are under way in {}", runs.display())
}

/// What every step script begins with: local copies, since the share is slow to execute from.
pub const STEP_HEAD: &str = "set -e\ncp -r /lab/bin /run/bin\n";

/// Whether a line of a run is for the one who reads along: not the kernel's, not the name of a step.
pub fn tells(line: &str) -> bool {
    !line.starts_with(STEP) && !line.starts_with('[') && !line.starts_with("Powering off") && !line.is_empty()
}

/// Runs the scenarios `names` in a nested lab and prints their lines. After a failure of the lab's own machine it tries
/// once more.
pub fn nested(images: &Images, bin: &Path, name: &str, names: &[String]) -> Result<Tally> {
    let step = format!(
        "{STEP_HEAD}set +e\n/run/bin/domus-lab scenarios --images /lab/images/images.json --bin /run/bin \
         --folder /var/tmp/domus-lab {}\nstatus=$?\ncp /var/tmp/domus-lab/*.log /lab\nexit $status\n",
        names.join(" ")
    );
    counted(name, || {
        Ok((lab_vm(images, bin, name, false, false, Duration::from_secs(25 * 60))?, step.clone()))
    })
}

/// Installs the package `deb` in a lab's machine whose first process is systemd, and runs the scenarios of services
/// there.
pub fn services(images: &Images, bin: &Path, deb: &Path) -> Result<Tally> {
    counted("services", || {
        let vm = lab_vm(images, bin, "services", true, true, Duration::from_secs(25 * 60))?;
        vm.place(deb, "domus.deb")?;
        // The demo needs the package, and tells more than the first failure if the scenarios fail.
        let step = format!(
            "{STEP_HEAD}set +e\n/run/bin/domus-lab services --package /lab/domus.deb \
             --images /lab/images/images.json --folder /var/tmp/domus-lab\nfailed=$?\n{}failed=$((failed | $?))\n\
             cp /var/tmp/domus-lab/*.log /lab\njournalctl --no-pager --boot >/lab/journal.log\nexit $failed\n",
            demo::installed(&vm)?
        );
        Ok((vm, step))
    })
}

/// Runs the step in the machine that `make` makes, and prints and counts its lines. After a failure of the machine
/// itself it tries once more.
fn counted<'a>(name: &str, make: impl Fn() -> Result<(LabVm<'a>, String)>) -> Result<Tally> {
    for attempt in 1..=2 {
        let (vm, step) = make()?;
        let mut tally = Tally::default();
        let result = vm.run(
            &step,
            Serial::Lines(&mut |line| {
                tally.count(line);
                if tells(line) {
                    println!("[{name}] {line}");
                }
            }),
        );
        match result {
            Ok(status) => {
                if (status == 0) != (tally.failed == 0 && tally.passed > 0) {
                    bail!("{name}: status {status} after {tally}; see {}", vm.folder.display());
                }
                return Ok(tally);
            }
            Err(error) if attempt == 1 && matches!(error.downcast_ref(), Some(Failure::Machine(_))) => {
                println!("[{name}] {error:#}: starting it once more");
            }
            Err(error) => return Err(error.context(format!("{name}; see {}", vm.folder.display()))),
        }
    }
    bail!("{name}: the lab's machine failed twice")
}

/// Runs a script of the developer's own in the lab's machine, or a shell on the terminal.
pub fn script(
    consent: Consent,
    script: Option<&Path>,
    extra: &[PathBuf],
    systemd: bool,
    build: bool,
) -> Result<()> {
    install_packages(consent, &[Need::Images, Need::TestGuest, Need::Qemu])?;
    let bin = if build { workspace::build_binaries()? } else { workspace::binaries() };
    let images = images(KERNELS)?;
    let vm = lab_vm(&images, &bin, "outer", true, systemd, Duration::from_secs(3600))?;
    for file in extra {
        let name = file.file_name().context("a file to place needs a name")?.to_string_lossy().into_owned();
        vm.place(file, &format!("extra/{name}"))?;
    }
    let status = match script {
        Some(script) => {
            let text = std::fs::read_to_string(script)
                .with_context(|| format!("cannot read {}", script.display()))?;
            vm.run(&format!("{STEP_HEAD}{text}"), Serial::Lines(&mut |line| println!("{line}")))?
        }
        None => {
            let _terminal = Terminal::save()?;
            vm.run(
                &format!(
                    "{STEP_HEAD}stty sane
exec setsid -c bash -i\n"
                ),
                Serial::Terminal,
            )?
        }
    };
    if status == 0 { Ok(()) } else { bail!("the script ended with status {status}") }
}

/// The names of all scenarios.
pub fn scenario_names(bin: &Path) -> Result<Vec<String>> {
    Ok(read(&mut command(&bin.join("domus-lab").display().to_string(), ["list"]))?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// Runs `domus-lab` here, under `wrapper` (a namespace, sudo), and prints and counts its lines.
pub fn here(wrapper: &[&str], bin: &Path, images: &Images, action: &str, names: &[String]) -> Result<Tally> {
    let folder = free_folder(action)?;
    std::fs::create_dir_all(&folder)?;
    let list = folder.join("images.json");
    images.save(&list)?;
    let program = bin.join("domus-lab");
    let mut words: Vec<String> = wrapper.iter().map(|word| (*word).to_owned()).collect();
    let path = |path: &PathBuf| path.display().to_string();
    words.extend([path(&program), action.to_owned(), "--images".into(), path(&list), "--bin".into()]);
    words.extend([bin.display().to_string(), "--folder".into(), path(&folder)]);
    words.extend(names.iter().cloned());
    let (first, rest) = words.split_first().context("no program")?;
    let mut child = command(first, rest)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .context("cannot start domus-lab")?;
    let mut tally = Tally::default();
    let output = child.stdout.take().context("no pipe")?;
    for line in std::io::BufRead::lines(std::io::BufReader::new(output)) {
        let line = line?;
        tally.count(&line);
        if tells(&line) {
            println!("[{action}] {line}");
        }
    }
    let status = child.wait()?;
    if status.success() != (tally.failed == 0 && tally.passed > 0) {
        bail!("domus-lab {action} ended with {status} after {tally}");
    }
    Ok(tally)
}
