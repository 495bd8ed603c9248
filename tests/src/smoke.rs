//! The demo without a terminal: starts it as the demo does and asks the guest's shell about disk, NIC and console.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::checks;
use crate::guest::Guest;
use crate::report::Tally;
use domus_driver::process::{Running, tied};

/// The address the demo's guest gives its eth0.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 77, 2);

/// A whole Debian with systemd, perhaps emulated twice.
const BOOT: Duration = Duration::from_secs(300);

const PATIENCE: Duration = Duration::from_secs(120);

/// Runs `domus run CONFIG` from `bin` and prints a line for each check.
pub fn run(bin: &Path, config: &Path) -> Tally {
    let mut tally = Tally::default();
    let mut shell = None;
    tally.run("console", || {
        let mut started = Shell::start(bin, config)?;
        started.log_in()?;
        shell = Some(started);
        Ok(())
    });
    let Some(mut shell) = shell else { return tally };
    tally.run("disk", || {
        shell.ask("findmnt --noheadings --output SOURCE,FSTYPE / | grep -q '/dev/vda *ext4'")?;
        shell.ask("head -c 8M /dev/urandom >/root/a && md5sum /root/a >/root/a.md5 && sync")?;
        shell.ask("echo 3 >/proc/sys/vm/drop_caches && md5sum --check --quiet /root/a.md5")
    });
    tally.run("nic", || {
        shell.ask("until ip -4 -o addr show eth0 | grep -q 192.168.77.2; do sleep 0.2; done")?;
        checks::ping(GUEST)?;
        shell.ask("ping -c 1 -W 20 192.168.77.1")
    });
    tally.run("power-off", || {
        shell.guest.send("systemctl poweroff")?;
        match shell.process.wait(PATIENCE)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("`domus run` ended with {status}"),
            None => bail!("`domus run` goes on after the guest's power-off"),
        }
    });
    tally
}

/// A login shell on the guest's console.
struct Shell {
    guest: Guest,
    process: Running,
    asked: u32,
}

impl Shell {
    fn start(bin: &Path, config: &Path) -> Result<Self> {
        let mut command = tied(bin.join("domus"));
        command.arg("run").arg(config).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut process = Running::start("domus run", &mut command)?;
        let output = process.child().stdout.take().context("no pipe")?;
        let input = process.child().stdin.take().context("no pipe")?;
        Ok(Self { guest: Guest::new(output, input), process, asked: 0 })
    }

    /// The guest logs root in by itself; what shows it is that the shell answers.
    fn log_in(&mut self) -> Result<()> {
        self.guest.wait_for("Ctrl-] leaves", BOOT).context("no login on the console")?;
        self.ask("test $(tty) = /dev/ttyS0")
    }

    /// Runs a command in the shell; a status other than 0 is an error.
    fn ask(&mut self, command: &str) -> Result<()> {
        self.asked += 1;
        let asked = self.asked;
        // The shell echoes what it is told: the quotes keep the echo from looking like the answer.
        self.guest.send(&format!("{command}; echo \"answer\"-{asked}: $?"))?;
        let (output, status) = self.guest.wait_for(&format!("answer-{asked}: "), PATIENCE)?;
        if status.trim() != "0" {
            bail!("status {} of {command}: {:?}", status.trim(), output.trim());
        }
        Ok(())
    }
}
