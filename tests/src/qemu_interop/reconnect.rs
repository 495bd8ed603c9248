//! A block backend is killed while a guest of QEMU writes. QEMU connects to the next one, which repeats the requests
//! that the first had not given back.
//!
//! The guest writes files, each with a sync, and reports each. Each kill hits another moment of a file. Afterwards
//! every file has the checksum that the guest computed before the write.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{BOOT, QemuMachine, block, guest_disk};
use crate::images::{Images, KernelId};

/// Kills, and one file more than them.
const KILLS: u32 = 8;

/// Without the page cache requests complete out of order, so only the inflight log tells which requests are left.
const CACHE: &str = "none";

/// QEMU connects again after a second; then a file is written by an emulated machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn nothing_is_lost_when_the_disk_backend_is_killed(
    bin: &Path,
    images: &Images,
    folder: &Path,
) -> Result<()> {
    let disk = guest_disk(images, folder)?;
    let mut backend = Some(block(bin, &disk, CACHE, folder)?);
    let socket = backend.as_ref().context("the backend was just started")?.socket.clone();
    let machine = QemuMachine {
        images,
        kernel: KernelId::V6_12Cloud,
        block: &socket,
        reconnect: true,
        net: None,
        folder,
    };
    let (mut qemu, mut guest) = machine.boot()?;
    guest.wait_ready(BOOT)?;
    // Four files of 3 MiB at once, copied from RAM and summed there.
    let write = format!(
        "cd /data && for i in $(seq {}); do dd if=/dev/urandom of=/tmp/a bs=1M count=3 2>/dev/null && \
         for j in 1 2 3 4; do md5sum </tmp/a | sed \"s/-/$i.$j/\" >>/tmp/sums; done && echo \"begins $i\" && \
         for j in 1 2 3 4; do dd if=/tmp/a of=$i.$j bs=64k conv=fsync 2>/dev/null & done; wait; echo \"wrote $i\"; done",
        KILLS + 1
    );
    let id = guest.start(&write)?;
    let mut in_time = 0;
    for kill in 1..=KILLS {
        guest.wait_for(&format!("begins {kill}"), PATIENCE)?;
        // Another part of the file each time.
        std::thread::sleep(Duration::from_millis(u64::from(kill) * 15));
        // Killed and reaped before the next one is there.
        drop(backend.take());
        in_time += u32::from(!guest.transcript().contains(&format!("wrote {kill}\n")));
        backend = Some(block(bin, &disk, CACHE, folder)?);
        guest
            .wait_for(&format!("wrote {kill}"), PATIENCE)
            .with_context(|| format!("after kill {kill} of {KILLS}"))?;
    }
    guest.finish(id, &write, PATIENCE)?;
    if in_time < KILLS / 2 {
        bail!("only {in_time} of {KILLS} kills came while a file was written");
    }
    guest.run("echo 3 >/proc/sys/vm/drop_caches && cd /data && md5sum -c /tmp/sums", PATIENCE)?;
    let errors = guest.run("dmesg | grep -E 'I/O error|EXT4-fs error' || true", PATIENCE)?;
    if !errors.trim().is_empty() {
        bail!("the guest has seen errors: {}", errors.trim());
    }
    guest.start("sync; poweroff -f")?;
    if qemu.wait(PATIENCE)?.is_none() {
        bail!("QEMU runs on after the guest's power-off");
    }
    Ok(())
}
