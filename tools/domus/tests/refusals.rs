//! Tests of refusals: one line, the right exit status, and nothing left behind.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Stdio;

use common::Host;

/// A config, and what the line must name.
struct Bad {
    what: &'static str,
    text: String,
    names: &'static [&'static str],
}

fn bad_configs() -> Vec<Bad> {
    let case = |what, more: &str, names| Bad {
        what,
        text: format!(r#"{{ "name": "bad", "boot": {{ "kernel": "mini.elf" }}{more} }}"#),
        names,
    };
    let kernel = |what, file: &str, names| Bad {
        what,
        text: format!(r#"{{ "name": "bad", "boot": {{ "kernel": "{file}" }} }}"#),
        names,
    };
    vec![
        case("an unknown key", r#", "vcpu": 1"#, &["vcpu", "vcpus"]),
        case("a wrong type", r#", "vcpus": "two""#, &["vcpus", "\"two\"", "u64"]),
        case("0 vCPUs", r#", "vcpus": 0"#, &["vcpus", "0", "1 to 255"]),
        case("256 vCPUs", r#", "vcpus": 256"#, &["vcpus", "256", "1 to 255"]),
        case(
            // No CPU that KVM runs on has had it for fifteen years.
            "a CPU that the host cannot give",
            r#", "cpu": { "require": [ "3dnow" ] }"#,
            &["bad.json: cpu: \"host\"", "cannot give 3dnow", "another host"],
        ),
        case(
            "more memory than there is",
            r#", "memory": "4000GiB""#,
            &["memory", "4000GiB", "than this host has"],
        ),
        case(
            "a missing image",
            r#", "disks": [ { "id": "d", "path": "no.img" } ]"#,
            &["disks[0].path", "no.img", "does not exist", "name an image"],
        ),
        case(
            "a directory for a disk",
            r#", "disks": [ { "id": "d", "path": "/tmp" } ]"#,
            &["disks[0].path", "/tmp", "a directory", "name an image"],
        ),
        case(
            "a missing backend",
            r#", "disks": [ { "id": "d", "vhost_user_socket": "no.sock" } ]"#,
            &["disks[0].vhost_user_socket", "no.sock", "start the vhost-user backend"],
        ),
        case(
            "a bridge that does not exist",
            r#", "nets": [ { "id": "n", "bridge": "nobr" } ]"#,
            &["nets[0].bridge", "nobr", "does not exist", "ip link add nobr type bridge"],
        ),
        case(
            "a bridge that is none",
            r#", "nets": [ { "id": "n", "bridge": "lo" } ]"#,
            &["nets[0].bridge", "\"lo\"", "is no bridge"],
        ),
        case(
            "a busy tap",
            r#", "nets": [ { "id": "n", "tap": "busy0" } ]"#,
            &["nets[0].tap", "busy0", "in use by", "free tap"],
        ),
        case(
            "a second NIC that cannot be, after a first that can",
            r#", "nets": [ { "id": "a", "bridge": "br0" }, { "id": "b", "tap": "notap" } ]"#,
            &["nets[1].tap", "notap", "ip tuntap add notap"],
        ),
        kernel("a missing kernel", "no-kernel", &["boot.kernel", "no-kernel", "does not exist"]),
        kernel("a directory for a kernel", "run", &["boot.kernel", "run", "a directory"]),
        kernel("a truncated kernel", "short.elf", &["boot.kernel", "short.elf"]),
        kernel("text for a kernel", "bad.json", &["boot.kernel", "bad.json"]),
    ]
}

/// Keeps the tap `busy0` busy in this test's network namespace.
fn busy_tap(host: &Host) -> std::process::Child {
    host.ip(&["tuntap", "add", "busy0", "mode", "tap", "vnet_hdr"]);
    host.ip(&["link", "set", "busy0", "up"]);
    // Another process has it: the one that `run` starts for another domain.
    let file = host.guest(
        "holder",
        "console=ttyS0 mini.test=shell",
        r#", "nets": [ { "id": "n", "tap": "busy0" } ]"#,
    );
    let mut command = host.command(&["run", &file]);
    let mut holder = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    host.until("the tap is busy", || !host.ip(&["-o", "link", "show", "busy0"]).contains("NO-CARRIER"));
    // Its guest runs: nothing of it will come or go any more.
    host.until("its guest runs", || host.traces().processes.iter().any(|line| line.contains("runner")));
    holder.stdout.as_mut().unwrap().read_exact(&mut [0; 20]).unwrap();
    holder
}

#[test]
fn a_bad_config_gets_one_line_and_leaves_nothing_behind() {
    let host = Host::with_service(true);
    let mut holder = busy_tap(&host);
    std::fs::write(host.path("short.elf"), &mini_guest::IMAGE[..100]).unwrap();
    let before = host.traces();
    for bad in bad_configs() {
        host.write("bad.json", &bad.text);
        let commands = [&["check", "bad.json"][..], &["create", "bad.json"], &["run", "bad.json"]];
        for command in commands {
            let line = host.refused(command);
            assert!(line.starts_with("bad.json: "), "{}: {line}", bad.what);
            for name in bad.names {
                assert!(line.contains(name), "{}: {command:?} said {line}\nwhich lacks {name}", bad.what);
            }
            assert_eq!(host.traces(), before, "{}: {command:?} left something", bad.what);
        }
    }
    common::end(&mut holder);
}

#[test]
fn a_name_twice_and_an_image_twice_are_refused_by_name() {
    let host = Host::with_service(true);
    let shell = "console=ttyS0 mini.test=shell";
    std::fs::write(host.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let disk = r#", "disks": [ { "id": "root", "path": "disk.img" } ]"#;
    let one = host.guest("one", shell, disk);
    let two = host.guest("two", shell, disk);
    host.ok(&["create", &one]);
    let before = host.traces();
    for command in ["check", "create"] {
        let line = host.refused(&[command, &one]);
        assert!(
            line.starts_with("one.json: name: ") && line.contains("\"one\"") && line.contains("ID "),
            "{line}"
        );
        let line = host.refused(&[command, &two]);
        assert!(line.starts_with("two.json: disks[0].path: ") && line.contains("domain one"), "{line}");
        assert_eq!(host.traces(), before);
    }
    let line = host.refused(&["run", &one]);
    assert!(line.contains("name: ") && line.contains("\"one\""), "{line}");
    host.ok(&["destroy", "one"]);
    // The image is free again, at once.
    host.ok(&["create", &two]);
    host.ok(&["destroy", "two"]);
}

#[test]
fn wrong_usage_has_status_2_and_a_missing_service_says_how_to_start_it() {
    let host = Host::new(false);
    for args in [
        &[][..],
        &["frobnicate"],
        &["create"],
        &["list", "--frob"],
        &["console", "a", "--read-only", "--take"],
    ] {
        assert_eq!(host.domus(args).status.code(), Some(2), "{args:?}");
    }
    for args in [&["list"][..], &["destroy", "a"], &["console", "a"], &["shutdown", "--wait", "a"]] {
        let line = host.refused(args);
        assert!(
            line.contains("dom0.sock")
                && line.contains("start the program dom0")
                && line.contains("domus run"),
            "{line}"
        );
    }
    let line = host.refused(&["create", "no.json"]);
    assert!(line.starts_with("no.json: cannot be read"), "{line}");
}

#[test]
fn a_domain_that_is_not_there_is_named() {
    let host = Host::with_service(false);
    for args in [
        &["destroy", "web9"][..],
        &["pause", "web9"],
        &["console", "web9"],
        &["list", "web9"],
        &["shutdown", "-w", "web9"],
    ] {
        let line = host.refused(args);
        assert!(line.contains("\"web9\"") && line.contains("domus list"), "{line}");
    }
    assert!(host.refused(&["destroy", "../../etc"]).contains("there is no domain"));
}

#[test]
fn a_second_service_on_the_same_run_directory_is_refused_by_name() {
    let mut host = Host::with_service(false);
    let pid = host.service().id();
    let second = std::process::Command::new(common::programs().join("dom0"))
        .arg("--run-dir")
        .arg(host.run_dir())
        .output()
        .unwrap();
    let text = String::from_utf8(second.stderr).unwrap();
    assert_eq!(second.status.code(), Some(1));
    assert!(text.contains(&format!("pid {pid}")), "{text}");
    // The first one still serves.
    host.ok(&["list"]);
    host.stop_service();
    assert!(!host.run_dir().join("dom0.sock").exists());
}

#[test]
fn the_api_describes_itself_and_its_errors_are_typed() {
    let host = Host::with_service(false);
    let info = host.call(r#"{"method":"org.varlink.service.GetInfo"}"#);
    let interfaces = info["parameters"]["interfaces"].to_string();
    assert!(interfaces.contains("org.domus.Dom0") && interfaces.contains("org.varlink.service"), "{info}");
    let description = host.call(r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.domus.Dom0"}}"#,
    );
    let idl = description["parameters"]["description"].as_str().unwrap();
    for part in [
        "interface org.domus.Dom0",
        "method Create(",
        "method List() -> (",
        "domains: []DomainInfo",
        "error NoSuchDomain",
    ] {
        assert!(idl.contains(part), "{part} is not in\n{idl}");
    }
    let interface = zlink::idl::Interface::try_from(idl).unwrap();
    assert_eq!((interface.methods().count(), interface.errors().count()), (39, 5));
    let error = host.call(r#"{"method":"org.domus.Dom0.Pause","parameters":{"name":"web9"}}"#);
    assert_eq!(error["error"], "org.domus.Dom0.NoSuchDomain");
    let error = host.call(r#"{"method":"org.domus.Dom0.Frob"}"#);
    assert_eq!(error["error"], "org.varlink.service.MethodNotFound");
}

/// `DOMUS_BLESS=1` writes the file anew; look at what has changed before you commit it.
#[test]
fn the_file_of_the_interface_is_what_the_service_says_of_itself() {
    let host = Host::with_service(false);
    let description = host.call(r#"{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"org.domus.Dom0"}}"#,
    );
    let idl = description["parameters"]["description"].as_str().unwrap();
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared-abi/api/org.domus.Dom0.varlink");
    if std::env::var_os("DOMUS_BLESS").is_some() {
        std::fs::write(file, format!("{}\n", idl.trim_end())).unwrap();
    }
    let written = std::fs::read_to_string(file).unwrap();
    assert_eq!(written.trim_end(), idl.trim_end());
}

#[test]
fn nonsense_and_hang_ups_do_not_hurt_the_service() {
    let mut host = Host::with_service(false);
    for bytes in [
        &b"\0"[..],
        b"{}\0",
        b"nonsense\0",
        b"{\"method\":",
        &[0xff; 4096],
        b"{\"method\":\"org.domus.Dom0.Create\",\"parameters\":{\"config\":1}}\0",
    ] {
        let mut stream = UnixStream::connect(host.run_dir().join("dom0.sock")).unwrap();
        stream.write_all(bytes).unwrap();
    }
    // A call that never ends is cut off, long before it costs anything.
    let mut stream = UnixStream::connect(host.run_dir().join("dom0.sock")).unwrap();
    let endless = std::iter::repeat_with(|| stream.write(&[b' '; 65536])).take(1000).find_map(Result::err);
    assert!(endless.is_some(), "64 MiB of one call were taken");
    let waiting: Vec<UnixStream> =
        (0..50).map(|_| UnixStream::connect(host.run_dir().join("dom0.sock")).unwrap()).collect();
    host.ok(&["list"]);
    drop(waiting);
    host.ok(&["list"]);
    assert!(host.service().try_wait().unwrap().is_none());
}

#[test]
fn only_root_and_the_group_reach_the_socket() {
    use std::os::unix::fs::PermissionsExt;
    let host = Host::with_service(false);
    let mode = std::fs::metadata(host.run_dir().join("dom0.sock")).unwrap().permissions().mode() & 0o777;
    let group = nix::unistd::Group::from_name("domus").unwrap().is_some();
    assert_eq!(mode, if group { 0o660 } else { 0o600 });
    let domains = std::fs::metadata(host.run_dir().join("domains")).unwrap().permissions().mode() & 0o777;
    assert_eq!(domains, 0o700);
}

#[test]
fn a_process_that_does_not_come_up_is_named_and_everything_made_so_far_is_removed() {
    let host = Host::new(true);
    host.touch_run_dir();
    std::fs::write(host.path("disk.img"), vec![0; 1 << 20]).unwrap();
    let devices =
        r#", "disks": [ { "id": "d", "path": "disk.img" } ], "nets": [ { "id": "n", "bridge": "br0" } ]"#;
    let file = host.guest("web1", "console=ttyS0 mini.test=shell", devices);
    let before = host.traces();
    for program in ["domu-runner", "domus-block", "domus-net", "domus-console"] {
        for (script, says) in [
            ("", "is not installed"),
            ("#!/bin/sh\nexit 7\n", "exited with status 7"),
            ("#!/bin/sh\nkill -9 $$; sleep 1; exit 9\n", "exited with status"),
            ("\u{0}", "could not be executed"),
        ] {
            let libexec = host.programs_but(program, script);
            let line = host.refused(&["run", "--libexec-dir", &libexec, &file]);
            assert!(
                line.starts_with("web1.json: ") && line.contains(program) && line.contains(says),
                "{line}"
            );
            assert_eq!(host.traces(), before, "{program}: {says}");
        }
    }
}

#[test]
fn a_build_that_hangs_can_be_given_up() {
    let host = Host::new(true);
    host.touch_run_dir();
    let file = host.guest("web1", "console=ttyS0", r#", "nets": [ { "id": "n", "bridge": "br0" } ]"#);
    let before = host.traces();
    let libexec = host.programs_but("domus-net", "#!/bin/sh\nexec sleep 1000\n");
    let mut run =
        host.command(&["run", "--libexec-dir", &libexec, &file]).stderr(Stdio::null()).spawn().unwrap();
    host.until("its tap is made", || host.traces().links.contains("vif"));
    common::signal(run.id(), nix::sys::signal::SIGINT);
    assert_eq!(run.wait().unwrap().code(), Some(1));
    assert_eq!(host.traces(), before);
}
