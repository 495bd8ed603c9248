//! Debian's kernels with one and two vCPUs, little and much memory: boot, disk, NIC, reboot, power-off.

use anyhow::{Context, Result};

use super::domain::{BOOT, Console, Domain, Spec};
use super::{HOST, Lab, Scenario};
use crate::checks;
use crate::images::KernelId;

/// Kernel, vCPUs, memory: every value of each at least twice; 5 GiB (RAM above 4 GiB) and two vCPUs with both kernels.
const MATRIX: &[(KernelId, u32, &str)] = &[
    (KernelId::V6_12Cloud, 1, "256MiB"),
    (KernelId::V6_1Cloud, 1, "256MiB"),
    (KernelId::V6_12Cloud, 2, "5GiB"),
    (KernelId::V6_1Cloud, 2, "5GiB"),
    (KernelId::V6_12Cloud, 2, "1GiB"),
    (KernelId::V6_1Cloud, 1, "5GiB"),
];

/// One scenario for each machine of the matrix.
pub fn scenarios() -> Vec<Scenario> {
    let scenario = |(kernel, vcpus, memory): &(KernelId, u32, &'static str)| {
        let (kernel, vcpus, memory) = (*kernel, *vcpus, *memory);
        let name = format!("boot-{}-{vcpus}cpu-{memory}", kernel.name());
        Scenario::new(name, move |lab| boot(lab, kernel, vcpus, memory))
    };
    MATRIX.iter().map(scenario).collect()
}

fn boot(lab: &Lab, kernel: KernelId, vcpus: u32, memory: &str) -> Result<()> {
    let spec = Spec { kernel, vcpus, memory: memory.to_owned(), ..Spec::new("stock", 2) };
    let (domain, mut console) = Domain::boot(lab, spec)?;
    checks::disk(&mut console.guest).context("disk")?;
    checks::network(&mut console.guest, HOST, domain.spec.address()).context("network")?;

    let mut console = reboot(&domain, console)?;
    checks::disk_again(&mut console.guest).context("disk after the reboot")?;

    console.guest.start("sync; poweroff -f")?;
    domain.wait_gone().context("power-off from inside")
}

/// Reboots from inside and waits for the second boot.
fn reboot(domain: &Domain<'_>, mut console: Console) -> Result<Console> {
    console.guest.start("sync; reboot -f")?;
    let ready = console.guest.wait_ready(BOOT).context("after the reboot")?;
    domain.check_ready(&ready)?;
    Ok(console)
}
