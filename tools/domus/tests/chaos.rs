//! Anything but a guest's own runner is killed or stopped (SIGSTOP), at random, alone and in pairs, while three guests
//! verify what they read, write and echo. At the end nothing was lost, doubled or left behind.
//!
//! `DOMUS_CHAOS_SECONDS` says for how long (default 60), `DOMUS_CHAOS_SEED` which kills (default: the time of day;
//! printed).

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::collections::BTreeMap;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant, SystemTime};

use common::{Console, Host, signal};
use nix::sys::signal::Signal;

/// The guests go on for so long after the last kill: what was broken then comes up, and what was stopped is noticed.
const AFTERWARDS: Duration = Duration::from_secs(20);

/// A guest is paused no longer.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

const GUESTS: [&str; 3] = ["raw", "image", "wire"];

/// What can be killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Dom0,
    /// A process of a guest's, by the name of its control socket's role.
    Of(&'static str, &'static str),
    Switch,
}

const VICTIMS: &[Victim] = &[
    Victim::Dom0,
    Victim::Dom0,
    Victim::Dom0,
    Victim::Of("raw", "block"),
    Victim::Of("raw", "net"),
    Victim::Of("raw", "console"),
    Victim::Of("image", "block"),
    Victim::Of("image", "net"),
    Victim::Of("image", "console"),
    Victim::Of("wire", "block"),
    Victim::Of("wire", "net"),
    Victim::Of("wire", "console"),
    Victim::Switch,
];

/// Commands whose client is killed in the middle. None changes what the guests do for good.
const COMMANDS: &[&[&str]] = &[
    &["list"],
    &["list", "--json"],
    &["why", "raw"],
    &["block-list", "image"],
    &["network-list", "wire"],
    &["network-list"],
    &["block-set", "raw", "root", "--iops", "1000000"],
    &["block-set", "raw", "root", "--iops", "none"],
    &["network-set", "wire", "eth0", "--receive-packets", "none"],
    &["console", "raw"],
    &["console", "wire", "--take"],
    &["pause", "image"],
    &["unpause", "image"],
    &["backend", "upgrade", "raw", "root"],
    &["backend", "upgrade", "image", "root"],
    &["backend", "upgrade", "wire", "eth0"],
    &["create", "extra.json"],
    &["destroy", "extra"],
    &["reboot", "extra"],
    &["check", "extra.json"],
    &["disk", "create", "extra.qcow2", "1MiB", "--format", "qcow2"],
];

struct Chaos {
    host: Host,
    chance: fastrand::Rng,
    kills: BTreeMap<String, u32>,
    clients: Vec<Child>,
    /// Since when a guest may be paused.
    paused: Option<Instant>,
}

impl Chaos {
    /// Kills a victim, if it is there just now.
    fn kill(&mut self, victim: Victim) {
        let Some(pid) = self.pid(victim) else { return };
        signal(pid, Signal::SIGKILL);
        if matches!(victim, Victim::Dom0) {
            // Its end is seen by the service manager of this round, or there is none after the last one.
            self.host.service().wait().unwrap();
        }
        self.count("", victim);
    }

    /// Stops a victim, if it is there just now. It stays stopped until somebody notices that it does not answer; dom0,
    /// whom its service manager watches, for a moment.
    fn stop(&mut self, victim: Victim) {
        let Some(pid) = self.pid(victim) else { return };
        signal(pid, Signal::SIGSTOP);
        if matches!(victim, Victim::Dom0) {
            std::thread::sleep(Duration::from_millis(self.chance.u64(..1000)));
            signal(pid, Signal::SIGCONT);
        }
        self.count("stopped ", victim);
    }

    fn pid(&mut self, victim: Victim) -> Option<u32> {
        match victim {
            Victim::Dom0 => Some(self.host.service().id()),
            Victim::Of(guest, role) => ["sock", "next.sock"]
                .iter()
                .find_map(|suffix| self.host.pid_of(guest, &format!("{role}.{suffix}"))),
            Victim::Switch => self.host.pid_of_switch("lan"),
        }
    }

    fn count(&mut self, how: &str, victim: Victim) {
        let name = match victim {
            Victim::Dom0 => "dom0",
            Victim::Of(_, role) => role,
            Victim::Switch => "switch",
        };
        *self.kills.entry(format!("{how}{name}")).or_default() += 1;
    }

    /// Starts a command and kills it within some milliseconds, or not at all.
    fn client(&mut self) {
        let command = COMMANDS[self.chance.usize(..COMMANDS.len())];
        if command[0] == "pause" {
            self.paused.get_or_insert_with(Instant::now);
        }
        let mut client = self.host.command(command);
        let mut client =
            client.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(self.chance.u64(..30)));
        if self.chance.u64(..4) > 0 || matches!(command[0], "console") {
            client.kill().unwrap();
            *self.kills.entry("domus".into()).or_default() += 1;
        }
        self.clients.push(client);
    }

    /// A dom0 that has been killed is followed by another, as a service manager would do it.
    fn service_manager(&mut self) {
        if self.host.service().try_wait().unwrap().is_some() {
            std::thread::sleep(Duration::from_millis(self.chance.u64(..300)));
            self.host.kill_service();
            self.host.start_service();
        }
    }

    fn round(&mut self) {
        std::thread::sleep(Duration::from_millis(50 + self.chance.u64(..900)));
        match self.chance.u64(..10) {
            0..=2 => self.client(),
            3 => {
                let victim = VICTIMS[self.chance.usize(..VICTIMS.len())];
                self.stop(victim);
            }
            4..=6 => {
                let victim = VICTIMS[self.chance.usize(..VICTIMS.len())];
                self.kill(victim);
            }
            _ => {
                let (one, other) = (
                    VICTIMS[self.chance.usize(..VICTIMS.len())],
                    VICTIMS[self.chance.usize(..VICTIMS.len())],
                );
                self.kill(one);
                std::thread::sleep(Duration::from_millis([0, 0, 1, 5, 20][self.chance.usize(..5)]));
                if other != one {
                    self.kill(other);
                }
            }
        }
        self.service_manager();
        // Its clock goes on, and a request that is not done after half a minute is lost for it.
        if self.paused.is_some_and(|since| since.elapsed() > LONGEST_PAUSE)
            && self.host.domus(&["unpause", "image"]).status.success()
        {
            self.paused = None;
        }
        self.clients.retain_mut(|client| client.try_wait().unwrap().is_none());
    }
}

#[test]
fn whatever_is_killed_no_guest_loses_anything_and_nothing_is_left() {
    let seconds = number("DOMUS_CHAOS_SECONDS").unwrap_or(60);
    let now = || SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let seed = number("DOMUS_CHAOS_SEED").unwrap_or_else(now);
    println!("chaos for {seconds} s with seed {seed}: cargo xtask chaos --seconds {seconds} --seed {seed}");

    let host = Host::with_service(true);
    host.ip(&["addr", "add", "10.77.0.1/24", "dev", "br0"]);
    let before = host.traces();
    let ms = (Duration::from_secs(seconds) + AFTERWARDS).as_millis();
    let endure = format!("console=ttyS0 mini.test=blk-endure mini.ms={ms} mini.end=poweroff");
    let ping = format!(
        "console=ttyS0 mini.ip=10.77.0.2 mini.peer=10.77.0.1 mini.tries=15 mini.test=net-ping mini.ms={ms} mini.end=poweroff"
    );
    host.ok(&["disk", "create", "image.qcow2", "64MiB", "--format", "qcow2"]);
    let nets = |mac: u8| {
        format!(
            r#""nets": [ {{ "id": "eth0", "bridge": "br0", "mac": "02:00:00:00:00:{mac:02x}" }}, {{ "id": "eth1", "switch": "lan" }} ], "on_poweroff": "preserve", "on_crash": "preserve", "on_backend_hang": {{ "restart_after": 5 }}"#
        )
    };
    let qcow2 = r#"{ "id": "root", "path": "image.qcow2", "format": "qcow2" }"#;
    let raw = host.disk("root", 64, r#", "queues": 4"#);
    let wire = host.disk("data", 16, "");
    for (name, line, disk, mac) in
        [("raw", &endure, raw.as_str(), 1), ("image", &endure, qcow2, 2), ("wire", &ping, wire.as_str(), 3)]
    {
        let more = format!(r#", "disks": [ {disk} ], {}"#, nets(mac));
        host.ok(&["create", &host.guest(name, line, &more)]);
    }
    host.guest("extra", "console=ttyS0 mini.test=shell mini.end=poweroff", "");
    // The guest does not answer when this host wants to know whether it is still there.
    host.ip(&[
        "neigh",
        "replace",
        "10.77.0.2",
        "lladdr",
        "02:00:00:00:00:03",
        "dev",
        "br0",
        "nud",
        "permanent",
    ]);
    let runners: Vec<_> = GUESTS.map(|name| host.domain(name).unwrap()["runner_pid"].clone()).into();

    let mut chaos = Chaos {
        host,
        chance: fastrand::Rng::with_seed(seed),
        kills: BTreeMap::new(),
        clients: Vec::new(),
        paused: None,
    };
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        chaos.round();
    }
    let Chaos { mut host, kills, clients, .. } = chaos;
    for mut client in clients {
        let _ = client.kill();
        client.wait().unwrap();
    }
    println!("killed: {kills:?}");
    // A pause that was asked for may be the last word.
    host.ok(&["unpause", "image"]);
    for (name, runner) in GUESTS.iter().zip(&runners) {
        let domain = host.domain(name).unwrap_or_else(|| panic!("{name} is gone, seed {seed}"));
        assert_eq!(domain["runner_pid"], *runner, "{name} is another one, seed {seed}");
        assert_eq!(domain["state"], "running", "{name}, seed {seed}: {domain}");
    }
    for (name, check) in [("raw", "blk-endure"), ("image", "blk-endure"), ("wire", "net-ping")] {
        let mut console = Console::attach(&host, name);
        console.wait(&format!("mini: ok {check}"));
        println!("{name}: {}", console.wait("value "));
    }
    for name in GUESTS {
        host.until("it has switched itself off", || host.domain(name).unwrap()["state"] == "preserved");
        assert_eq!(host.domain(name).unwrap()["ended"], "switched itself off", "{name}, seed {seed}");
        host.ok(&["destroy", name]);
    }
    let _ = host.domus(&["destroy", "extra"]);
    host.until("nothing is left but dom0", || host.list().len() == 1 && host.traces() == before);
    assert!(host.pid_of_switch("lan").is_none(), "seed {seed}");
    host.stop_service();
    assert_eq!(host.traces(), before, "seed {seed}");
}
