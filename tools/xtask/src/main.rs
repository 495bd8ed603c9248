//! What builds, tests, demonstrates and measures Domus: `cargo xtask --help`.

mod command;
mod images;
mod packages;
mod workspace;

use anyhow::Result;
use domus_tests::images::KernelId;
use domus_tests::outer::{Outer, Serial};
use std::time::Duration;

fn main() -> Result<()> {
    packages::install_packages(packages::Consent::Given)?;
    let images = images::images(&[KernelId::V6_1Cloud, KernelId::V6_12Cloud])?;
    println!("{images:#?}");
    let outer = Outer {
        images: &images,
        folder: workspace::target().join("lab/runs/try"),
        memory_mib: 8192,
        second_disk: true,
        limit: Duration::from_secs(300),
    };
    outer.prepare()?;
    let step = std::env::args()
        .nth(1)
        .unwrap_or("uname -a; ls -la /dev/kvm; cat /proc/uptime; free -m; dmesg | tail -3".into());
    let t = std::time::Instant::now();
    let s = outer.run(&step, Serial::Lines(&mut |l| println!("[{:?}] {l}", t.elapsed())))?;
    println!("status {s} {:?}", t.elapsed());
    Ok(())
}
