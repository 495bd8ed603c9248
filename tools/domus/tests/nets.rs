//! NICs of each kind, with the mini guest in the real processes and the network in a namespace of the test's own.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::process::{Child, Command, Stdio};

use common::{Console, Host};

/// A guest that has its echoes answered by 10.1.0.1.
const PING: &str =
    "console=ttyS0 mini.test=net-ping mini.ip=10.1.0.2 mini.peer=10.1.0.1 mini.rounds=20 mini.end=poweroff";

/// The same guest, which does so when it is told to.
const SHELL: &str =
    "console=ttyS0 mini.test=shell mini.ip=10.1.0.2 mini.peer=10.1.0.1 mini.rounds=20 mini.end=poweroff";

/// A process of the test's, ended with it.
struct Aid(Child);

impl Drop for Aid {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn aid(program: &str, args: &[&str]) -> Aid {
    // One that reads its standard input takes an end of it as a wish to end.
    let child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::null()).spawn();
    Aid(child.unwrap_or_else(|error| panic!("{program}: {error}")))
}

/// Where testpmd keeps what it shares with other processes, which it leaves behind when it is killed.
struct Shared(String);

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(format!("/var/run/dpdk/{}", self.0));
        // Only if it was made for this one.
        let _ = std::fs::remove_dir("/var/run/dpdk");
    }
}

/// Runs the guest to its end; it has checked its network itself.
fn runs_well(host: &Host, name: &str, cmdline: &str, nets: &str) {
    let before = host.traces();
    let file = host.guest(name, cmdline, &format!(r#", "vcpus": 2, "nets": [ {nets} ]"#));
    host.ok(&["check", &file]);
    host.ok(&["create", &file]);
    let mut console = Console::attach(host, name);
    console.wait("mini: ok net-ping");
    host.until("the guest switches itself off", || host.domain(name).is_none());
    assert_eq!(host.traces(), before);
}

#[test]
fn a_host_without_the_device_of_taps_is_told_which_and_how_to_get_it() {
    use nix::mount::{MsFlags, mount};
    let host = Host::new(true);
    // For this thread and the processes it starts.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("none"), "/dev/net", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let file = host.guest("web1", SHELL, r#", "nets": [ { "id": "eth0", "bridge": "br0" } ]"#);
    let told = |part: &str| {
        for verb in ["check", "run"] {
            let refused = host.refused(&[verb, &file]);
            assert!(refused.contains("nets[0].bridge: ") && refused.contains(part), "{refused}");
            assert!(refused.contains("/dev/net/tun") && refused.contains("modprobe tun"), "{refused}");
        }
    };
    told("does not exist");
}

#[test]
fn a_nic_is_on_a_bridge_a_tap_with_one_queue_or_many_or_a_macvtap() {
    let host = Host::with_service(true);
    host.touch_run_dir();
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "br0"]);
    runs_well(&host, "bridged", PING, r#"{ "id": "eth0", "bridge": "br0" }"#);

    for (name, more) in [("tap1", &[][..]), ("tapm", &["multi_queue"])] {
        host.ip(&[&["tuntap", "add", name, "mode", "tap"][..], more].concat());
        host.ip(&["link", "set", name, "up", "master", "br0"]);
        runs_well(&host, name, PING, &format!(r#"{{ "id": "eth0", "tap": "{name}" }}"#));
    }

    let file = host.guest("two", PING, r#", "nets": [ { "id": "eth0", "tap": "tap1", "queues": 2 } ]"#);
    let refused = host.refused(&["create", &file]);
    assert!(refused.contains("nets[0].queues: is 2") && refused.contains("multi_queue"), "{refused}");

    // Two ends of a cable: the guest is on one, the host on the other.
    host.ip(&["addr", "flush", "dev", "br0"]);
    host.ip(&["link", "add", "near", "type", "veth", "peer", "name", "far"]);
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "far"]);
    host.ip(&["link", "set", "far", "up"]);
    host.ip(&["link", "set", "near", "up"]);
    runs_well(&host, "macvtap", PING, r#"{ "id": "eth0", "macvtap": "near", "queues": 2 }"#);
    let file = host.guest("none", PING, r#", "nets": [ { "id": "eth0", "macvtap": "nothere" } ]"#);
    assert!(host.refused(&["check", &file]).contains("nets[0].macvtap: \"nothere\" does not exist"));
}

#[test]
fn a_nic_of_a_foreign_backend_gets_frames_through_and_is_connected_to_again() {
    let host = Host::with_service(true);
    host.touch_run_dir();
    let socket = host.path("pmd.sock").display().to_string();
    let shared = Shared(format!("domus-test-{}", std::process::id()));
    // A tap beside the guest's port, and testpmd forwards between the two.
    let testpmd = || {
        let _ = std::fs::remove_file(&socket);
        let device = format!("net_vhost0,iface={socket},queues=1");
        let pmd = aid(
            "dpdk-testpmd",
            &[
                "-l",
                "0-1",
                "--no-huge",
                "-m",
                "256",
                "--no-pci",
                "--log-level=lib.vhost.*:error",
                "--file-prefix",
                &shared.0,
                "--vdev",
                &device,
                "--vdev",
                "net_tap0,iface=pmd0",
                "--",
                "--forward-mode=io",
                "--auto-start",
                "--total-num-mbufs=4096",
            ],
        );
        host.until("testpmd listens", || std::path::Path::new(&socket).exists());
        host.until("testpmd has its tap", || host.ip(&["-o", "link", "show"]).contains("pmd0"));
        host.ip(&["addr", "add", "10.1.0.1/24", "dev", "pmd0"]);
        host.ip(&["link", "set", "pmd0", "up"]);
        pmd
    };
    let first = testpmd();
    let nic = format!(r#", "nets": [ {{ "id": "eth0", "vhost_user_socket": "{socket}" }} ]"#);
    let file = host.guest("web1", SHELL, &nic);
    host.ok(&["check", &file]);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    drop(first);
    host.until("the loss is seen", || host.ok(&["why", "web1"]).contains("the backend of eth0"));
    let _second = testpmd();
    host.until("it is connected to again", || host.domain("web1").unwrap()["restarts"] == 1);
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    host.ok(&["destroy", "web1"]);
}

/// A machine outside, at 192.0.2.2, that sends back every datagram to its port 7. The host is 192.0.2.1, and its way
/// out leads there.
fn outside(host: &Host) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let (cabled, cable) = std::sync::mpsc::channel::<()>();
    // Ends with the test's process, and its namespace with it.
    std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        sender.send(nix::unistd::gettid().to_string()).unwrap();
        cable.recv().unwrap();
        for command in ["addr add 192.0.2.2/24 dev eth0", "link set eth0 up"] {
            let done = Command::new("ip").args(command.split(' ')).status();
            assert!(done.unwrap().success(), "ip {command}");
        }
        let socket = std::net::UdpSocket::bind("192.0.2.2:7").unwrap();
        sender.send(String::new()).unwrap();
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = socket.recv_from(&mut datagram) {
            let _ = socket.send_to(&datagram[..len], from);
        }
    });
    let thread = receiver.recv().unwrap();
    host.ip(&["link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", &thread]);
    host.ip(&["addr", "add", "192.0.2.1/24", "dev", "wan"]);
    host.ip(&["link", "set", "wan", "up"]);
    host.ip(&["link", "set", "lo", "up"]);
    host.ip(&["route", "add", "default", "via", "192.0.2.2"]);
    cabled.send(()).unwrap();
    receiver.recv().unwrap();
}

/// The passts of this host's domains: their processes are known by the namespace they are in.
fn passts() -> Vec<u32> {
    let own = std::fs::read_link("/proc/thread-self/ns/net").unwrap();
    let processes = std::fs::read_dir("/proc").unwrap().flatten();
    let passt = |process: &std::fs::DirEntry| {
        std::fs::read_to_string(process.path().join("comm")).is_ok_and(|name| name.starts_with("passt"))
            && std::fs::read_link(process.path().join("ns/net")).is_ok_and(|there| there == own)
    };
    processes.filter(passt).filter_map(|process| process.file_name().to_str()?.parse().ok()).collect()
}

const DHCP: &str = "console=ttyS0 mini.test=shell mini.peer=192.0.2.2 mini.end=poweroff";

#[test]
fn a_nic_that_names_no_network_gets_an_address_and_a_way_out_from_passt_which_is_replaced_when_it_dies() {
    let host = Host::with_service(true);
    outside(&host);
    let before = host.traces();
    let nic = r#", "nets": [ { "id": "eth0", "user": { "ports": [ "tcp:127.0.0.1:8080:80" ] } } ]"#;
    let file = host.guest("web1", DHCP, nic);
    host.ok(&["check", &file]);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    console.send("net-dhcp");
    console.wait("mini: ok net-dhcp");
    assert!(std::net::TcpStream::connect("127.0.0.1:8080").is_ok(), "the port leads to the guest");

    // passt dies, and after it the process that speaks to it.
    let first = passts();
    assert_eq!(first.len(), 1);
    common::signal(first[0], nix::sys::signal::SIGKILL);
    host.until("another passt is there", || host.domain("web1").unwrap()["restarts"] == 1);
    console.send("net-dhcp");
    console.wait("mini: ok net-dhcp");
    common::signal(host.pid_of("web1", "net.sock").unwrap(), nix::sys::signal::SIGKILL);
    host.until("another domus-net is there", || host.domain("web1").unwrap()["restarts"] == 2);
    console.send("net-dhcp");
    console.wait("mini: ok net-dhcp");
    assert_eq!(passts().len(), 1);

    let taken = host.guest("web2", DHCP, nic);
    let refused = host.refused(&["create", &taken]);
    assert!(refused.contains("nets[0].user: passt") && refused.contains("ports free"), "{refused}");
    host.ok(&["destroy", "web1"]);
    assert_eq!(host.traces(), before);
    assert!(passts().is_empty());
}

/// Whether the interface is a port of this bridge.
fn is_port(host: &Host, name: &str, bridge: &str) -> bool {
    let ports = host.ip(&["-o", "link", "show"]);
    ports
        .lines()
        .any(|line| line.contains(&format!(": {name}:")) && line.contains(&format!(" master {bridge} ")))
}

/// Waits until the condition holds, which must be soon: a second, and what a busy machine adds.
#[track_caller]
fn soon(host: &Host, what: &str, condition: impl FnMut() -> bool) {
    let began = std::time::Instant::now();
    host.until(what, condition);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "{what} took {:?}", began.elapsed());
}

fn make_bridge(host: &Host) {
    host.ip(&["link", "add", "br0", "type", "bridge"]);
    host.ip(&["link", "set", "br0", "up"]);
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "br0"]);
}

#[test]
fn a_tap_comes_back_to_its_bridge_whichever_of_them_somebody_has_taken_away() {
    let mut host = Host::with_service(true);
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "br0"]);
    let nic = r#", "nets": [ { "id": "eth0", "bridge": "br0" } ]"#;
    host.ok(&["create", &host.guest("web1", SHELL, nic)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    let mut pings = |host: &Host| {
        assert!(!host.ok(&["why", "web1"]).contains("wire"));
        console.send("net-ping");
        console.wait("mini: ok net-ping");
    };
    pings(&host);

    host.ip(&["link", "set", "vif1.0", "nomaster"]);
    soon(&host, "it is a port again", || is_port(&host, "vif1.0", "br0"));
    host.until("all is well", || !host.ok(&["why", "web1"]).contains("wire"));
    host.ip(&["link", "add", "br1", "type", "bridge"]);
    host.ip(&["link", "set", "vif1.0", "master", "br1", "down", "mtu", "1400"]);
    soon(&host, "it is a port of its own bridge, as it was", || {
        is_port(&host, "vif1.0", "br0") && host.ip(&["link", "show", "vif1.0"]).contains("LOWER_UP> mtu 1500")
    });
    host.until("all is well", || !host.ok(&["why", "web1"]).contains("wire"));
    pings(&host);

    // The bridge goes, and comes after a while.
    host.ip(&["link", "del", "br0"]);
    soon(&host, "the loss is told", || {
        let why = host.ok(&["why", "web1"]);
        why.contains("the wire of eth0: the bridge br0 was removed") && why.contains("\"br0\" does not exist")
    });
    std::thread::sleep(std::time::Duration::from_millis(1500));
    make_bridge(&host);
    soon(&host, "it is a port of the new one", || is_port(&host, "vif1.0", "br0"));
    host.until("all is well", || !host.ok(&["why", "web1"]).contains("wire"));
    pings(&host);

    // The tap itself: another one is made, and another process has it.
    let old = host.pid_of("web1", "net.sock");
    host.ip(&["link", "del", "vif1.0"]);
    host.until("another tap is a port", || is_port(&host, "vif1.0", "br0"));
    host.until("another process serves", || host.domain("web1").unwrap()["restarts"].as_u64() > Some(3));
    assert!(![None, old].contains(&host.pid_of("web1", "net.sock")));
    host.until("all is well", || host.ok(&["why", "web1"]).contains("nothing is amiss"));
    pings(&host);

    // While there is no dom0.
    host.kill_service();
    host.ip(&["link", "del", "br0"]);
    make_bridge(&host);
    host.start_service();
    host.until("it is a port again", || is_port(&host, "vif1.0", "br0"));
    host.until("all is well", || host.ok(&["why", "web1"]).contains("nothing is amiss"));
    pings(&host);
    assert!(
        host.ok(&["logs", "web1"]).contains("the wire of eth0 the tap vif1.0 was no port of br0 and is back")
    );
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_port_of_a_bridge_learns_nothing_takes_no_spanning_tree_and_is_reached_at_once() {
    let host = Host::with_service(true);
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "br0"]);
    let nics = r#", "nets": [ { "id": "eth0", "bridge": "br0", "mac": "52:54:00:00:00:01", "isolated": true },
                              { "id": "eth1", "bridge": "br0", "spoof": true } ]"#;
    host.ok(&["create", &host.guest("web1", SHELL, nics)]);
    let bridge = |args: &[&str]| {
        let out = Command::new("bridge").args(args).output().unwrap();
        String::from_utf8(out.stdout).unwrap().replace('\n', " ")
    };
    let guarded = || bridge(&["-d", "link", "show", "dev", "vif1.0"]);
    for part in ["guard on", "root_block on", "learning off", "isolated on", " flood on", "mcast_flood on"] {
        assert!(guarded().contains(part), "{part}: {}", guarded());
    }
    let free = bridge(&["-d", "link", "show", "dev", "vif1.1"]);
    for part in ["guard off", "root_block off", "learning on", "isolated off"] {
        assert!(free.contains(part), "{part}: {free}");
    }
    let known = || bridge(&["fdb", "show", "dev", "vif1.0"]);
    assert!(known().contains("52:54:00:00:00:01 master br0 static"), "{}", known());
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    // So it is when it comes back.
    host.ip(&["link", "set", "vif1.0", "nomaster"]);
    soon(&host, "it is guarded again", || {
        guarded().contains("guard on") && known().contains("52:54:00:00:00:01 master br0 static")
    });
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_tap_of_somebody_elses_that_is_removed_is_named_and_taken_again_when_it_is_back() {
    let host = Host::with_service(true);
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "br0"]);
    let make = || {
        host.ip(&["tuntap", "add", "tap1", "mode", "tap"]);
        host.ip(&["link", "set", "tap1", "up", "master", "br0"]);
    };
    make();
    let nics = r#", "nets": [ { "id": "eth0", "tap": "tap1" }, { "id": "eth1", "bridge": "br0" } ]"#;
    host.ok(&["create", &host.guest("web1", SHELL, nics)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    let pid = host.pid_of("web1", "net.sock");
    host.ip(&["link", "del", "tap1"]);
    soon(&host, "the loss is told", || {
        let why = host.ok(&["why", "web1"]);
        why.contains("the wire of eth0: the tap tap1 was removed")
            && why.contains("ip tuntap add tap1 mode tap")
    });
    // The other NIC goes on meanwhile.
    assert_eq!(host.pid_of("web1", "net.sock"), pid);
    make();
    host.until("another process serves it", || ![None, pid].contains(&host.pid_of("web1", "net.sock")));
    host.until("all is well", || host.ok(&["why", "web1"]).contains("nothing is amiss"));
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_macvtap_comes_back_with_the_interface_that_it_is_on() {
    let host = Host::with_service(true);
    let make = || {
        host.ip(&["link", "add", "near", "type", "veth", "peer", "name", "far"]);
        host.ip(&["addr", "add", "10.1.0.1/24", "dev", "far"]);
        host.ip(&["link", "set", "far", "up"]);
        host.ip(&["link", "set", "near", "up"]);
    };
    make();
    let nic = r#", "nets": [ { "id": "eth0", "macvtap": "near" } ]"#;
    host.ok(&["create", &host.guest("web1", SHELL, nic)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    host.ip(&["link", "del", "near"]);
    soon(&host, "the loss is told", || {
        let why = host.ok(&["why", "web1"]);
        why.contains("the wire of eth0: the tap vif1.0 was removed")
            && why.contains("\"near\" does not exist")
    });
    make();
    host.until("all is well", || host.ok(&["why", "web1"]).contains("nothing is amiss"));
    host.until("the macvtap is there", || host.ip(&["-o", "link", "show"]).contains("vif1.0@near"));
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    host.ok(&["destroy", "web1"]);
    assert!(!host.ip(&["-o", "link", "show"]).contains("vif1.0"));
}

#[test]
fn what_an_operator_changes_of_a_nic_outlives_its_backend() {
    let host = Host::with_service(true);
    host.ip(&["addr", "add", "10.1.0.1/24", "dev", "br0"]);
    let nic = r#", "nets": [ { "id": "eth0", "bridge": "br0", "limits": { "receive_packets": 900 } } ]"#;
    host.ok(&["create", &host.guest("web1", SHELL, nic)]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: hello");
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    let nics = || -> serde_json::Value {
        serde_json::from_str(&host.ok(&["network-list", "web1", "--json"])).unwrap()
    };
    let list = nics();
    let nic = &list[0];
    assert_eq!(
        (&nic["link"], &nic["state"], &nic["kind"]),
        (&"up".into(), &"serving".into(), &"bridge".into())
    );
    assert!(nic["counters"]["transmit"]["packets"].as_u64().unwrap() >= 20, "{nic}");
    assert_eq!(nic["limits"][0]["rate"], "900");

    assert!(host.refused(&["network-set", "web1", "eth0"]).contains("--link down"));
    assert!(host.refused(&["network-set", "web1", "eth9", "--announce"]).contains("the domain has eth0"));
    let refused = host.refused(&["network-set", "web1", "eth0", "--announce"]);
    assert!(refused.contains("does not announce itself"), "the mini guest cannot: {refused}");
    host.ok(&[
        "network-set",
        "web1",
        "eth0",
        "--link",
        "down",
        "--receive-packets",
        "none",
        "--transmit-bits",
        "100M",
    ]);
    let backend = host.pid_of("web1", "net.sock").unwrap();
    common::signal(backend, nix::sys::signal::SIGKILL);
    host.until("another domus-net is there", || host.domain("web1").unwrap()["restarts"] == 1);
    let list = nics();
    let nic = &list[0];
    assert_eq!((&nic["link"], &nic["counters"]["link_up"]), (&"down".into(), &false.into()));
    assert_eq!(
        (&nic["limits"][0]["name"], &nic["limits"][0]["rate"]),
        (&"transmit_bits".into(), &"100000000".into())
    );
    let table = host.ok(&["network-list", "web1"]);
    assert!(table.contains("bridge br0") && table.contains("limit transmit_bits 100000000"), "{table}");
    host.ok(&["network-set", "web1", "eth0", "--link", "up"]);
    console.send("net-ping");
    console.wait("mini: ok net-ping");
    host.ok(&["destroy", "web1"]);
}

/// The process of a switch.
fn switch_pid(host: &Host, name: &str) -> u32 {
    let text = std::fs::read_to_string(host.run_dir().join("switches").join(name).join("switch.json"));
    let record: serde_json::Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
    record["pid"].as_u64().unwrap_or(0) as u32
}

#[test]
fn domains_on_a_switch_reach_each_other_also_when_it_dies_and_it_ends_with_the_last_of_them() {
    let host = Host::with_service(true);
    host.touch_run_dir();
    let before = host.traces();
    let nic = r#", "nets": [ { "id": "eth0", "switch": "fast" } ]"#;
    let answers = "console=ttyS0 mini.test=net-answer mini.ip=10.1.0.1 mini.ms=60000 mini.end=poweroff";
    let one = host.guest("one", answers, nic);
    let told = host.ok(&["check", &one]);
    assert!(told.contains("all memory of this domain"), "{told}");
    host.ok(&["create", &one]);
    let mut answering = Console::attach(&host, "one");
    answering.wait("net-answer begins");
    let asks =
        "console=ttyS0 mini.test=shell mini.ip=10.1.0.2 mini.peer=10.1.0.1 mini.rounds=100 mini.end=poweroff";
    host.ok(&["create", &host.guest("two", asks, nic)]);
    let mut asking = Console::attach(&host, "two");
    asking.wait("mini: hello");
    asking.send("net-ping");
    asking.wait("mini: ok net-ping");

    // Killed while frames go both ways. Two guests that poll leave the switch little of two CPUs: that takes seconds.
    let pid = switch_pid(&host, "fast");
    asking.send("net-ping");
    std::thread::sleep(std::time::Duration::from_millis(300));
    common::signal(pid, nix::sys::signal::SIGKILL);
    for domain in ["one", "two"] {
        host.until("its NIC is plugged in again", || host.domain(domain).unwrap()["restarts"] == 1);
    }
    asking.wait("mini: ok net-ping");
    assert_ne!(switch_pid(&host, "fast"), pid);
    assert!(host.ok(&["network-list", "two"]).contains("switch fast"));
    assert!(host.domain("one").unwrap()["state"] == "running");

    host.ok(&["destroy", "two"]);
    assert_ne!(switch_pid(&host, "fast"), 0, "one is still there");
    host.ok(&["destroy", "one"]);
    assert!(!host.run_dir().join("switches/fast").exists());
    assert_eq!(host.traces(), before);
    let refused = host.refused(&["run", "--no-console", &one]);
    assert!(refused.contains("nets[0].switch: \"fast\" needs the dom0 service"), "{refused}");
}

#[test]
fn a_user_without_privileges_runs_a_guest_with_a_network() {
    let host = Host::new(true);
    outside(&host);
    let folder = host.path("bin");
    std::fs::create_dir(&folder).unwrap();
    for program in ["domus", "domu-runner", "domus-net", "domus-console"] {
        std::fs::copy(common::programs().join(program), folder.join(program)).unwrap();
    }
    let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(host.path("."), open).unwrap();
    let dhcp = DHCP.replace("mini.test=shell", "mini.test=net-dhcp");
    let file = host.guest("web1", &dhcp, r#", "nets": [ { "id": "eth0" } ]"#);
    // A member of the group that may use KVM, whoever that is here.
    let kvm = host.path("kvm").display().to_string();
    let made = Command::new("mknod").args(["-m", "666", &kvm, "c", "10", "232"]).status();
    assert!(made.unwrap().success());
    let run = host.path("own");
    std::fs::create_dir(&run).unwrap();
    nix::unistd::chown(&run, Some(65533.into()), Some(65533.into())).unwrap();
    let script = format!(
        "mount --bind {kvm} /dev/kvm && exec setpriv --reuid 65533 --regid 65533 --clear-groups \
         {} --run-dir {}/run run {}",
        folder.join("domus").display(),
        run.display(),
        host.path(&file).display(),
    );
    let console = host.path("own/run/domains/web1/console.sock");
    let child = Command::new("unshare")
        .args(["-m", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/bin:/usr/sbin:/bin:/sbin")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let out = child.unwrap().wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success() && said.contains("mini: ok net-dhcp"), "{said}");
    assert!(!console.exists() && passts().is_empty(), "{said}");
}
