//! Processes of a domain that do not do what they should: they hold nobody up.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::time::{Duration, Instant};

use common::Host;
use nix::sys::signal::Signal;

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

#[test]
fn a_runner_that_does_not_answer_is_destroyed_at_once_and_does_not_keep_the_service() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    for name in ["a", "b"] {
        host.ok(&["create", &host.guest(name, SHELL, "")]);
        let runner = host.domain(name).unwrap()["runner_pid"].as_u64().unwrap();
        common::signal(u32::try_from(runner).unwrap(), Signal::SIGSTOP);
    }
    let mut pauses = ["a", "a", "b"].map(|name| host.command(&["pause", name]).spawn().unwrap());
    std::thread::sleep(Duration::from_millis(300));
    let asked = Instant::now();
    host.ok(&["destroy", "a"]);
    host.stop_service();
    assert!(asked.elapsed() < Duration::from_secs(15), "it took {:?}", asked.elapsed());
    for pause in &mut pauses {
        assert!(!pause.wait().unwrap().success());
    }
    assert_eq!(host.traces(), before);
}

#[test]
fn what_is_not_done_yet_is_not_shown_as_done_and_holds_up_no_other_wish_for_long() {
    let host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("a", SHELL, "")]);
    let runner = u32::try_from(host.domain("a").unwrap()["runner_pid"].as_u64().unwrap()).unwrap();
    common::signal(runner, Signal::SIGSTOP);
    let mut pause = host.command(&["pause", "a"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    // The runner has not paused anything yet.
    assert_eq!(host.domain("a").unwrap()["state"], "running");
    let asked = Instant::now();
    host.ok(&["sched-list", "a"]);
    let refused = host.refused(&["unpause", "a"]);
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    assert!(refused.contains("domu-runner") && refused.contains("domus why"), "{refused}");
    assert!(why(&host, "a").contains("waits for domu-runner to have"), "{}", why(&host, "a"));
    common::signal(runner, Signal::SIGCONT);
    assert!(pause.wait().unwrap().success());
    assert_eq!(host.domain("a").unwrap()["state"], "paused");
    host.ok(&["destroy", "a"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_build_that_waits_for_a_backend_of_others_is_told_and_can_be_given_up() {
    let host = Host::with_service(true);
    let before = host.traces();
    let socket = host.path("silent.sock");
    // It takes connections, by its backlog, and says nothing.
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let disk = format!(r#", "disks": [ {{ "id": "d", "vhost_user_socket": "{}" }} ]"#, socket.display());
    let mut create = host.command(&["create", &host.guest("a", SHELL, &disk)]).spawn().unwrap();
    host.until("it is told", || {
        host.domain("a").is_some() && why(&host, "a").contains("waits for domu-runner to have become ready")
    });
    let asked = Instant::now();
    host.ok(&["destroy", "a"]);
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
    assert!(!create.wait().unwrap().success());
    assert_eq!(host.traces(), before);
}

/// What `domus why` says of a domain.
fn why(host: &Host, name: &str) -> String {
    host.ok(&["why", name])
}

/// Waits until the guest has written a lot: from then on it waits for its disk and for nothing else.
fn under_load(host: &Host, name: &str) {
    host.until("the guest writes", || {
        host.disks(name)[0]["counters"]["write"]["ops"].as_u64().unwrap_or(0) > 50
    });
}

#[test]
fn a_backend_that_lives_and_does_not_answer_holds_nobody_up_is_named_and_another_takes_its_place() {
    let host = Host::with_service(true);
    let before = host.traces();
    let devices = format!(
        r#", "disks": [ {} ], "on_backend_hang": {{ "restart_after": 8 }}"#,
        host.disk("root", 64, "")
    );
    let load = "console=ttyS0 mini.test=blk-endure mini.ms=20000 mini.end=poweroff";
    host.ok(&["create", &host.guest("web1", load, &devices)]);
    host.ok(&["create", &host.guest("web2", SHELL, "")]);
    under_load(&host, "web1");
    let block = host.block_pid("web1", 0);
    common::signal(u32::try_from(block).unwrap(), Signal::SIGSTOP);
    // Five who ask again and again, and go away before they are answered.
    let mut askers: Vec<_> = (0..5).map(|_| host.command(&["block-list", "web1"]).spawn().unwrap()).collect();
    std::thread::sleep(Duration::from_millis(200));
    askers.iter_mut().for_each(|asker| asker.kill().unwrap());
    let asked = Instant::now();
    for verb in ["pause", "unpause"] {
        host.ok(&[verb, "web1"]);
        host.ok(&[verb, "web2"]);
    }
    assert!(asked.elapsed() < Duration::from_secs(6), "it took {:?}", asked.elapsed());
    host.until("it is named", || why(&host, "web1").contains("domus-block: does not answer (since "));
    host.until("another one takes its place", || host.domain("web1").unwrap()["restarts"] == 1);
    assert_ne!(host.block_pid("web1", block), block);
    common::Console::attach(&host, "web1").wait("mini: ok blk-endure");
    host.until("it switches itself off", || host.domain("web1").is_none());
    host.ok(&["destroy", "web2"]);
    assert_eq!(host.traces(), before);
    askers.iter_mut().for_each(|asker| drop(asker.wait()));
}

#[test]
fn a_backend_that_hangs_keeps_no_domain_from_being_destroyed_and_a_policy_pauses_it() {
    let host = Host::with_service(true);
    let before = host.traces();
    let devices = format!(r#", "disks": [ {} ], "on_backend_hang": "pause""#, host.disk("root", 64, ""));
    let load = "console=ttyS0 mini.test=blk-endure mini.ms=60000 mini.end=poweroff";
    host.ok(&["create", &host.guest("web1", load, &devices)]);
    under_load(&host, "web1");
    common::signal(u32::try_from(host.block_pid("web1", 0)).unwrap(), Signal::SIGSTOP);
    host.until("it is paused", || host.domain("web1").unwrap()["state"] == "paused");
    assert!(why(&host, "web1").contains("on_backend_hang"), "{}", why(&host, "web1"));
    let limit = host.command(&["block-set", "web1", "root", "--iops", "9"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(200));
    let asked = Instant::now();
    host.ok(&["destroy", "web1"]);
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    assert!(!limit.wait_with_output().unwrap().status.success());
    assert_eq!(host.traces(), before);
}

#[test]
fn a_guest_that_resets_a_device_of_a_backend_that_hangs_is_paused_at_once_and_goes_on_later() {
    let host = Host::with_service(true);
    let before = host.traces();
    let devices = format!(
        r#", "disks": [ {} ], "on_backend_hang": {{ "restart_after": 8 }}"#,
        host.disk("root", 64, "")
    );
    host.ok(&["create", &host.guest("web1", SHELL, &devices)]);
    let mut console = common::Console::attach(&host, "web1");
    console.wait("mini: ready");
    // The device runs, and the next check begins with its reset.
    console.send("blk-id");
    console.wait("mini: ok blk-id");
    let block = host.block_pid("web1", 0);
    common::signal(u32::try_from(block).unwrap(), Signal::SIGSTOP);
    console.send("blk-id");
    console.wait("mini: begin blk-id");
    std::thread::sleep(Duration::from_millis(200));
    let asked = Instant::now();
    host.ok(&["pause", "web1"]);
    host.ok(&["unpause", "web1"]);
    assert!(asked.elapsed() < Duration::from_secs(6), "it took {:?}", asked.elapsed());
    assert!(!console.has("mini: ok blk-id"));
    host.until("another one takes its place", || host.domain("web1").unwrap()["restarts"] == 1);
    console.wait("mini: ready");
    console.send("clock");
    console.wait("mini: ok clock");
    host.ok(&["destroy", "web1"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn a_client_that_floods_dom0_with_calls_holds_up_no_other() {
    use std::io::{Read, Write};
    let host = Host::with_service(false);
    let connect = || std::os::unix::net::UnixStream::connect(host.run_dir().join("dom0.sock")).unwrap();
    // Calls that want no answer are refused: the connection ends.
    let mut refused = connect();
    refused.write_all(b"{\"method\":\"org.domus.Dom0.List\",\"oneway\":true}\0").unwrap();
    assert_eq!(refused.read(&mut [0; 16]).unwrap_or(0), 0);
    // Others are served in turn with everybody else's.
    let flood = connect();
    let mut reader = flood.try_clone().unwrap();
    // It ends with an end or, where dom0 closes while calls are on their way, with a reset.
    let drain = std::thread::spawn(move || {
        let (mut answers, mut buffer) = (0, vec![0; 1 << 16]);
        while let Ok(count @ 1..) = reader.read(&mut buffer) {
            answers += count;
        }
        answers
    });
    let over = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let (mut writer, done) = (flood.try_clone().unwrap(), over.clone());
    let write = std::thread::spawn(move || {
        let calls = b"{\"method\":\"org.domus.Dom0.List\"}\0".repeat(1000);
        while !done.load(std::sync::atomic::Ordering::Relaxed) && writer.write_all(&calls).is_ok() {}
    });
    std::thread::sleep(Duration::from_millis(300));
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let asked = Instant::now();
        host.list();
        slowest = slowest.max(asked.elapsed());
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    flood.shutdown(std::net::Shutdown::Both).unwrap();
    write.join().unwrap();
    assert!(drain.join().unwrap() > 0);
    assert!(slowest < Duration::from_secs(2), "it took {slowest:?}");
}

#[test]
fn a_console_a_net_backend_and_a_switch_that_live_and_do_not_answer_are_replaced() {
    let host = Host::with_service(true);
    let before = host.traces();
    let devices = r#", "nets": [ { "id": "eth0", "switch": "lan" }, { "id": "eth1", "bridge": "br0" } ], "on_backend_hang": { "restart_after": 6 }"#;
    host.ok(&["create", &host.guest("web1", SHELL, devices)]);
    common::Console::attach(&host, "web1").wait("mini: ready");
    let switch = || {
        let text =
            std::fs::read_to_string(host.run_dir().join("switches/lan/switch.json")).unwrap_or_default();
        serde_json::from_str::<serde_json::Value>(&text).ok().and_then(|state| state["pid"].as_u64())
    };
    let backends = ["console.sock", "net.sock"].map(|socket| (socket, host.pid_of("web1", socket).unwrap()));
    let old_switch = switch().unwrap();
    backends.iter().for_each(|(_, pid)| common::signal(*pid, Signal::SIGSTOP));
    common::signal(u32::try_from(old_switch).unwrap(), Signal::SIGSTOP);
    let mut shown = host.command(&["console", "web1", "--read-only"]);
    let shown =
        shown.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    host.until("the switch is named", || why(&host, "web1").contains("switch lan: does not answer (since "));
    host.until("the console is named", || {
        why(&host, "web1").contains("domus-console: does not answer (since ")
    });
    for (socket, old) in backends {
        host.until("another one is there", || host.pid_of("web1", socket).is_some_and(|pid| pid != old));
    }
    host.until("another switch is there", || switch().is_some_and(|pid| pid != old_switch));
    host.until("nothing is amiss", || why(&host, "web1").contains("nothing is amiss"));
    common::signal(shown.id(), Signal::SIGTERM);
    let said = String::from_utf8(shown.wait_with_output().unwrap().stderr).unwrap();
    assert!(said.contains("the console does not answer"), "{said}");
    let mut terminal = common::Console::attach(&host, "web1");
    terminal.send("blk-bounds");
    terminal.wait("mini: fail");
    host.ok(&["destroy", "web1"]);
    assert_eq!(host.traces(), before);
}

#[test]
fn requests_that_fail_are_told_with_their_number_and_the_last_of_them() {
    let host = Host::with_service(true);
    let devices = format!(r#", "disks": [ {} ]"#, host.disk("root", 16, ""));
    host.ok(&["create", &host.guest("web1", SHELL, &devices)]);
    let mut terminal = common::Console::attach(&host, "web1");
    terminal.wait("mini: ready");
    let image = std::fs::File::options().write(true).open(host.path("root.img")).unwrap();
    image.set_len(4096).unwrap();
    terminal.send("blk-verify");
    host.until("it is told", || {
        let said = why(&host, "web1");
        said.contains("disk root: ") && said.contains("request(s) have failed, the last one a read at byte ")
    });
    assert_ne!(host.disks("web1")[0]["counters"]["read"]["errors"], 0);
}

/// A file whose reads and writes go to a program, by FUSE, until it is dropped.
struct Fuse {
    daemon: std::process::Child,
    file: std::path::PathBuf,
}

impl Fuse {
    fn mount(host: &Host, name: &str, bytes: u64) -> Self {
        let (real, file) = (host.path("real.img"), host.path(name));
        std::fs::File::create(&real).unwrap().set_len(bytes).unwrap();
        std::fs::write(&file, "").unwrap();
        let daemon = std::process::Command::new("qemu-storage-daemon")
            .arg("--blockdev")
            .arg(format!("driver=file,node-name=image,filename={}", real.display()))
            .arg("--export")
            .arg(format!(
                "type=fuse,id=export,node-name=image,mountpoint={},writable=on,growable=on",
                file.display()
            ))
            .spawn()
            .unwrap();
        host.until("it is mounted", || std::fs::metadata(&file).is_ok_and(|meta| meta.len() == bytes));
        Self { daemon, file }
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        common::signal(self.daemon.id(), Signal::SIGCONT);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
        let _ = nix::mount::umount2(&self.file, nix::mount::MntFlags::MNT_DETACH);
    }
}

#[test]
fn storage_that_hangs_holds_up_its_own_domain_for_a_while_and_no_other() {
    if !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("not run: this test makes storage that hangs, which needs /dev/fuse");
        return;
    }
    let host = Host::with_service(true);
    let before = host.traces();
    let fuse = Fuse::mount(&host, "fuse.img", 64 << 20);
    host.ok(&["create", &host.guest("other", SHELL, "")]);
    let disk = format!(
        r#", "disks": [ {{ "id": "root", "path": "{}", "cache": "writeback" }} ]"#,
        fuse.file.display()
    );
    let file = host.guest("web1", SHELL, &disk);
    host.ok(&["create", &file]);
    let mut terminal = common::Console::attach(&host, "web1");
    terminal.wait("mini: ready");
    common::signal(fuse.daemon.id(), Signal::SIGSTOP);
    terminal.send("blk-verify");
    host.until("what the guest waits for is named", || {
        let said = why(&host, "web1");
        said.contains("disk root: ") && said.contains("not finished by its storage")
    });
    let mut destroy = host.command(&["destroy", "web1"]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    let others = || {
        let asked = Instant::now();
        for command in [&["list"][..], &["pause", "other"], &["unpause", "other"], &["why", "other"]] {
            host.ok(command);
        }
        assert!(asked.elapsed() < Duration::from_secs(2), "it took {:?}", asked.elapsed());
    };
    others();
    assert!(destroy.wait().unwrap().success());
    // It does not answer, and that is said; nobody else waits for it.
    let create = host.command(&["create", &file]).stderr(std::process::Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    others();
    let create = create.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&create.stderr);
    assert!(!create.status.success() && said.contains("fuse.img"), "{said}");
    others();
    drop(fuse);
    host.ok(&["destroy", "other"]);
    host.until("everything is gone", || host.traces() == before);
}

#[test]
fn what_hangs_in_the_folder_of_definitions_or_behind_a_path_of_a_server_holds_up_nobody() {
    let mut host = Host::new(true);
    for folder in ["etc/networks", "etc/domains"] {
        std::fs::create_dir_all(host.path(folder)).unwrap();
        nix::unistd::mkfifo(&host.path(folder).join("pipe.json"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    }
    host.start_service();
    host.ok(&["create", &host.guest("other", SHELL, "")]);
    let others = |host: &Host| {
        for command in [&["list"][..], &["pause", "other"], &["unpause", "other"], &["why", "other"]] {
            let asked = Instant::now();
            host.ok(command);
            assert!(asked.elapsed() < Duration::from_secs(1), "{command:?} took {:?}", asked.elapsed());
        }
    };
    assert!(host.ok(&["network-list"]).contains("there are no networks"));
    others(&host);
    if !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("not run: the rest of this test makes storage that hangs, which needs /dev/fuse");
        return;
    }
    let fuse = Fuse::mount(&host, "fuse.img", 1 << 20);
    for folder in ["etc/networks", "etc/domains"] {
        std::os::unix::fs::symlink(&fuse.file, host.path(folder).join("hangs.json")).unwrap();
    }
    common::signal(fuse.daemon.id(), Signal::SIGSTOP);
    host.leave_service();
    host.start_service();
    let mut list = host.command(&["network-list"]).spawn().unwrap();
    let disk = format!(
        r#", "disks": [ {{ "id": "d", "path": "nbd+unix:///x?socket={}/s" }} ]"#,
        fuse.file.display()
    );
    let mut create = host.command(&["create", &host.guest("web1", SHELL, &disk)]).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    others(&host);
    drop(fuse);
    assert!(!create.wait().unwrap().success());
    list.wait().unwrap();
}

#[test]
fn nobody_who_does_not_read_what_dom0_says_and_no_storage_of_its_log_holds_it_up() {
    use std::io::Write;
    use std::os::unix::net::UnixStream;
    let mut host = Host::new(true);
    // Nobody reads this end, and there is no room in it.
    let (said, _unread) = UnixStream::pair().unwrap();
    let mut full = said.try_clone().unwrap();
    full.set_nonblocking(true).unwrap();
    while full.write(&[b'\n'; 4096]).is_ok() {}
    full.set_nonblocking(false).unwrap();
    std::fs::create_dir(host.path("log")).unwrap();
    let fuse = std::path::Path::new("/dev/fuse").exists().then(|| Fuse::mount(&host, "log/a.log", 4096));
    if let Some(fuse) = &fuse {
        common::signal(fuse.daemon.id(), Signal::SIGSTOP);
    }
    host.start_service_saying(std::os::fd::OwnedFd::from(said).into());
    let asked = Instant::now();
    for name in ["a", "b"] {
        host.ok(&["create", &host.guest(name, SHELL, "")]);
        host.ok(&["pause", name]);
        host.ok(&["destroy", name]);
    }
    assert!(asked.elapsed() < Duration::from_secs(5), "it took {:?}", asked.elapsed());
    host.stop_service();
    drop(fuse);
}

#[test]
fn a_console_log_whose_storage_hangs_is_told_and_holds_up_no_console() {
    if !std::path::Path::new("/dev/fuse").exists() {
        eprintln!("not run: this test makes storage that hangs, which needs /dev/fuse");
        return;
    }
    let host = Host::with_service(true);
    let fuse = Fuse::mount(&host, "guest.log", 4096);
    let log = format!(r#", "console": {{ "log": "{}" }}"#, fuse.file.display());
    host.ok(&["create", &host.guest("web1", SHELL, &log)]);
    let mut console = common::Console::attach(&host, "web1");
    console.wait("mini: ready");
    common::signal(fuse.daemon.id(), Signal::SIGSTOP);
    for _ in 0..3 {
        console.send("clock");
        console.wait("mini: ok clock");
    }
    host.until("it is told", || why(&host, "web1").contains("its log"));
    common::signal(fuse.daemon.id(), Signal::SIGCONT);
    host.until("all is well", || why(&host, "web1").contains("nothing is amiss"));
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_domain_whose_processes_hang_is_destroyed_at_once_by_a_dom0_that_has_just_begun() {
    let mut host = Host::with_service(true);
    let before = host.traces();
    for (name, devices) in [("a", r#", "nets": [ { "id": "n", "bridge": "br0" } ]"#), ("b", "")] {
        host.ok(&["create", &host.guest(name, SHELL, devices)]);
    }
    for pid in ["runner.sock", "net.sock", "console.sock"].map(|socket| host.pid_of("a", socket).unwrap()) {
        common::signal(pid, Signal::SIGSTOP);
    }
    host.kill_service();
    host.start_service();
    let asked = Instant::now();
    host.ok(&["pause", "b"]);
    host.ok(&["destroy", "a"]);
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    host.ok(&["destroy", "b"]);
    host.until("everything is gone", || host.traces() == before);
}

#[test]
fn a_backend_that_hangs_is_not_upgraded_but_replaced() {
    let host = Host::with_service(true);
    let devices = format!(
        r#", "disks": [ {} ], "on_backend_hang": {{ "restart_after": 600 }}"#,
        host.disk("root", 64, "")
    );
    let load = "console=ttyS0 mini.test=blk-endure mini.ms=12000 mini.end=poweroff";
    host.ok(&["create", &host.guest("web1", load, &devices)]);
    under_load(&host, "web1");
    common::signal(u32::try_from(host.block_pid("web1", 0)).unwrap(), Signal::SIGSTOP);
    host.until("it is named", || why(&host, "web1").contains("domus-block: does not answer (since "));
    let asked = Instant::now();
    let refused = host.refused(&["backend", "upgrade", "web1", "root"]);
    assert!(refused.contains("another one takes its place"), "{refused}");
    assert!(asked.elapsed() < Duration::from_secs(3), "it took {:?}", asked.elapsed());
    host.until("another one takes its place", || host.domain("web1").unwrap()["restarts"] == 1);
    common::Console::attach(&host, "web1").wait("mini: ok blk-endure");
    host.until("it switches itself off", || host.domain("web1").is_none());
}
