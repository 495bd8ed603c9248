//! Starts this test program again as a child that enters the sandbox, and looks at it from outside and inside.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{Seek, Write};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use domus_startup::sandbox::{Allow, COMMON, NARROWING, enter, landlock_version, limit_files, narrow, seal};

/// Set in the child: what it should do once it is in the sandbox.
const ACT: &str = "DOMUS_SANDBOX_ACT";

fn child(act: &str) -> std::process::Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inside", "--ignored", "--nocapture", "--test-threads=1"])
        .env(ACT, act)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Not a test of its own: what the child of the tests below runs.
#[test]
#[ignore = "run by the other tests of this file, as their child"]
fn inside() {
    let act = std::env::var(ACT).expect("started by another test of this file");
    // The test harness runs us on a second thread; a user namespace needs a process with one. So fork.
    match fork() {
        0 => {
            let uid = if nix::unistd::geteuid().is_root() {
                1_900_000_001
            } else {
                nix::unistd::geteuid().as_raw()
            };
            let status = std::fs::File::open("/proc/self/status").unwrap();
            let mut long = domus_startup::memfd::sealed("long", 8192).unwrap();
            limit_files(4096).unwrap();
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
            enter(uid).unwrap();
            assert_eq!(nix::sys::prctl::get_pdeathsig(), Ok(Some(nix::sys::signal::Signal::SIGKILL)));
            if act == "look-around" {
                // Without Landlock the root is there, and empty.
                let expected = landlock_version().map(|_| libc::EACCES);
                assert_eq!(std::fs::read_dir("/").err().and_then(|error| error.raw_os_error()), expected);
                std::process::exit(0);
            }
            let own = [Allow::Call(libc::SYS_lseek), Allow::Call(libc::SYS_statx)];
            seal(&[COMMON, NARROWING, &own].concat()).unwrap();
            match act.as_str() {
                "status" => print!("{}", std::io::read_to_string(status).unwrap()),
                "open" => drop(std::fs::File::open("/")),
                "write" => {
                    long.write_all(&[1; 4096]).unwrap();
                    let more = long.write_all(&[1]).map_err(|error| error.raw_os_error());
                    assert_eq!(more, Err(Some(libc::EFBIG)));
                }
                "exec" => drop(Command::new("/bin/true").status()),
                "map-huge" => drop(map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB)),
                "map-shared" => drop(map(libc::MAP_SHARED | libc::MAP_ANONYMOUS)),
                "map" => assert!(map(libc::MAP_PRIVATE | libc::MAP_ANONYMOUS).is_ok()),
                "narrowed" => {
                    long.rewind().unwrap();
                    narrow(COMMON).unwrap();
                    long.write_all(&[1]).unwrap();
                }
                "narrowed-seek" => {
                    narrow(COMMON).unwrap();
                    long.rewind().unwrap();
                }
                "widened" => {
                    narrow(COMMON).unwrap();
                    let _ = narrow(&[COMMON, &own].concat());
                }
                other => panic!("{other}"),
            }
            std::process::exit(0);
        }
        pid => {
            let status = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None).unwrap();
            if let nix::sys::wait::WaitStatus::Signaled(_, signal, _) = status {
                nix::sys::signal::raise(signal).unwrap();
            }
        }
    }
}

#[expect(unsafe_code, reason = "the test forks to have a process with one thread")]
fn fork() -> i32 {
    // SAFETY: the child uses only this thread, and the allocator, which glibc keeps usable across fork.
    unsafe { libc::fork() }
}

#[expect(unsafe_code, reason = "the test maps memory in ways that no safe code does")]
fn map(flags: i32) -> Result<(), std::io::Error> {
    // SAFETY: a mapping at no address of ours touches nothing that there is, and stays.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0) };
    if at == libc::MAP_FAILED { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn a_process_in_the_empty_room_cannot_even_look_around() {
    let output = child("look-around");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn memory_is_mapped_for_oneself_and_in_small_pages_alone() {
    assert!(child("map").status.success());
    for act in ["map-huge", "map-shared"] {
        let status = child(act).status;
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{act}: {status:?}");
    }
}

#[test]
fn a_thread_that_has_narrowed_itself_can_do_less_and_never_more() {
    assert!(child("narrowed").status.success());
    for act in ["narrowed-seek", "widened"] {
        let status = child(act).status;
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{act}: {status:?}");
    }
}

#[test]
fn a_sealed_process_has_no_privilege_left() {
    let output = child("status");
    let status = String::from_utf8(output.stdout).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"));
        line.unwrap_or_else(|| panic!("no {name} in {status}{}", String::from_utf8_lossy(&output.stderr)))
            .to_owned()
    };
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert_eq!(field(set), "0000000000000000", "{set}");
    }
    assert_eq!(field("NoNewPrivs"), "1");
    assert_eq!(field("Seccomp"), "2");
    assert!(!field("Uid").starts_with("0\t"), "{}", field("Uid"));
    assert_eq!(field("Groups").trim(), if nix::unistd::geteuid().is_root() { "" } else { "65534" });
}

#[test]
fn a_write_beyond_the_limit_of_files_is_an_error_and_ends_nothing() {
    let output = child("write");
    assert!(output.status.success(), "{output:?}");
}

#[test]
fn opening_a_path_or_starting_a_program_kills_a_sealed_process() {
    for act in ["open", "exec"] {
        let status = child(act).status;
        assert_eq!(status.signal(), Some(libc::SIGSYS), "{act}: {status:?}");
    }
}
