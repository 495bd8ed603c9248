//! The commands of an operator on a running guest.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::Lab;
use super::domain::{BOOT, Domain, Spec};
use domus_driver::process::poll_until;

const PATIENCE: Duration = Duration::from_secs(60);

/// list, pause, unpause, a name taken twice, reboot, shutdown.
pub fn commands(lab: &Lab) -> Result<()> {
    let (domain, mut console) = Domain::boot(lab, Spec::new("ruled", 2))?;
    let name = domain.spec.name.as_str();
    let table = lab.domus(&["list"])?;
    let mut lines = table.lines();
    let header: Vec<&str> = lines.next().unwrap_or_default().split_whitespace().collect();
    if header != ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"] {
        bail!("`domus list` begins with {header:?}");
    }
    for expected in ["Domain-0", name] {
        if !table.lines().any(|line| line.split_whitespace().next() == Some(expected)) {
            bail!("`domus list` does not name {expected}: {table:?}");
        }
    }

    lab.domus(&["pause", name])?;
    expect_state(lab, name, 'p')?;
    let id = console.guest.start("echo awake")?;
    if console.guest.finish(id, "echo awake", Duration::from_secs(3)).is_ok() {
        bail!("a paused guest answered");
    }
    lab.domus(&["unpause", name])?;
    console.guest.finish(id, "echo awake", PATIENCE).context("after unpause")?;

    // The guest answers the power button by switching itself off; dom0 knows that a restart was asked for.
    lab.domus(&["reboot", name])?;
    console
        .guest
        .wait_for("domus-guest: power button", PATIENCE)
        .context("`domus reboot` presses the power button")?;
    console.guest.wait_ready(BOOT).context("after `domus reboot`")?;

    lab.domus(&["shutdown", name, "--wait"])?;
    console
        .guest
        .wait_for("domus-guest: power button", PATIENCE)
        .context("`domus shutdown` presses the power button")?;
    domain.wait_gone().context("after `domus shutdown --wait`")
}

/// A console attached late sees the boot; a second one reads too.
pub fn console(lab: &Lab) -> Result<()> {
    let (domain, mut first) = Domain::boot(lab, Spec::new("talker", 2))?;
    first.guest.run("echo said-before-the-second-came", PATIENCE)?;
    let mut second = domain.console()?;
    second.guest.wait_ready(PATIENCE).context("the second console does not see the boot")?;
    second.guest.wait_for("said-before-the-second-came", PATIENCE).context("the history")?;
    first.guest.run("echo said-to-both", PATIENCE)?;
    second.guest.wait_for("said-to-both", PATIENCE).context("the second console does not read along")?;
    drop(first);
    drop(second);
    let mut third = domain.console()?;
    third.guest.wait_ready(PATIENCE)?;
    // Nobody else is attached any more, so this one may write.
    third.guest.run("echo the-writer-has-gone", PATIENCE).context("the writer's place is not free")?;
    Ok(())
}

fn expect_state(lab: &Lab, name: &str, flag: char) -> Result<()> {
    let mut state = String::new();
    let found = poll_until(Duration::from_secs(10), || {
        state = lab.listed(name).ok().flatten().map(|domain| domain["state"].to_string()).unwrap_or_default();
        state.contains(flag)
    });
    if !found {
        bail!("`domus list` shows state {state}, expected flag {flag}");
    }
    Ok(())
}
