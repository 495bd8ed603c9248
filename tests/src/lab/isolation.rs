//! Two domains at once: neither sees the other's disk.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Lab;
use super::domain::{Domain, Spec};

const PATIENCE: Duration = Duration::from_secs(120);

/// Each writes a mark of its own to its disk and finds one disk, without the other's mark.
pub fn two_domains(lab: &Lab) -> Result<()> {
    let (left, mut left_console) = Domain::boot(lab, Spec::new("left", 2)).context("the first domain")?;
    let (right, mut right_console) = Domain::boot(lab, Spec::new("right", 3)).context("the second domain")?;
    for (console, mark) in [(&mut left_console, "left"), (&mut right_console, "right")] {
        console.guest.run(&format!("echo mark-of-the-{mark}-one >/data/mark; sync"), PATIENCE)?;
    }
    for (console, own) in [(&mut left_console, "left"), (&mut right_console, "right")] {
        let disks = console.guest.run("ls /sys/block | grep -c '^vd'", PATIENCE)?;
        if disks.trim() != "1" {
            bail!("{own} sees {} disks, it has one", disks.trim());
        }
        console.guest.run(
            &format!("echo 3 >/proc/sys/vm/drop_caches; grep -q mark-of-the-{own}-one /data/mark"),
            PATIENCE,
        )?;
    }
    for (console, domain) in [(&mut left_console, &left), (&mut right_console, &right)] {
        console.guest.start("sync; poweroff -f")?;
        domain.wait_gone()?;
    }
    for (domain, own, other) in [(&left, "left", "right"), (&right, "right", "left")] {
        let image = std::fs::read(domain.spec.image(lab))?;
        let holds = |mark: &str| {
            let mark = format!("mark-of-the-{mark}-one");
            image.windows(mark.len()).any(|window| window == mark.as_bytes())
        };
        if !holds(own) || holds(other) {
            bail!("{own}'s image holds its own mark: {}, the other's: {}", holds(own), holds(other));
        }
    }
    Ok(())
}
