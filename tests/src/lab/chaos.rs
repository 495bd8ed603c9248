//! Three Debian guests write, verify and send to each other while dom0, backends, consoles and commands are killed at
//! random, alone and in pairs. At the end no data is wrong, and ext4 and TCP have seen no error.
//!
//! `cargo xtask chaos` does the same with more kills, and with a guest that detects every request lost, doubled or
//! late.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::Lab;
use super::disks::{LOAD, check_load, kill_process};
use super::domain::{Console, Domain, Spec};
use domus_driver::process::poll_until;

const PATIENCE: Duration = Duration::from_secs(240);

/// How long there are kills. Everything is emulated twice: a backend is back within a second or so.
const KILLING: Duration = Duration::from_secs(60);

const GUESTS: [(&str, u8); 3] = [("alpha", 21), ("beta", 22), ("gamma", 23)];

/// One guest listens, the others send to it, again and again.
const LISTEN: &str = "iperf3 -s -D";
const SEND: &str = "(while ! test -e /tmp/stop; do iperf3 -c 10.77.0.21 -p PORT -t 5 >/tmp/iperf 2>&1 || cp /tmp/iperf /tmp/iperf.failed; done; \
    touch /tmp/sent) >/dev/null 2>&1 &";

/// Commands that are killed in the middle.
const COMMANDS: [&[&str]; 6] = [
    &["list"],
    &["block-list", "beta"],
    &["network-list", "gamma"],
    &["backend", "upgrade", "alpha", "root"],
    &["backend", "upgrade", "beta", "eth0"],
    &["pause", "gamma"],
];

/// See the module.
pub fn chaos(lab: &Lab) -> Result<()> {
    let seed = std::env::var("DOMUS_CHAOS_SEED").ok().and_then(|text| text.parse().ok());
    let seed = seed.unwrap_or_else(|| fastrand::u64(..));
    println!("chaos: seed {seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    let mut guests = Vec::new();
    for (name, number) in GUESTS {
        guests.push(Domain::boot(lab, Spec::new(name, number))?);
    }
    let runners = runners(lab)?;
    for (n, (domain, console)) in guests.iter_mut().enumerate() {
        let address = domain.spec.address();
        console.guest.run(&format!("ip link set eth0 up && ip addr add {address}/24 dev eth0"), PATIENCE)?;
        console.guest.run(LOAD, PATIENCE)?;
        let traffic = match n {
            0 => format!("{LISTEN} -p 5201; {LISTEN} -p 5202"),
            n => SEND.replace("PORT", &(5200 + n).to_string()),
        };
        console.guest.run(&traffic, PATIENCE)?;
    }
    let end = Instant::now() + KILLING;
    let mut kills = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(chance.u64(1000..4000)));
        kills += round(lab, &mut chance)?;
    }
    println!("chaos: {kills} kills");
    // A pause may have been the last word.
    lab.domus(&["unpause", "gamma"])?;
    ensure!(self::runners(lab)? == runners, "a guest is another one, or gone, with seed {seed}");
    let served = || {
        GUESTS
            .iter()
            .all(|(name, _)| lab.domus(&["why", name]).is_ok_and(|why| why.contains("nothing is amiss")))
    };
    ensure!(poll_until(Duration::from_secs(60), served), "something is amiss for a minute, with seed {seed}");
    for (n, (domain, console)) in guests.into_iter().enumerate().rev() {
        let name = domain.spec.name.clone();
        settle(lab, domain, console, n > 0).with_context(|| format!("{name}, seed {seed}"))?;
    }
    Ok(())
}

/// Stops the load, looks at what it has written, and switches the guest off.
fn settle(lab: &Lab, domain: Domain<'_>, old: Console, sends: bool) -> Result<()> {
    // The console of the beginning may have died; another one has the same guest behind it.
    let mut console = domain.console()?;
    let guest = &mut console.guest;
    guest.follow(&old.guest);
    drop(old);
    check_load(guest)?;
    if sends {
        let failed = guest.run(
            "while ! test -e /tmp/sent; do sleep 0.1; done; cat /tmp/iperf.failed 2>/dev/null || true",
            PATIENCE,
        )?;
        ensure!(
            failed.trim().is_empty(),
            "iperf3 said {failed:?}; {}",
            lab.domus(&["why", &domain.spec.name])?
        );
    }
    guest.start("sync; poweroff -f")?;
    domain.wait_gone()
}

/// The runners' processes.
fn runners(lab: &Lab) -> Result<Vec<(String, u64)>> {
    let runner = |domain: &serde_json::Value| {
        Some((domain["name"].as_str()?.to_owned(), domain["runner_pid"].as_u64()?))
    };
    lab.list()?.iter().map(|domain| runner(domain).context("a domain without a runner")).collect()
}

/// Kills one thing or two, or a command in the middle; returns how many.
fn round(lab: &Lab, chance: &mut fastrand::Rng) -> Result<u32> {
    if chance.u32(..4) == 0 {
        let command = COMMANDS[chance.usize(..COMMANDS.len())];
        let mut client = std::process::Command::new(lab.bin.join("domus"));
        let mut client =
            client.args(command).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(chance.u64(..300)));
        client.kill()?;
        client.wait()?;
        if command[0] == "pause" {
            lab.domus(&["unpause", command[1]])?;
        }
        return Ok(1);
    }
    let mut dom0 = false;
    let count = chance.u32(1..=2);
    for _ in 0..count {
        match chance.u32(..4) {
            0 => dom0 = true,
            role => {
                let (name, _) = GUESTS[chance.usize(..GUESTS.len())];
                let role = ["block", "net", "console"][role as usize - 1];
                if let Some(pid) = serving(name, role) {
                    kill_process(pid)?;
                }
            }
        }
    }
    if dom0 {
        lab.restart_dom0(Duration::from_millis(chance.u64(..1000)))?;
    }
    Ok(count)
}

/// The process of a domain's backend, by its control socket.
fn serving(name: &str, role: &str) -> Option<u64> {
    let control = format!("/run/domus/domains/{name}/{role}.");
    let processes = fs::read_dir("/proc").ok()?.flatten();
    let serves = |process: &fs::DirEntry| {
        let line = fs::read(process.path().join("cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).split('\0').any(|word| word.starts_with(&control))
    };
    processes.filter(serves).find_map(|process| process.file_name().to_str()?.parse().ok())
}
