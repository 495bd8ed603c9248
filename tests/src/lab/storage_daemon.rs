//! A backend that Domus did not start: the disk is qemu-storage-daemon's vhost-user-blk export.

use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::domain::{Disk, Domain, Spec, copy_sparse};
use super::{HOST, Lab};
use crate::checks;
use domus_driver::process::{Running, poll_until, tied};

/// Boots from the export, and passes the same checks.
pub fn storage_daemon(lab: &Lab) -> Result<()> {
    let image = lab.folder().join("daemon.ext4");
    copy_sparse(&lab.images.guest, &image)?;
    let socket = Path::new("/run/storage-daemon.sock").to_path_buf();
    let daemon = start(&image, &socket, lab.folder())?;

    let spec = Spec { disk: Disk::Socket(socket), ..Spec::new("foreign", 2) };
    let (domain, mut console) = Domain::boot(lab, spec)?;
    checks::disk(&mut console.guest).context("disk")?;
    checks::network(&mut console.guest, HOST, domain.spec.address()).context("network")?;
    console.guest.start("sync; poweroff -f")?;
    domain.wait_gone()?;
    drop(daemon);
    fs::remove_file(image)?;
    Ok(())
}

fn start(image: &Path, socket: &Path, folder: &Path) -> Result<Running> {
    let log = fs::File::create(folder.join("storage-daemon.log"))?;
    let mut command = tied("qemu-storage-daemon");
    command.args(["--blockdev", &format!("driver=file,node-name=disk,filename={}", image.display())]);
    let address = format!("addr.type=unix,addr.path={}", socket.display());
    command
        .args(["--export", &format!("type=vhost-user-blk,id=export,node-name=disk,{address},writable=on")]);
    let mut daemon = Running::start(
        "qemu-storage-daemon",
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log),
    )?;
    let appeared =
        poll_until(Duration::from_secs(30), || socket.exists() || !matches!(daemon.ended(), Ok(None)));
    if !appeared || !socket.exists() {
        let log = fs::read_to_string(folder.join("storage-daemon.log")).unwrap_or_default();
        bail!("qemu-storage-daemon did not listen: {}", log.trim());
    }
    Ok(daemon)
}
