//! Disks of every kind under a real dom0, and what an operator does to them while a guest works.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::fs;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use common::{Console, Host, signal};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

/// A guest that verifies every request for so long.
fn endure(ms: u64) -> String {
    format!("console=ttyS0 mini.test=blk-endure mini.ms={ms} mini.end=poweroff")
}

/// The number after `key=` in a line.
fn number(line: &str, key: &str) -> u64 {
    let text = line.split(&format!("{key}=")).nth(1).unwrap_or_else(|| panic!("no {key} in {line}"));
    text.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap()
}

fn tool(program: &str, args: &[&str]) -> std::process::Output {
    let output = Command::new(program).args(args).output();
    output.unwrap_or_else(|error| panic!("{program}: {error}: cargo xtask setup installs it"))
}

#[test]
fn a_full_file_system_pauses_the_domain_and_the_same_write_is_done_after_space_was_made() {
    let mut host = Host::new(true);
    // For this thread and the processes it starts.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let small = host.path("small");
    fs::create_dir(&small).unwrap();
    let tmpfs = |flags, size| mount(Some("none"), &small, Some("tmpfs"), flags, Some(size)).unwrap();
    tmpfs(MsFlags::empty(), "size=1m");
    host.start_service();
    let image = small.join("root.img");
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let disks = format!(r#", "disks": [ {{ "id": "root", "path": "{}" }} ]"#, image.display());
    let file = host.guest("web1", &endure(3000), &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    host.until("the domain is paused", || host.domain("web1").unwrap()["state"] == "paused");
    let why = host.ok(&["why", "web1"]);
    assert!(why.contains("disk root: a write at byte") && why.contains("No space left"), "{why}");
    assert!(why.contains("domus unpause web1"), "{why}");
    assert_eq!(host.disks("web1")[0]["state"], "held");
    // Without space it comes to the same again, and a new backend changes nothing.
    host.ok(&["unpause", "web1"]);
    host.until("it is paused again", || host.domain("web1").unwrap()["state"] == "paused");
    let pid = host.block_pid("web1", 0);
    signal(pid as u32, Signal::SIGKILL);
    host.block_pid("web1", pid);
    host.until("the write is held again", || host.disks("web1")[0]["state"] == "held");
    tmpfs(MsFlags::MS_REMOUNT, "size=64m");
    host.ok(&["unpause", "web1"]);
    console.wait("mini: ok blk-endure");
    host.until("the guest switches itself off", || host.domain("web1").is_none());
}

#[test]
fn a_disk_that_grows_is_seen_by_the_guest_and_by_the_next_backend() {
    let host = Host::with_service(true);
    let disks = format!(r#", "disks": [ {} ]"#, host.disk("root", 64, ""));
    let file = host.guest("web1", SHELL, &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    let capacity = |console: &mut Console, sectors: u64| {
        console.send("blk-id");
        console.wait(&format!("capacity={sectors} id=root"));
    };
    capacity(&mut console, 131_072);
    // The backend can make no file longer than it was given, until somebody asks for that: where dom0 may raise it.
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let caps = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let limited = u64::from_str_radix(caps.trim(), 16).unwrap() & (1 << 24) != 0;
    let longest = || {
        let limits = fs::read_to_string(format!("/proc/{}/limits", host.block_pid("web1", 0))).unwrap();
        let line = limits.lines().find_map(|line| line.strip_prefix("Max file size")).unwrap();
        line.split_whitespace().next().unwrap().to_owned()
    };
    let expected = |bytes: u64| if limited { bytes.to_string() } else { "unlimited".into() };
    assert_eq!(longest(), expected(64 << 20));
    assert_eq!(host.ok(&["block-resize", "web1", "root", "96MiB"]), "100663296 bytes\n");
    assert_eq!(fs::metadata(host.path("root.img")).unwrap().len(), 96 << 20);
    capacity(&mut console, 196_608);
    assert_eq!(longest(), expected(96 << 20));
    let pid = host.block_pid("web1", 0);
    signal(pid as u32, Signal::SIGKILL);
    host.block_pid("web1", pid);
    capacity(&mut console, 196_608);
    assert_eq!(host.disks("web1")[0]["bytes"], 96 << 20);
    for (args, part) in [
        (["block-resize", "web1", "swap", "1GiB"], "\"swap\": the domain has root"),
        (["block-resize", "web1", "root", "1000"], "1000"),
    ] {
        assert!(host.refused(&args).contains(part));
    }
}

#[test]
fn a_disk_that_runs_becomes_shorter_only_if_that_is_said_to_the_command_and_to_dom0() {
    let host = Host::with_service(true);
    let disks = format!(r#", "disks": [ {} ]"#, host.disk("root", 64, ""));
    let file = host.guest("web1", SHELL, &disks);
    host.ok(&["create", &file]);
    Console::attach(&host, "web1").wait("mini: ready");
    let bytes = || fs::metadata(host.path("root.img")).unwrap().len();
    let refused = host.refused(&["block-resize", "web1", "root", "32MiB"]);
    assert!(refused.contains("--shrink") && refused.contains("64 MiB"), "{refused}");
    // A client of before knows no shrink.
    let resize = |more: &str| {
        let call = format!(
            r#"{{"method":"org.domus.Dom0.BlockResize","parameters":{{"name":"web1","disk":"root","bytes":33554432{more}}}}}"#
        );
        host.call(&call)
    };
    let refused = resize("")["parameters"]["message"].to_string();
    assert!(refused.contains("67108864 bytes") && refused.contains("set shrink"), "{refused}");
    assert!(resize(r#","shrink":false"#)["error"].is_string());
    assert_eq!(bytes(), 64 << 20);
    // An image that has grown since its backend looked is not cut back to less.
    fs::File::options().write(true).open(host.path("root.img")).unwrap().set_len(96 << 20).unwrap();
    assert!(host.refused(&["block-resize", "web1", "root", "80MiB"]).contains("100663296 bytes"));
    assert_eq!(host.ok(&["block-resize", "web1", "root", "96MiB"]), "100663296 bytes\n");
    assert_eq!(host.ok(&["block-resize", "web1", "root", "48MiB", "--shrink"]), "50331648 bytes\n");
    assert_eq!(bytes(), 48 << 20);
    assert_eq!(resize(r#","shrink":true"#)["parameters"]["bytes"], 32 << 20);
}

#[test]
fn a_raw_disk_that_is_another_formats_image_is_refused_with_the_line_to_add() {
    let host = Host::new(true);
    host.ok(&["disk", "create", host.path("root.img").to_str().unwrap(), "8M", "--format", "qcow2"]);
    let disk = |more: &str| {
        let path = host.path("root.img");
        format!(r#", "disks": [ {{ "id": "root", "path": "{}"{more} }} ]"#, path.display())
    };
    let file = host.guest("web1", SHELL, &disk(""));
    for verb in ["check", "run"] {
        let refused = host.refused(&[verb, &file]);
        assert!(
            refused.contains("disks[0].path") && refused.contains(r#"add "format": "qcow2""#),
            "{refused}"
        );
    }
    for format in ["qcow2", "raw"] {
        host.ok(&["check", &host.guest("web1", SHELL, &disk(&format!(r#", "format": "{format}""#)))]);
    }
    fs::write(host.path("root.img"), [&b"KDMV"[..], &[0; 4092]].concat()).unwrap();
    let refused = host.refused(&["check", &host.guest("web1", SHELL, &disk(""))]);
    assert!(refused.contains("a VMDK image") && refused.contains(r#""format": "raw""#), "{refused}");
    // A guest that encrypts its disk is to start again.
    fs::write(host.path("root.img"), [&b"LUKS\xba\xbe"[..], &[0; 4090]].concat()).unwrap();
    host.ok(&["check", &host.guest("web1", SHELL, &disk(""))]);
}

/// As `create` does, in a sealed process that changes nothing.
#[test]
fn a_check_looks_into_images() {
    let mut host = Host::new(true);
    let path = host.path("root.qcow2");
    let make = |more: &[&str]| {
        let _ = fs::remove_file(&path);
        let image = path.to_str().unwrap();
        assert!(
            tool("qemu-img", &[&["create", "-q", "-f", "qcow2"], more, &[image, "8M"]].concat())
                .status
                .success()
        );
    };
    let with_bit = |bit: u64| {
        make(&[]);
        let file = fs::File::options().write(true).open(&path).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, &bit.to_be_bytes(), 72).unwrap();
    };
    let disk =
        format!(r#", "disks": [ {{ "id": "root", "path": "{}", "format": "qcow2" }} ]"#, path.display());
    let file = host.guest("web1", SHELL, &disk);
    let data = host.path("data.raw");
    let data_file = format!("data_file={}", data.display());
    fs::File::create(host.path("base.img")).unwrap().set_len(8 << 20).unwrap();
    let base = host.path("base.img").display().to_string();
    let described = format!(r#"json:{{"driver":"raw","file":{{"driver":"file","filename":"{base}"}}}}"#);
    let cases: [(&dyn Fn(), &str); 6] = [
        (&|| make(&["-o", &data_file]), "external file"),
        (&|| make(&["-o", "extended_l2=on"]), "extended"),
        (&|| with_bit(1), "not closed properly"),
        (&|| with_bit(2), "corrupt"),
        (&|| make(&["-b", &base, "-F", "raw"]), "base.img"),
        (&|| make(&["-b", &described, "-F", "raw"]), "qemu-img rebase -u"),
    ];
    for serves in [false, true] {
        if serves {
            host.start_service();
        }
        let before = host.traces();
        for (make, said) in &cases {
            make();
            let image = fs::read(&path).unwrap();
            let refused = host.refused(&["check", &file]);
            assert!(refused.starts_with("web1.json: ") && refused.contains(said), "{said}: {refused}");
            assert_eq!(host.refused(&[if serves { "create" } else { "run" }, &file]), refused);
            assert!(fs::read(&path).unwrap() == image, "{said}: the image was changed");
        }
        make(&[]);
        let image = fs::read(&path).unwrap();
        host.ok(&["check", &file]);
        assert!(fs::read(&path).unwrap() == image, "the image was changed");
        assert_eq!(host.traces(), before);
    }
}

#[test]
fn domains_are_not_promised_more_memory_than_there_is_unless_that_is_wanted() {
    let mut host = Host::with_service(true);
    let most = host.domain("Domain-0").unwrap()["memory_mib"].as_u64().unwrap() * 9 / 10;
    let boot = format!(r#"{{ "kernel": "mini.elf", "cmdline": "{SHELL}" }}"#);
    let names: Vec<_> = (1..=8).map(|n| format!("web{n}")).collect();
    for name in &names {
        let text = format!(r#"{{ "name": "{name}", "memory": "{most}MiB", "boot": {boot} }}"#);
        host.write(&format!("{name}.json"), &text);
    }
    // Swap counts.
    let refused =
        names.iter().find(|name| !host.domus(&["create", &format!("{name}.json")]).status.success());
    let refused = format!("{}.json", refused.expect("the host has no memory for all of them"));
    for verb in ["check", "create"] {
        let said = host.refused(&[verb, &refused]);
        assert!(said.contains("memory: ") && said.contains("dom0 --overcommit"), "{said}");
    }
    host.leave_service();
    host.start_service_with(&["--overcommit"]);
    host.ok(&["check", &refused]);
}

#[test]
fn an_image_that_is_there_twice_is_named_by_both_places() {
    let host = Host::new(true);
    let (a, b) = (host.path("a.img"), host.path("b.img"));
    fs::File::create(&a).unwrap().set_len(1 << 20).unwrap();
    fs::hard_link(&a, &b).unwrap();
    host.ok(&["disk", "create", host.path("over.qcow2").to_str().unwrap(), "--backing", b.to_str().unwrap()]);
    let disk = |id: &str, path: &str, more: &str| {
        format!(r#"{{ "id": "{id}", "path": "{}"{more} }}"#, host.path(path).display())
    };
    let over =
        format!(r#", "format": "qcow2", "backing": [ {{ "path": "{}", "format": "raw" }} ]"#, b.display());
    let read_only = r#", "read_only": true"#;
    for (second, at) in [
        (disk("two", "b.img", ""), "disks[1].path"),
        (disk("two", "a.img", read_only), "disks[1].path"),
        (disk("two", "over.qcow2", &over), "disks[1].backing[0].path"),
    ] {
        let file =
            host.guest("web1", SHELL, &format!(r#", "disks": [ {}, {second} ]"#, disk("one", "a.img", "")));
        for verb in ["check", "run"] {
            let refused = host.refused(&[verb, &file]);
            assert!(
                refused.contains(&format!("{at}: ")) && refused.contains("file of disks[0].path"),
                "{refused}"
            );
        }
    }
    let both = [disk("one", "a.img", read_only), disk("two", "b.img", read_only)].join(", ");
    host.ok(&["check", &host.guest("web1", SHELL, &format!(r#", "disks": [ {both} ]"#))]);
}

#[test]
fn what_a_domain_has_none_of_is_said() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    assert_eq!(host.ok(&["block-list", "web1"]), "web1 has no disks\n");
    assert_eq!(host.ok(&["network-list", "web1"]), "web1 has no NICs\n");
    assert!(host.ok(&["network-list"]).contains("there are no networks"));
    assert_eq!(host.ok(&["block-list", "web1", "--json"]).trim(), "[]");
    let refused = host.refused(&["block-resize", "web1", "root", "1M"]);
    assert!(refused.contains("\"root\": the domain has none"), "{refused}");
    let refused = host.refused(&["network-set", "web1", "eth0", "--link", "down"]);
    assert!(refused.contains("\"eth0\": the domain has none"), "{refused}");
}

#[test]
fn a_limit_is_obeyed_from_the_moment_it_is_set_and_by_the_next_backend_too() {
    let host = Host::with_service(true);
    let disks = format!(r#", "disks": [ {} ]"#, host.disk("root", 64, r#", "limits": { "bytes": "1GiB" }"#));
    let file = host.guest("web1", SHELL, &disks);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    host.ok(&["block-set", "web1", "root", "--iops", "200", "--bytes", "none"]);
    let limits = host.disks("web1")[0]["limits"].clone();
    assert_eq!(limits, serde_json::json!([{ "name": "iops", "rate": "200" }]));
    let pid = host.block_pid("web1", 0);
    signal(pid as u32, Signal::SIGKILL);
    host.block_pid("web1", pid);
    // A second on the default of the check; what is in flight at its end is finished.
    console.send("blk-iops");
    let slow = number(&console.wait("value blk-iops"), "requests");
    console.wait("mini: ok blk-iops");
    // A second's worth, a second's burst, and the depth.
    assert!(slow <= 200 + 200 + 32 + 40, "{slow} requests in a second at 200 a second");
    assert!(host.disks("web1")[0]["counters"]["throttled"].as_u64().unwrap() > 0);
    host.ok(&["block-set", "web1", "root", "--iops", "none"]);
    console.send("blk-iops");
    let fast = number(&console.wait("value blk-iops"), "requests");
    assert!(fast > 2 * slow, "{fast} requests in a second without a limit, {slow} with one");
    assert!(host.refused(&["block-set", "web1", "root", "--iops", "fast"]).contains("\"fast\" is no rate"));
    assert!(host.refused(&["block-set", "web1"]).contains("--iops 500"));
}

#[test]
fn an_image_that_was_cut_off_in_its_data_is_refused_before_a_guest_reads_zeros() {
    let host = Host::with_service(true);
    std::fs::write(host.path("a.img"), vec![7; 4 << 20]).unwrap();
    for (name, options) in
        [("whole", &[][..]), ("packed", &["-c"]), ("metadata", &["-o", "preallocation=metadata"])]
    {
        let (raw, image) = (host.path("a.img"), host.path(&format!("{name}.qcow2")));
        let paths = [raw.to_str().unwrap(), image.to_str().unwrap()];
        tool("qemu-img", &[&["convert", "-q", "-f", "raw", "-O", "qcow2"], options, &paths].concat());
        let (disk, over) = (format!(r#""path": "{}""#, paths[1]), host.path(&format!("{name}-over.qcow2")));
        let over = over.to_str().unwrap();
        host.ok(&["disk", "create", over, "--backing", paths[1]]);
        let backed = format!(r#""path": "{over}", "backing": [ {{ {disk}, "format": "qcow2" }} ]"#);
        let config = |disk: &str| {
            host.guest(
                "web1",
                "console=ttyS0",
                &format!(r#", "disks": [ {{ "id": "d", "format": "qcow2", {disk} }} ]"#),
            )
        };
        for disk in [&disk, &backed] {
            host.ok(&["check", &config(disk)]);
        }
        let file = std::fs::File::options().write(true).open(&image).unwrap();
        let len = file.metadata().unwrap().len();
        file.set_len(len * 3 / 4).unwrap();
        for disk in [&disk, &backed] {
            for verb in ["check", "create"] {
                let refused = host.refused(&[verb, &config(disk)]);
                assert!(refused.contains("cut off") && refused.contains(paths[1]), "{name}: {refused}");
            }
        }
    }
}

#[test]
fn a_qcow2_disk_on_a_base_survives_its_killed_backends_and_its_image_is_sound() {
    let host = Host::with_service(true);
    let (base, image) = (host.path("base.raw"), host.path("web1.qcow2"));
    fs::File::create(&base).unwrap().set_len(64 << 20).unwrap();
    let (base, image) = (base.to_str().unwrap(), image.to_str().unwrap());
    host.ok(&[
        "disk",
        "create",
        image,
        "64MiB",
        "--format",
        "qcow2",
        "--backing",
        base,
        "--backing-format",
        "raw",
    ]);
    let disk = |more: &str| {
        format!(r#", "disks": [ {{ "id": "root", "path": "{image}", "format": "qcow2"{more} }} ]"#)
    };
    // A backing file that the config does not list is not opened.
    let file = host.guest("web1", &endure(6000), &disk(""));
    let refused = host.refused(&["create", &file]);
    assert!(refused.contains("add \"backing\"") && refused.contains(base), "{refused}");

    let listed = disk(&format!(r#", "backing": [ {{ "path": "{base}", "format": "raw" }} ]"#));
    let file = host.guest("web1", &endure(6000), &listed);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    let mut pid = 0;
    for round in 0..4 {
        pid = host.block_pid("web1", pid);
        std::thread::sleep(Duration::from_millis(400));
        match round {
            3 => {
                println!("{}", host.ok(&["backend", "upgrade", "web1", "root"]));
                pid = host.block_pid("web1", pid);
            }
            _ => signal(pid as u32, Signal::SIGKILL),
        }
    }
    println!("{}", console.wait("value blk-endure"));
    console.wait("mini: ok blk-endure");
    host.until("the guest switches itself off", || host.domain("web1").is_none());
    assert!(host.ok(&["disk", "check", image]).contains("is there"));
    let check = tool("qemu-img", &["check", "-f", "qcow2", image]);
    // 0: clean; 3: clusters leaked, and nothing wrong.
    assert!(matches!(check.status.code(), Some(0 | 3)), "{check:?}");
}

/// A server of the image on a socket, until it is dropped.
struct NbdServer(Child);

impl NbdServer {
    fn start(socket: &Path, image: &Path) -> Self {
        let _ = fs::remove_file(socket);
        let mut command = Command::new("qemu-nbd");
        command.args(["--persistent", "--format", "raw", "--shared", "4", "--socket"]).arg(socket).arg(image);
        let server = Self(command.spawn().expect("qemu-nbd: cargo xtask setup installs it"));
        let appeared = (0..2000).any(|_| {
            std::thread::sleep(Duration::from_millis(5));
            std::os::unix::net::UnixStream::connect(socket).is_ok()
        });
        assert!(appeared, "qemu-nbd does not listen");
        server
    }
}

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_remote_disk_waits_for_its_server_and_loses_nothing() {
    let host = Host::with_service(true);
    let (socket, image) = (host.path("nbd.sock"), host.path("far.img"));
    fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let disks = format!(r#", "disks": [ {{ "id": "far", "path": "{uri}" }} ]"#);
    let file = host.guest("web1", &endure(6000), &disks);
    let refused = host.refused(&["create", &file]);
    assert!(refused.contains("disks[0].path") && refused.contains("start the NBD server"), "{refused}");

    let server = NbdServer::start(&socket, &image);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    let pid = host.block_pid("web1", 0);
    std::thread::sleep(Duration::from_millis(500));
    drop(server);
    host.until("its absence is told", || host.ok(&["why", "web1"]).contains("the server of far"));
    std::thread::sleep(Duration::from_millis(500));
    let server = NbdServer::start(&socket, &image);
    host.until("it is served again", || host.disks("web1")[0]["state"] == "serving");
    std::thread::sleep(Duration::from_millis(500));
    signal(pid as u32, Signal::SIGKILL);
    host.block_pid("web1", pid);
    println!("{}", console.wait("value blk-endure"));
    console.wait("mini: ok blk-endure");
    host.until("the guest switches itself off", || host.domain("web1").is_none());
    drop(server);
}

#[test]
fn a_guest_that_reboots_while_its_disk_is_away_is_started_when_that_is_back() {
    let host = Host::with_service(true);
    let before = host.traces();
    let (socket, image) = (host.path("nbd.sock"), host.path("far.img"));
    fs::File::create(&image).unwrap().set_len(8 << 20).unwrap();
    let uri = format!("nbd+unix:///?socket={}", socket.display());
    let disks = format!(r#", "disks": [ {{ "id": "far", "path": "{uri}" }} ]"#);
    let reboots = "console=ttyS0 mini.test=info mini.end=reset";
    let server = NbdServer::start(&socket, &image);
    host.ok(&["create", &host.guest("web1", reboots, &disks)]);
    drop(server);
    host.until("it cannot be started, and that is told", || {
        let why = host.ok(&["why", "web1"]);
        why.contains("cannot be started")
            && why.contains("start the NBD server")
            && why.contains("tried again")
    });
    let away = host.domain("web1").unwrap();
    let _server = NbdServer::start(&socket, &image);
    let id = away["id"].as_u64().unwrap();
    host.until("it runs again", || {
        let now = host.domain("web1").unwrap();
        now["state"] == "running" && now["id"].as_u64().unwrap() > id
    });
    host.ok(&["destroy", "web1"]);
    assert_eq!(host.traces(), before);
}
