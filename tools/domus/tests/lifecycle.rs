//! Domains from their creation to their end, with the mini guest in the real processes.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Console, Host};
use nix::sys::signal::Signal;

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";
const NIC: &str = r#", "nets": [ { "id": "eth0", "bridge": "br0" } ]"#;

/// Types a line at a domain's console and returns all that the console has printed when it has printed `wanted`.
fn console(host: &Host, name: &str, typed: &str, wanted: &str) -> String {
    let mut client =
        host.command(&["console", name]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    client.stdin.take().unwrap().write_all(typed.as_bytes()).unwrap();
    let mut stdout = client.stdout.take().unwrap();
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(count @ 1..) = stdout.read(&mut buffer) {
            let _ = sender.send(buffer[..count].to_vec());
        }
    });
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut text = String::new();
    while !text.contains(wanted) {
        let left = deadline.saturating_duration_since(Instant::now());
        match receiver.recv_timeout(left) {
            Ok(bytes) => text += &String::from_utf8_lossy(&bytes),
            Err(error) => panic!("{error}: the console of {name} has not printed {wanted:?} but\n{text}"),
        }
    }
    client.kill().unwrap();
    client.wait().unwrap();
    text
}

#[test]
fn a_domain_is_created_seen_paused_and_destroyed_and_nothing_is_left() {
    let host = Host::with_service(true);
    let file = host.guest("web1", SHELL, &format!(r#"{NIC}, "vcpus": 2"#));
    let before = host.traces();
    assert_eq!(host.ok(&["create", &file]), "");
    let domain = host.domain("web1").unwrap();
    assert_eq!((&domain["memory_mib"], &domain["vcpus"]), (&32.into(), &2.into()));
    assert!(["r-----", "-b----"].contains(&domain["flags"].as_str().unwrap()), "{domain}");
    let id = domain["id"].as_u64().unwrap();
    assert!(host.traces().links.contains(&format!("vif{id}.0")));
    let bridge = host.ip(&["-o", "link", "show", "master", "br0"]);
    assert!(bridge.contains(&format!("vif{id}.0")) && bridge.contains("UP"), "{bridge}");
    assert_eq!(host.processes().len(), 3);

    let table = host.ok(&["list"]);
    let lines: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(lines[0], ["Name", "ID", "Mem", "VCPUs", "State", "Time(s)"]);
    assert_eq!(lines[1][..2], ["Domain-0", "0"]);
    assert_eq!(lines[2][..4], ["web1", &id.to_string(), "32", "2"]);

    host.ok(&["pause", "web1"]);
    assert_eq!(host.domain("web1").unwrap()["flags"], "--p---");
    // Nothing is served to a paused guest's user: the line waits until the guest runs again.
    host.ok(&["unpause", &id.to_string()]);
    let text = console(&host, "web1", "info\n", "mini: ok info");
    assert!(text.contains("mini: hello"), "the history is missing: {text}");

    host.ok(&["destroy", "web1"]);
    assert_eq!(host.traces(), before);
    assert!(host.domain("web1").is_none());
}

#[test]
fn the_first_guest_instruction_comes_soon_and_create_says_what_it_made() {
    let host = Host::with_service(true);
    let file = host.guest("quick", SHELL, "");
    let created: serde_json::Value = serde_json::from_str(&host.ok(&["create", "--json", &file])).unwrap();
    assert_eq!(created["name"], "quick");
    assert_eq!(created["id"], host.domain("quick").unwrap()["id"]);
    host.ok(&["destroy", "quick"]);
}

#[test]
fn a_start_is_told_phase_by_phase_up_to_the_first_device_in_use() {
    let host = Host::with_service(true);
    let disk = format!(r#", "disks": [ {} ]"#, host.disk("root", 16, ""));
    let file =
        host.guest("quick", "console=ttyS0 mini.test=blk-endure mini.ms=20000 mini.end=poweroff", &disk);
    let told: serde_json::Value =
        serde_json::from_str(&host.ok(&["create", "--timing", "--json", &file])).unwrap();
    let phases = told["phases"].as_array().unwrap();
    let names: Vec<_> = phases.iter().map(|phase| phase["name"].as_str().unwrap()).collect();
    for name in
        ["config", "files", "processes", "devices", "machine", "kernel", "ready", "run", "output", "driver"]
    {
        assert!(names.contains(&name), "{name} is not in {names:?}");
    }
    assert_eq!((names[0], names[1], names[2]), ("config", "files", "processes"));
    let number = |phase: &serde_json::Value, key: &str| phase[key].as_u64().unwrap();
    assert!(phases.is_sorted_by_key(|phase| number(phase, "at_us")), "{told}");
    let took: u64 = phases.iter().map(|phase| number(phase, "took_us")).sum();
    let all = number(phases.last().unwrap(), "at_us");
    // Each is rounded down.
    assert!(took <= all && all <= took + phases.len() as u64, "{told}");
    host.ok(&["destroy", "quick"]);
    let table = host.ok(&["create", "--timing", &host.guest("plain", SHELL, "")]);
    assert!(table.contains("kernel loaded") && table.contains("first output on COM1"), "{table}");
    host.ok(&["destroy", "plain"]);
}

/// The mini guest in a bzImage, packed with gzip, with 24 MiB behind it that nobody needs.
fn packed_guest(host: &Host) {
    let mut vmlinux = mini_guest::IMAGE.to_vec();
    vmlinux.resize(vmlinux.len() + (24 << 20), 0);
    fs::write(host.path("mini.vmlinux"), vmlinux).unwrap();
    let packed = Command::new("gzip").args(["-9", "-c"]).arg(host.path("mini.vmlinux")).output().unwrap();
    assert!(packed.status.success());
    let mut file = vec![0; 1024];
    file[0x1f1] = 1;
    file[0x202..0x206].copy_from_slice(b"HdrS");
    file[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    file[0x24c..0x250].copy_from_slice(&(packed.stdout.len() as u32).to_le_bytes());
    file.extend(packed.stdout);
    fs::write(host.path("mini.vmlinuz"), file).unwrap();
}

#[test]
fn a_kernel_is_unpacked_once_for_all_domains_and_again_when_its_file_has_changed() {
    let mut host = Host::with_service(true);
    let dom0 = host.service().id();
    let kept = || {
        let files = fs::read_dir(format!("/proc/{dom0}/fd")).unwrap();
        let names = files.filter_map(|file| fs::read_link(file.unwrap().path()).ok());
        names.filter(|name| name.to_string_lossy().starts_with("/memfd:kernel")).count()
    };
    // How long it took to load the kernel, in microseconds.
    let start = |name: &str| {
        let text = fs::read_to_string(host.path(&host.guest(name, SHELL, ""))).unwrap();
        host.write(&format!("{name}.json"), &text.replace("mini.elf", "mini.vmlinuz"));
        let told = host.ok(&["create", "--timing", "--json", &format!("{name}.json")]);
        let told: serde_json::Value = serde_json::from_str(&told).unwrap();
        let phases = told["phases"].as_array().unwrap();
        phases.iter().find(|phase| phase["name"] == "kernel").unwrap()["took_us"].as_u64().unwrap()
    };
    packed_guest(&host);
    // Changed just now: not told apart from what it is next.
    start("fresh");
    assert_eq!(kept(), 0);
    std::thread::sleep(Duration::from_secs(4));
    let unpacked = start("first");
    assert_eq!(kept(), 1);
    let again = start("second");
    assert_eq!(kept(), 1);
    assert!(again * 3 < unpacked, "{again} us, and {unpacked} us before");
    // The same bytes, written at another time.
    packed_guest(&host);
    std::thread::sleep(Duration::from_secs(4));
    start("third");
    assert_eq!(kept(), 2);
    for name in ["fresh", "first", "second", "third"] {
        console(&host, name, "info\n", "mini: ok info");
        host.ok(&["destroy", name]);
    }
}

#[test]
fn each_way_a_guest_ends_has_its_policy() {
    let host = Host::with_service(true);
    let before = host.traces();
    let end = |how: &str| format!("console=ttyS0 mini.test=info mini.end={how}");
    // Destroyed when it switches itself off.
    host.ok(&["create", &host.guest("off", &end("poweroff"), NIC)]);
    host.until("off is gone", || host.domain("off").is_none());
    // Preserved: the console is still there, the machine is not.
    host.ok(&[
        "create",
        &host.guest("kept", &end("poweroff"), &format!(r#"{NIC}, "on_poweroff": "preserve""#)),
    ]);
    host.until("kept has stopped", || host.domain("kept").is_some_and(|d| d["flags"] == "---s--"));
    assert!(console(&host, "kept", "", "mini: end poweroff").contains("mini: hello"));
    host.until("its tap is gone", || host.traces().links == before.links);
    assert!(host.refused(&["pause", "kept"]).contains("preserved"));
    // Crashed and preserved.
    host.ok(&["create", &host.guest("sick", &end("triple"), r#", "on_triple_fault": "preserve""#)]);
    host.until("sick has crashed", || host.domain("sick").is_some_and(|d| d["flags"] == "---sc-"));
    assert!(host.domain("sick").unwrap()["ended"].as_str().unwrap().contains("triple fault"));
    host.ok(&["destroy", "kept"]);
    host.ok(&["destroy", "sick"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_guest_that_resets_itself_comes_back_with_a_new_number_and_new_processes() {
    let host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("loop", "console=ttyS0 mini.test=info mini.end=reset", NIC)]);
    let first = host.domain("loop").unwrap()["id"].as_u64().unwrap();
    host.until("it has come back twice", || {
        host.domain("loop").is_some_and(|domain| domain["id"].as_u64().unwrap() >= first + 2)
    });
    assert!(host.traces().links.matches("vif").count() <= 1);
    host.ok(&["destroy", "loop"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_runner_that_is_killed_is_a_crash_of_its_domain_and_of_no_other() {
    let host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("victim", SHELL, NIC)]);
    host.ok(&["create", &host.guest("again", SHELL, r#", "on_crash": "restart""#)]);
    host.ok(&["create", &host.guest("other", SHELL, NIC)]);
    let runner = |name| host.domain(name).unwrap()["runner_pid"].as_u64().unwrap() as u32;
    let (other, again) = (runner("other"), host.domain("again").unwrap()["id"].as_u64().unwrap());
    common::signal(runner("victim"), Signal::SIGKILL);
    common::signal(runner("again"), Signal::SIGKILL);
    host.until("victim is gone", || host.domain("victim").is_none());
    host.until("again is back", || {
        host.domain("again").is_some_and(|d| d["id"].as_u64().unwrap() > again && d["state"] == "running")
    });
    assert_eq!(runner("other"), other);
    console(&host, "other", "info\n", "mini: ok info");
    console(&host, "again", "info\n", "mini: ok info");
    host.ok(&["destroy", "other"]);
    host.ok(&["destroy", "again"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_backend_that_is_killed_does_not_end_its_domain() {
    let host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("web1", SHELL, NIC)]);
    let record = std::fs::read_to_string(host.run_dir().join("domains/web1/state.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let net =
        record["processes"].as_array().unwrap().iter().find(|process| process["role"] == "net").unwrap();
    common::signal(net["pid"].as_u64().unwrap() as u32, Signal::SIGKILL);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(host.domain("web1").unwrap()["state"], "running");
    console(&host, "web1", "info\n", "mini: ok info");
    host.ok(&["destroy", "web1"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_service_that_is_interrupted_takes_its_domains_with_it() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("a", SHELL, NIC)]);
    host.ok(&["create", &host.guest("b", SHELL, NIC)]);
    host.stop_service();
    assert_eq!(host.traces(), before);
}

#[test]
fn run_ends_with_its_guest_and_prints_what_the_guest_prints() {
    let host = Host::new(true);
    host.touch_run_dir();
    let before = host.traces();
    let file = host.guest("web1", "console=ttyS0 mini.test=info mini.end=poweroff", NIC);
    let out = host.ok(&["run", &file]);
    assert!(out.contains("mini: hello") && out.trim_end().ends_with("mini: end poweroff"), "{out}");
    assert_eq!(host.traces(), before);

    let file = host.guest(
        "sick",
        "console=ttyS0 mini.test=info mini.end=triple",
        r#", "on_triple_fault": "destroy""#,
    );
    let out = host.domus(&["run", &file]);
    assert_eq!(out.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&out.stderr).contains("domus: sick crashed: a vCPU had a triple fault"));
    assert_eq!(host.traces(), before);
}

#[test]
fn run_cleans_up_when_it_is_told_to_end() {
    let host = Host::new(true);
    host.touch_run_dir();
    let before = host.traces();
    let file = host.guest("web1", SHELL, NIC);
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        let mut run = host.command(&["run", "--grace", "0", &file]).stdout(Stdio::piped()).spawn().unwrap();
        // The guest prints: it runs.
        run.stdout.as_mut().unwrap().read_exact(&mut [0; 20]).unwrap();
        common::signal(run.id(), signal);
        let status = run.wait().unwrap();
        assert_eq!(status.code(), Some(0), "{signal}");
        assert_eq!(host.traces(), before, "{signal}");
    }
}

#[test]
fn run_that_is_killed_leaves_no_process_behind() {
    let host = Host::new(true);
    host.touch_run_dir();
    let before = host.traces();
    let file = host.guest("web1", SHELL, NIC);
    let mut run = host.command(&["run", &file]).stdout(Stdio::null()).spawn().unwrap();
    host.until("it runs", || host.traces().links.contains("vif"));
    std::thread::sleep(Duration::from_millis(300));
    run.kill().unwrap();
    run.wait().unwrap();
    host.until("nothing is left", || host.traces() == before);
}

#[test]
fn domains_run_beside_each_other_and_at_once() {
    let host = Host::with_service(true);
    let before = host.traces();
    let files: Vec<String> = (0..6).map(|n| host.guest(&format!("many{n}"), SHELL, NIC)).collect();
    let mut creating: Vec<_> =
        files.iter().map(|file| host.command(&["create", file]).spawn().unwrap()).collect();
    assert!(creating.iter_mut().all(|child| child.wait().unwrap().success()));
    let mut ids: Vec<u64> = host.list().iter().map(|domain| domain["id"].as_u64().unwrap()).collect();
    assert!(ids.is_sorted());
    ids.dedup();
    assert_eq!(ids.len(), 7);
    let mut destroying: Vec<_> =
        (0..6).map(|n| host.command(&["destroy", &format!("many{n}")]).spawn().unwrap()).collect();
    assert!(destroying.iter_mut().all(|child| child.wait().unwrap().success()));
    assert_eq!(host.traces(), before);
}

#[test]
fn the_program_answers_to_the_name_xl() {
    let host = Host::with_service(false);
    let xl = host.path("xl");
    std::os::unix::fs::symlink(common::programs().join("domus"), &xl).unwrap();
    let out =
        std::process::Command::new(&xl).arg("--run-dir").arg(host.run_dir()).arg("list").output().unwrap();
    assert!(out.status.success() && String::from_utf8_lossy(&out.stdout).contains("Domain-0"));
    let out = std::process::Command::new(&xl).arg("frob").output().unwrap();
    assert_eq!(out.status.code(), Some(2));
}

#[test]
fn a_guest_finds_its_disk_as_it_left_it_and_reaches_the_bridge() {
    let host = Host::new(true);
    host.touch_run_dir();
    host.ip(&["addr", "add", "10.77.0.1/24", "dev", "br0"]);
    let before = host.traces();
    std::fs::File::create(host.path("disk.img")).unwrap().set_len(16 << 20).unwrap();
    let devices = |read_only| {
        format!(
            r#", "vcpus": 2, "disks": [ {{ "id": "root", "path": "disk.img", "read_only": {read_only} }} ] {NIC}"#
        )
    };
    let base =
        "console=ttyS0 mini.end=poweroff mini.seed=7 mini.ip=10.77.0.2 mini.peer=10.77.0.1 mini.rounds=20";
    for (test, read_only) in [
        ("pci,blk-id,blk-pattern,net-ping", false),
        ("blk-verify,net-ping", false),
        ("blk-verify,blk-readonly", true),
    ] {
        let file = host.guest("worker", &format!("{base} mini.test={test}"), &devices(read_only));
        let out = host.ok(&["run", &file]);
        assert!(out.contains("failed=0") && !out.contains("mini: fail"), "{test}: {out}");
        assert_eq!(host.traces(), before);
    }
}

#[test]
fn the_processes_of_a_domain_are_shut_in() {
    let host = Host::with_service(true);
    std::fs::File::create(host.path("disk.img")).unwrap().set_len(16 << 20).unwrap();
    let devices = format!(r#", "disks": [ {{ "id": "root", "path": "disk.img" }} ] {NIC}"#);
    host.ok(&["create", &host.guest("web1", SHELL, &devices)]);
    let record = std::fs::read_to_string(host.run_dir().join("domains/web1/state.json")).unwrap();
    let record: serde_json::Value = serde_json::from_str(&record).unwrap();
    let uid = (2_010_000_000 + host.domain("web1").unwrap()["id"].as_u64().unwrap()).to_string();
    let processes = record["processes"].as_array().unwrap();
    assert_eq!(processes.len(), 4);
    for process in processes {
        let of = |file: &str| format!("/proc/{}/{file}", process["pid"]);
        let status = std::fs::read_to_string(of("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            line.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
        };
        let role = &process["role"];
        assert_eq!(field("Uid"), [uid.as_str(); 4].join(" "), "{role}");
        assert_eq!(field("Groups"), "", "{role}");
        assert_eq!((field("CapPrm"), field("CapEff"), field("CapBnd")), (z(), z(), z()), "{role}");
        assert_eq!((field("NoNewPrivs"), field("Seccomp")), ("1".into(), "2".into()), "{role}");
        // The first process of a pid namespace of its own.
        assert!(field("NSpid").ends_with(" 1"), "{role}: {}", field("NSpid"));
        assert_eq!(std::fs::read_dir(of("root")).unwrap().count(), 0, "{role} sees files");
        // Its words go to dom0, not to the operator's terminal.
        for fd in [1, 2] {
            let leads_to = std::fs::read_link(of(&format!("fd/{fd}"))).unwrap();
            assert!(leads_to.to_string_lossy().starts_with("pipe:"), "{role}: {}", leads_to.display());
            let info = std::fs::read_to_string(of(&format!("fdinfo/{fd}"))).unwrap();
            // O_WRONLY and O_NONBLOCK.
            assert!(info.lines().any(|line| line.starts_with("flags:") && line.ends_with("4001")), "{info}");
        }
        for namespace in ["mnt", "net", "ipc", "uts", "pid"] {
            let (its, ours) =
                (std::fs::read_link(of(&format!("ns/{namespace}"))), format!("/proc/self/ns/{namespace}"));
            assert_ne!(its.unwrap(), std::fs::read_link(ours).unwrap(), "{role} shares {namespace}");
        }
    }
    host.ok(&["destroy", "web1"]);
}

fn z() -> String {
    "0".repeat(16)
}

#[test]
fn an_impatient_destroy_ends_a_restart_under_way() {
    let host = Host::with_service(true);
    let before = host.traces();
    for _ in 0..5 {
        host.ok(&["create", &host.guest("loop", "console=ttyS0 mini.test=info mini.end=reset", NIC)]);
        let first = host.domain("loop").unwrap()["id"].as_u64().unwrap();
        // Between two starts a second passes, so that it is found building or dying.
        host.until("it starts again", || {
            host.domain("loop").is_some_and(|d| d["id"].as_u64().unwrap() > first)
        });
        host.ok(&["destroy", "loop"]);
        assert_eq!(host.traces(), before);
    }
}

#[test]
fn what_a_guest_prints_is_appended_to_the_file_that_its_config_names() {
    let host = Host::with_service(true);
    let file = host.guest("web1", SHELL, r#", "console": { "log": "web1.log" }"#);
    let logged =
        || std::fs::read_to_string(host.path("web1.log")).unwrap_or_default().matches("mini: ready").count();
    host.ok(&["check", &file]);
    assert!(!host.path("web1.log").exists(), "a check makes nothing");
    for times in 1..=2 {
        host.ok(&["create", &file]);
        host.until("the guest's words are in the log", || logged() == times);
        host.ok(&["destroy", "web1"]);
    }
    // As logrotate does it: the name goes to another file, and what is printed later goes there.
    host.ok(&["create", &file]);
    host.until("the guest's words are in the log", || logged() == 3);
    std::fs::rename(host.path("web1.log"), host.path("web1.log.1")).unwrap();
    let mut terminal = Console::attach(&host, "web1");
    host.until("what it prints is in the new file", || {
        terminal.send("blk-bounds");
        std::fs::read_to_string(host.path("web1.log")).is_ok_and(|log| log.contains("blk-bounds"))
    });
    host.ok(&["destroy", "web1"]);
    let refused = host.refused(&["create", &host.guest("web2", SHELL, r#", "console": { "log": "." }"#)]);
    assert!(refused.contains("console.log: ") && refused.contains("a directory"), "{refused}");
}
