//! What each process of a domain could reach if it were taken over, as the kernel tells it, is what `reach.txt` says.
//!
//! `DOMUS_BLESS=1` writes that file anew; look at what has changed before you commit it.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use common::{Console, Host};

/// Without what differs from one run to the next: numbers of processes, users and descriptors, and the test's folder.
fn table(text: &str, host: &Host) -> String {
    let folder = host.path("").display().to_string();
    let mut table = String::new();
    for line in text.replace(folder.trim_end_matches('/'), "FOLDER").lines() {
        let line = match (line.split_once(" (pid "), line.split_once(" × ")) {
            (Some((program, rest)), _) => {
                let (_, rest) = rest.split_once("): ").unwrap();
                format!("{program}: {rest}")
            }
            (_, Some((_, what))) => format!("  descriptor   {what}"),
            _ => line.into(),
        };
        table += &(line + "\n");
    }
    table
}

#[test]
fn a_process_that_is_taken_over_reaches_what_the_table_says_and_nothing_else() {
    let host = Host::with_service(true);
    let disk = format!(r#", "disks": [ {} ], "console": {{ "log": "disk.log" }}"#, host.disk("root", 16, ""));
    let nic = r#", "nets": [ { "id": "eth0", "bridge": "br0" } ]"#;
    let mut all = String::new();
    // A backend has its guest's memory while a driver uses the device.
    for (name, test, devices, says) in [
        ("disk", "mini.test=blk-endure", disk.as_str(), None),
        ("nic", "mini.ip=10.77.0.2 mini.test=net-answer", nic, Some("value net-answer begins")),
    ] {
        let line = format!("console=ttyS0 {test} mini.ms=60000 mini.end=poweroff");
        host.ok(&["create", &host.guest(name, &line, devices)]);
        match says {
            Some(says) => Console::attach(&host, name).wait(says),
            None => {
                let written = || host.disks(name)[0]["counters"]["write"]["ops"].as_u64().unwrap_or(0);
                host.until("the guest writes", || written() > 10);
                String::new()
            }
        };
        let told = host.ok(&["why", name, "--reach"]);
        let users: Vec<_> =
            told.lines().filter_map(|line| line.split_once("user ")?.1.split(')').next()).collect();
        assert!(users.len() == 3 && users.iter().all(|user| *user == users[0] && *user != "0"), "{told}");
        let json: serde_json::Value =
            serde_json::from_str(&host.ok(&["why", name, "--reach", "--json"])).unwrap();
        assert_eq!(json["processes"].as_array().unwrap().len(), 3);
        all += &table(&told, &host);
    }
    // Where dom0 may raise the limit of a process, a disk has one: its length.
    let all = all.replace("may grow to 16777216 bytes", "may grow without a limit");
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/reach.txt");
    if std::env::var_os("DOMUS_BLESS").is_some() {
        std::fs::write(file, &all).unwrap();
    }
    let kept = std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(all, kept, "what a process could reach has changed: see DOMUS_BLESS");
}
