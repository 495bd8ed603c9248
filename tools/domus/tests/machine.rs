//! Tests of an operator's commands to a running machine, with the mini guest in the real processes.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use common::{Console, Host};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

#[test]
fn a_sysrq_key_reaches_the_guest_as_a_break_and_the_key() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    assert_eq!(host.ok(&["sysrq", "web1", "h"]), "");
    assert_eq!(console.wait("mini: break"), "mini: break Some(0) key Some('h')");
    // The line goes on as if nothing had been.
    console.send("info");
    console.wait("mini: ok info");
    let line = host.refused(&["sysrq", "web1", "help"]);
    assert!(line.contains("\"help\"") && line.contains("one letter"), "{line}");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn an_nmi_reaches_the_vcpu_that_is_named() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, r#", "vcpus": 2"#)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    let line = host.refused(&["trigger", "web1", "nmi", "2"]);
    assert!(line.contains("no vCPU 2") && line.contains("0 to 1"), "{line}");
    let line = host.refused(&["trigger", "web1", "reset", "0"]);
    assert!(line.contains("leave the vCPU out"), "{line}");
    host.ok(&["trigger", "web1", "nmi", "0"]);
    // The mini guest expects none: it is a fault.
    console.wait("mini: fault vector=2");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_reset_from_outside_is_the_guests_own_and_buttons_are_the_machines() {
    let host = Host::with_service(true);
    let before = host.traces();
    // The register of buttons: see the runner's `power`.
    host.ok(&["create", &host.guest("web1", &format!("{SHELL} mini.buttons=0x603"), "")]);
    let first = host.domain("web1").unwrap()["id"].as_u64().unwrap();
    host.ok(&["trigger", "web1", "reset"]);
    host.until("it has come back", || {
        host.domain("web1").is_some_and(|d| d["id"].as_u64().unwrap() > first && d["state"] == "running")
    });
    // A guest that does not care for it goes on.
    host.ok(&["trigger", "web1", "sleep"]);
    assert_eq!(host.domain("web1").unwrap()["state"], "running");
    host.ok(&["trigger", "web1", "power"]);
    host.until("it has switched itself off", || host.domain("web1").is_none());
    assert_eq!(host.traces(), before);
    // Also while it is paused; what on_reboot says is done.
    host.ok(&["create", &host.guest("still", SHELL, r#", "on_reboot": "preserve""#)]);
    host.ok(&["pause", "still"]);
    host.ok(&["trigger", "still", "reset"]);
    host.until("it is preserved", || host.domain("still").is_some_and(|d| d["flags"] == "---s--"));
    let line = host.refused(&["trigger", "still", "nmi"]);
    assert!(line.contains("cannot give an NMI") && line.contains("preserved"), "{line}");
    host.ok(&["destroy", "still"]);
    assert_eq!(host.traces(), before);
}

/// What gdb prints of a core when it is told this.
fn gdb(core: &Path, tell: &[&str]) -> String {
    let mut command = Command::new("gdb");
    command.args(["-nx", "-batch", "-iex", "set auto-load off", "-core"]).arg(core);
    for line in tell {
        command.args(["-ex", line]);
    }
    let out = command.output().expect("this test needs gdb");
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn gdb_reads_the_registers_of_every_vcpu_and_memory_from_a_core() {
    let host = Host::with_service(true);
    host.ok(&["create", &host.guest("web1", SHELL, r#", "vcpus": 2"#)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    let core = host.path("web1.core");
    // A runner that is its guest's could not fill the disk with one.
    let limits = format!("/proc/{}/limits", host.domain("web1").unwrap()["runner_pid"]);
    let limits = std::fs::read_to_string(limits).unwrap();
    let limit = limits.lines().find(|line| line.starts_with("Max file size")).unwrap();
    assert_eq!(limit.split_whitespace().nth(3), Some((33 << 20).to_string().as_str()), "{limit}");
    assert_eq!(host.ok(&["dump-core", "web1", "web1.core"]).trim(), core.to_str().unwrap());
    // The guest has not noticed.
    console.send("info");
    console.wait("mini: ok info");
    let meta = std::fs::metadata(&core).unwrap();
    assert_eq!(meta.permissions().mode() & 0o7777, 0o600);
    assert!(meta.len() >= 32 << 20 && meta.len() < 33 << 20, "{} bytes", meta.len());
    assert!(meta.blocks() * 512 < 16 << 20, "{} blocks: untouched memory is no hole", meta.blocks());
    // The kernel was loaded at 1 MiB: the same bytes are in the core, where gdb looks for them. RFLAGS bit 1 is
    // always set.
    let text = gdb(
        &core,
        &["info threads", "print $eflags & 2", "print $cs", "x/4xb 0x100000", "thread 2", "print $cs"],
    );
    assert_eq!(text.matches("LWP 1").count().min(1) + text.matches("LWP 2").count().min(1), 2, "{text}");
    assert!(text.contains("$1 = 2"), "{text}");
    assert!(text.contains("0x100000:") && !text.contains("Cannot access memory"), "{text}");
    let whole = std::fs::read(&core).unwrap();
    assert!(whole.windows(15).any(|window| window == b"mini.test=shell"), "the command line is not in it");
    // What is there is never written to.
    let line = host.refused(&["dump-core", "web1", "web1.core"]);
    assert!(line.contains("web1.core") && line.contains("name another file"), "{line}");
    assert_eq!(std::fs::read(&core).unwrap(), whole);
    let line = host.refused(&["dump-core", "web1", "no/such/dir.core"]);
    assert!(line.contains("make its directory"), "{line}");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_core_is_written_live_paused_and_before_a_domain_is_destroyed_or_reset() {
    let host = Host::with_service(true);
    let before = host.traces();
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let first = host.domain("web1").unwrap()["id"].as_u64().unwrap();
    host.ok(&["dump-core", "--live", "web1", "live.core"]);
    host.ok(&["pause", "web1"]);
    host.ok(&["dump-core", "web1", "paused.core"]);
    assert_eq!(host.domain("web1").unwrap()["flags"], "--p---");
    host.ok(&["unpause", "web1"]);
    host.ok(&["dump-core", "-R", "web1", "reset.core"]);
    host.until("it has come back", || {
        host.domain("web1").is_some_and(|d| d["id"].as_u64().unwrap() > first && d["state"] == "running")
    });
    // Without a file: into the directory of cores, which is root's alone.
    let path = host.ok(&["dump-core", "-C", "web1"]);
    let path = Path::new(path.trim());
    assert_eq!(path.parent().unwrap(), host.path("dump"));
    assert!(path.file_name().unwrap().to_str().unwrap().starts_with("web1-"));
    assert_eq!(std::fs::metadata(host.path("dump")).unwrap().permissions().mode() & 0o777, 0o700);
    host.until("it is gone", || host.domain("web1").is_none());
    assert_eq!(host.traces(), before);
    for core in ["live.core", "paused.core", "reset.core"] {
        assert_eq!(&std::fs::read(host.path(core)).unwrap()[..4], b"\x7fELF", "{core}");
    }
}

#[test]
fn a_crash_leaves_a_core_where_its_policy_says_so() {
    let host = Host::with_service(true);
    let before = host.traces();
    let cores = || std::fs::read_dir(host.path("dump")).map_or(0, Iterator::count);
    let crash = "console=ttyS0 mini.test=info mini.end=triple";
    host.ok(&["create", &host.guest("sick", crash, r#", "on_triple_fault": "coredump-destroy""#)]);
    host.until("sick is gone", || host.domain("sick").is_none());
    assert_eq!(cores(), 1);
    assert_eq!(host.traces(), before);
    // One that crashes again and again is started less and less often, and does not fill the disk with its cores.
    host.ok(&["create", &host.guest("loop", crash, r#", "on_triple_fault": "coredump-restart""#)]);
    let first = host.domain("loop").unwrap()["id"].as_u64().unwrap();
    host.until("it has crashed three times", || {
        host.domain("loop").unwrap()["id"].as_u64().unwrap() >= first + 3
    });
    assert_eq!(cores(), 2);
    let why = host.ok(&["why", "loop"]);
    assert!(
        why.contains("guest: has ended ")
            && why.contains("in a row soon after its start: the last one crashed"),
        "{why}"
    );
    host.ok(&["destroy", "loop"]);
    assert_eq!(host.traces(), before);
}

/// Unmounts it, so that the test's directory can be removed.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_core_that_does_not_fit_is_one_line_and_no_file_and_the_guest_goes_on() {
    let mut host = Host::new(true);
    // For this thread and the processes it starts.
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let small = host.path("small");
    std::fs::create_dir(&small).unwrap();
    mount(Some("none"), &small, Some("tmpfs"), MsFlags::empty(), Some("size=64k")).unwrap();
    let _mounted = Mounted(small.clone());
    host.start_service();
    host.ok(&["create", &host.guest("web1", SHELL, "")]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ready");
    let line = host.refused(&["dump-core", "-C", "web1", "small/web1.core"]);
    assert!(line.contains("small/web1.core") && line.contains("No space left"), "{line}");
    assert_eq!(std::fs::read_dir(&small).unwrap().count(), 0);
    console.send("info");
    console.wait("mini: ok info");
    host.ok(&["destroy", "web1"]);
}
