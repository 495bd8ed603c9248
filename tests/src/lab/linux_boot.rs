//! A real kernel without a PVH note: packed by each compressor, and booted from a unified kernel image.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::Lab;
use super::domain::{BOOT, Console, Domain, Spec};
use crate::images::UKI_CMDLINE;

/// Loads each of the kernels, and boots one.
pub fn linux_boot(lab: &Lab) -> Result<()> {
    ensure!(lab.images.repacked.len() == 8, "kernels were not packed again");
    let spec = Spec { memory: "512MiB".to_owned(), ..Spec::new("linux", 4) };
    let config = spec.config(lab)?;
    let file = lab.folder().join("linux.json");
    let write = |boot: Value| {
        let mut config = config.clone();
        config["boot"] = boot;
        fs::write(&file, config.to_string())
    };
    let path = file.display().to_string();
    for (name, kernel) in &lab.images.repacked {
        write(json!({ "kernel": kernel }))?;
        let check = || -> Result<Duration> {
            let start = Instant::now();
            lab.domus(&["check", &path]).with_context(|| format!("packed with {name}"))?;
            Ok(start.elapsed())
        };
        let (first, second) = (check()?, check()?);
        println!("value linux-boot {name}: loaded in {first:.1?}, again in {second:.1?}");
        // The slow ones tell that it was kept from the noise of emulation.
        let slow = ["bzip2", "lzma", "xz"].contains(&name.as_str());
        ensure!(!slow || second * 2 < first, "{name} was unpacked again: {first:?}, {second:?}");
    }

    // Kernel, initrd and command line: all of the image's own.
    write(json!({ "kernel": lab.images.repacked["uki"] }))?;
    let domain = Domain::create_from(lab, spec, &file)?;
    let mut console: Console = domain.console()?;
    let ready = console.guest.wait_ready(BOOT).context("the boot")?;
    domain.check_ready(&ready)?;
    let mut run = |command| console.guest.run(command, Duration::from_secs(30));
    // 0xff: a loader without a number. By PVH it is 0xb0.
    let loader = run("cat /proc/sys/kernel/bootloader_type")?;
    ensure!(loader.trim() == "255", "the kernel was started by a loader of type {loader:?}");
    let cmdline = run("cat /proc/cmdline")?;
    ensure!(cmdline.trim() == UKI_CMDLINE, "its command line is {cmdline:?}");
    run("grep -q '^/dev/vda / ext4' /proc/mounts")?;
    console.guest.start("sync; poweroff -f")?;
    domain.wait_gone()
}
