//! Networks that dom0 manages, with guests and with other hosts' programs in network namespaces of their own.

#![allow(clippy::unwrap_used, reason = "only tests")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Console, Host, signal};
use nix::sys::signal::Signal;

/// A guest that does what it is told.
const SHELL: &str = "console=ttyS0 mini.test=shell mini.end=poweroff";

/// A machine beside the host: a network namespace that lives as long as this.
struct Beside(Child);

impl Beside {
    /// Makes it, with the end `eth0` of a cable whose other end the host calls `near`.
    fn new(host: &Host, near: &str) -> Self {
        let child =
            Command::new("unshare").args(["-n", "sleep", "1000"]).stdin(Stdio::null()).spawn().unwrap();
        let beside = Self(child);
        let pid = beside.0.id().to_string();
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        host.until("it is in its namespace", || {
            fs::read_link(format!("/proc/{pid}/ns/net")).is_ok_and(|there| there != own)
        });
        host.ip(&["link", "add", near, "type", "veth", "peer", "name", "eth0", "netns", &pid]);
        host.ip(&["link", "set", near, "up"]);
        beside.ok(&["ip", "link", "set", "lo", "up"]);
        beside.ok(&["ip", "link", "set", "eth0", "up"]);
        beside
    }

    fn run(&self, command: &[&str]) -> Output {
        let pid = self.0.id().to_string();
        Command::new("nsenter").args(["-t", &pid, "-n"]).args(command).stdin(Stdio::null()).output().unwrap()
    }

    #[track_caller]
    fn ok(&self, command: &[&str]) -> String {
        let out = self.run(command);
        assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    fn reaches(&self, address: &str) -> bool {
        self.run(&["ping", "-c", "1", "-W", "1", address]).status.success()
    }

    /// Asks for an address and takes it; the address.
    #[track_caller]
    fn lease(&self, host: &Host) -> String {
        let script = host.path("lease.sh");
        fs::write(
            &script,
            "#!/bin/sh\n[ \"$1\" = bound ] || exit 0\nip addr flush dev $interface scope global\n\
             ip addr add $ip/$mask dev $interface\n[ -z \"$router\" ] || ip route add default via $router\necho got $ip\n",
        )
        .unwrap();
        fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
        let script = script.display().to_string();
        let said = self
            .ok(&["busybox", "udhcpc", "-i", "eth0", "-n", "-q", "-f", "-t", "20", "-T", "1", "-s", &script]);
        said.lines().find_map(|line| line.strip_prefix("got ")).unwrap_or_default().into()
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn define(host: &Host, name: &str, more: &str) {
    host.write(&format!("{name}.net.json"), &format!(r#"{{ "name": "{name}", {more} }}"#));
    host.ok(&["network-define", &format!("{name}.net.json")]);
}

/// What networks leave in the host's kernel and among its processes.
fn traces(host: &Host) -> (String, String, usize) {
    let tables = Command::new("nft").args(["list", "tables"]).output().unwrap();
    let run = host.run_dir().join("networks").display().to_string();
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let lines = processes.filter_map(|process| fs::read(process.path().join("cmdline")).ok());
    let count = lines.filter(|line| String::from_utf8_lossy(line).contains(&run)).count();
    (host.traces().links, String::from_utf8(tables.stdout).unwrap(), count)
}

fn dnsmasq(host: &Host, network: &str) -> u32 {
    let text = fs::read_to_string(host.run_dir().join("networks").join(network).join("dnsmasq.json"));
    let record: serde_json::Value = serde_json::from_str(&text.unwrap_or_default()).unwrap_or_default();
    record["pid"].as_u64().unwrap_or(0) as u32
}

/// The network as `network-list --json` shows it.
fn shown(host: &Host, name: &str) -> serde_json::Value {
    let list: Vec<serde_json::Value> = serde_json::from_str(&host.ok(&["network-list", "--json"])).unwrap();
    list.into_iter().find(|network| network["name"] == name).unwrap()
}

/// The table of a network as nft shows it, without the numbers that the kernel gives.
fn table(name: &str) -> String {
    let shown =
        Command::new("nft").args(["list", "table", "inet", &format!("domus-{name}")]).output().unwrap();
    String::from_utf8(shown.stdout).unwrap()
}

fn nft(text: &str) {
    assert!(Command::new("nft").arg(text).status().unwrap().success(), "nft {text}");
}

/// Waits until the condition holds, which must be soon: a second, and what a busy machine adds.
#[track_caller]
fn soon(host: &Host, what: &str, condition: impl FnMut() -> bool) {
    let began = Instant::now();
    host.until(what, condition);
    assert!(began.elapsed() < Duration::from_secs(2), "{what} took {:?}", began.elapsed());
}

/// What `domus events` has said, read to this kind of event.
fn events_up_to(host: &Host, kind: &str, detail: &str) {
    let mut client = host.command(&["events", "--since-start"]).stdout(Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(client.stdout.take().unwrap()));
    let found = lines.map_while(Result::ok).any(|line| line.contains(kind) && line.contains(detail));
    let _ = client.kill();
    let _ = client.wait();
    assert!(found, "{kind} {detail}");
}

#[test]
fn what_somebody_takes_from_a_network_is_put_back_at_once_and_told() {
    let mut host = Host::with_service(true);
    let dom0 = host.service().id();
    define(&host, "lan", r#""addresses": ["10.5.0.1/24", "fd00:5::1/64"]"#);
    define(&host, "other", r#""addresses": ["10.6.0.1/24"], "forward": "isolated""#);
    for network in ["lan", "other"] {
        host.ok(&["network-start", network]);
    }
    host.ok(&["create", &host.guest("web1", SHELL, r#", "nets": [ { "id": "eth0", "network": "lan" } ]"#)]);
    let is_well = || shown(&host, "lan")["state"] == "running";
    let (lan, other) = (table("lan"), table("other"));

    nft("flush ruleset");
    soon(&host, "the packet filters are back", || table("lan") == lan && table("other") == other);
    nft("flush chain inet domus-lan forward");
    soon(&host, "the rules are back", || table("lan") == lan);
    nft("add rule inet domus-lan input accept");
    soon(&host, "a rule is gone", || table("lan") == lan);
    events_up_to(&host, "network-fault", "lan: its packet filter was changed");
    events_up_to(&host, "network-mended", "lan: its packet filter was removed: it is put back");
    let forwards = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap() == "1\n";
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").unwrap();
    soon(&host, "packets are forwarded again", forwards);

    let link = || host.ip(&["-o", "addr", "show", "lan"]) + &host.ip(&["-o", "link", "show", "lan"]);
    let before = host.ip(&["-o", "link", "show", "lan"]);
    let mac = before.split(" link/ether ").nth(1).unwrap().split(' ').next().unwrap().to_owned();
    for (change, wanted) in [
        (&["link", "set", "lan", "mtu", "1400"][..], "mtu 1500"),
        (&["link", "set", "lan", "address", "02:00:00:00:00:09"], mac.as_str()),
        (&["addr", "del", "10.5.0.1/24", "dev", "lan"], "inet 10.5.0.1/24"),
        (&["link", "set", "lan", "down"], "inet6 fd00:5::1/64"),
    ] {
        host.ip(change);
        soon(&host, wanted, || link().contains(wanted) && is_well());
    }
    // The bridge and what is bound to it, and the taps on it.
    let old = dnsmasq(&host, "lan");
    host.ip(&["link", "del", "lan"]);
    soon(&host, "the bridge is back", || {
        host.ip(&["-o", "addr", "show"]).contains(" lan    inet 10.5.0.1/24") && is_well()
    });
    host.until("another dnsmasq is there", || ![0, old].contains(&dnsmasq(&host, "lan")));
    let guest = Beside::new(&host, "g1");
    host.ip(&["link", "set", "g1", "master", "lan"]);
    assert!(guest.lease(&host).starts_with("10.5.0."));

    // What cannot be put back is told, and tried again.
    signal(dom0, Signal::SIGSTOP);
    host.ip(&["link", "del", "lan"]);
    host.ip(&["link", "add", "lan", "type", "veth", "peer", "name", "end"]);
    signal(dom0, Signal::SIGCONT);
    soon(&host, "the fault is seen", || shown(&host, "lan")["state"] == "faulty");
    host.until("an attempt has failed", || {
        shown(&host, "lan")["fault"].as_str().is_some_and(|fault| fault.contains("an interface lan exists"))
    });
    let why = host.ok(&["why", "web1"]);
    assert!(
        why.contains("network lan: the bridge lan was removed") && why.contains("network-start lan"),
        "{why}"
    );
    assert!(host.ok(&["network-list"]).contains("faulty"));
    assert!(host.refused(&["network-start", "lan"]).contains("an interface lan exists"));
    host.ip(&["link", "del", "lan"]);
    host.ok(&["network-start", "lan"]);
    soon(&host, "all is well", is_well);
    // Another dnsmasq follows, for the other bridge.
    host.until("all is well", || !host.ok(&["why", "web1"]).contains("network lan"));
    host.ok(&["destroy", "web1"]);
    drop(guest);
}

#[test]
fn a_guest_has_the_address_that_its_network_lends_it_and_can_be_nobody_else() {
    let mut host = Host::with_service(true);
    define(
        &host,
        "lan",
        r#""addresses": ["10.1.0.1/24"], "host_access": true, "domain": "lan.example",
           "hosts": [ { "mac": "52:54:00:00:00:09", "ip": "10.1.0.9", "name": "db" } ]"#,
    );
    host.ok(&["network-start", "lan"]);
    // Sends back what the guests send, also where the address comes later.
    let echo = std::net::UdpSocket::bind("0.0.0.0:7").unwrap();
    std::thread::spawn(move || {
        let mut datagram = [0; 2048];
        while let Ok((len, from)) = echo.recv_from(&mut datagram) {
            let _ = echo.send_to(&datagram[..len], from);
        }
    });
    let guest = |name: &str, mac: &str, claims: &str| {
        let line = format!(
            "console=ttyS0 mini.test=shell mini.ip={claims} mini.peer=10.1.0.1 mini.rounds=3 mini.end=poweroff"
        );
        let nics = format!(r#", "nets": [ {{ "id": "eth0", "network": "lan", "mac": "{mac}" }} ]"#);
        host.ok(&["create", &host.guest(name, &line, &nics)]);
        let mut console = Console::attach(&host, name);
        console.wait("mini: hello");
        console
    };
    let leased = |console: &mut Console| {
        console.send("net-dhcp");
        let line = console.wait("net-dhcp address=");
        console.wait("mini: ok net-dhcp");
        line.rsplit('=').next().unwrap().to_owned()
    };
    let mut db = guest("db1", "52:54:00:00:00:09", "10.1.0.9");
    assert_eq!(leased(&mut db), "10.1.0.9");
    db.send("net-ping");
    db.wait("mini: ok net-ping");
    // One that is given an address before it asks, and claims the other's.
    let mut thief = guest("thief", "52:54:00:00:00:08", "10.1.0.9");
    let own = leased(&mut thief);
    let nics = || fs::read_to_string(host.run_dir().join("networks/lan/nics")).unwrap();
    assert_eq!(nics(), format!("52:54:00:00:00:08,{own},thief\n"));
    assert!(own.starts_with("10.1.0.") && own != "10.1.0.9", "{own}");
    let lies = || {
        let shown: serde_json::Value =
            serde_json::from_str(&host.ok(&["network-list", "thief", "--json"])).unwrap();
        let drops = shown[0]["counters"]["transmit"]["drops"].as_array().unwrap().clone();
        drops.iter().any(|drop| drop["reason"] == "arp" || drop["reason"] == "source_address")
    };
    assert!(!lies());
    thief.send("net-ping");
    thief.wait("mini: fail net-ping");
    assert!(lies());
    // Another process, and another dom0, know it too; and the next machine of the domain has it again.
    let old = host.pid_of("thief", "net.sock");
    signal(old.unwrap(), Signal::SIGKILL);
    host.until("another process is there", || ![None, old].contains(&host.pid_of("thief", "net.sock")));
    assert_eq!(leased(&mut thief), own);
    // So does a network that is stopped and started again under it.
    host.ok(&["network-destroy", "lan"]);
    host.ok(&["network-start", "lan"]);
    host.until("their taps are back", || {
        let links = host.ip(&["-o", "link", "show"]);
        links.lines().filter(|line| line.contains(": vif") && line.contains(" master lan ")).count() == 2
    });
    host.until("their addresses are known", || nics() == format!("52:54:00:00:00:08,{own},thief\n"));
    host.until("all is well", || !host.ok(&["why", "thief"]).contains("wire"));
    assert_eq!(leased(&mut thief), own);
    assert_eq!(leased(&mut db), "10.1.0.9");
    drop((db, thief));
    host.kill_service();
    host.start_service();
    let nics = fs::read_to_string(host.run_dir().join("networks/lan/nics")).unwrap();
    assert_eq!(nics, format!("52:54:00:00:00:08,{own},thief\n"));
    host.ok(&["destroy", "thief"]);
    assert_eq!(fs::read_to_string(host.run_dir().join("networks/lan/nics")).unwrap(), "");
    host.ok(&["destroy", "db1"]);
    host.ok(&["network-stop", "lan"]);
}

#[test]
fn what_is_taken_away_again_and_again_is_put_back_ever_more_slowly_and_told_a_few_times() {
    let host = Host::with_service(false);
    define(&host, "lan", r#""addresses": ["10.5.0.1/24"]"#);
    host.ok(&["network-start", "lan"]);
    let lan = table("lan");
    // How often there is another table.
    let mut made = 0;
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(4) {
        made += u32::from(!table("lan").is_empty());
        nft("flush ruleset");
    }
    assert!((3..40).contains(&made), "made {made} times");
    host.until("it is back", || table("lan") == lan);
    host.until("all is well", || shown(&host, "lan")["state"] == "running");
    nft("flush ruleset");
    host.until("it is back once more", || table("lan") == lan);
    let mut client = host.command(&["events", "--since-start"]).stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    client.kill().unwrap();
    let said = String::from_utf8(client.wait_with_output().unwrap().stdout).unwrap();
    let faults = said.lines().filter(|line| line.contains("network-fault")).count();
    assert!((1..=6).contains(&faults), "{said}");
}

#[test]
fn a_dnsmasq_that_dies_again_and_again_is_a_fault_of_its_network_until_one_stays() {
    let host = Host::with_service(true);
    define(&host, "lan", r#""addresses": ["10.5.0.1/24"]"#);
    host.ok(&["network-start", "lan"]);
    host.ok(&["create", &host.guest("web1", SHELL, r#", "nets": [ { "id": "eth0", "network": "lan" } ]"#)]);
    let mut last = 0;
    for _ in 0..9 {
        host.until("another dnsmasq", || ![0, last].contains(&dnsmasq(&host, "lan")));
        last = dnsmasq(&host, "lan");
        signal(last, Signal::SIGKILL);
    }
    let fault = shown(&host, "lan");
    assert_eq!(fault["state"], "faulty");
    assert!(fault["fault"].as_str().unwrap().contains("dnsmasq was killed by SIGKILL"), "{fault}");
    let why = host.ok(&["why", "web1"]);
    assert!(why.contains("network lan: dnsmasq was killed by SIGKILL"), "{why}");
    host.until("one stays", || shown(&host, "lan")["state"] == "running");
    events_up_to(&host, "network-mended", "lan: dnsmasq was killed by SIGKILL: another one serves");
    assert!(host.ok(&["why", "web1"]).contains("nothing is amiss"));
    host.ok(&["destroy", "web1"]);
}

/// A line of a process's status.
fn status(pid: u32, key: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(&format!("{key}:")));
    line.unwrap().split_whitespace().next().unwrap().to_owned()
}

#[test]
fn what_serves_a_network_has_a_user_of_its_own_three_capabilities_and_no_protection_of_dom0s() {
    let mut host = Host::with_service(true);
    let dom0 = host.service().id();
    // As its unit has it, where the test may do that.
    let _ = fs::write(format!("/proc/{dom0}/oom_score_adj"), "-900");
    let score = |pid: u32| -> i32 {
        fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap().trim().parse().unwrap()
    };
    for (name, address) in [("lan", "10.5.0.1/24"), ("other", "10.6.0.1/24")] {
        define(&host, name, &format!(r#""addresses": ["{address}"]"#));
        host.ok(&["network-start", name]);
    }
    // passt wants a way out.
    let _outside = Beside::new(&host, "wan");
    host.ip(&["addr", "add", "192.0.2.1/24", "dev", "wan"]);
    host.ip(&["route", "add", "default", "via", "192.0.2.2"]);
    let nics = r#", "nets": [ { "id": "eth0", "user": true } ]"#;
    host.ok(&["create", &host.guest("web1", SHELL, nics)]);
    let processes: Vec<_> = ["runner", "net", "console"]
        .into_iter()
        .map(|role| host.pid_of("web1", &format!("{role}.sock")).unwrap())
        .collect();
    let [lan, other] = ["lan", "other"].map(|name| dnsmasq(&host, name));
    for pid in processes.iter().chain([&lan, &other]) {
        assert_eq!(score(*pid), score(dom0).max(0));
    }
    for pid in [lan, other] {
        // CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_NET_RAW.
        for set in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(u64::from_str_radix(&status(pid, set), 16).unwrap(), 0x3400, "{set}");
        }
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        assert!(status(pid, "Uid").parse::<u32>().unwrap() > 1000);
    }
    assert_ne!(status(lan, "Uid"), status(other, "Uid"));
    let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
    let passt = fs::read_dir("/proc").unwrap().flatten().find_map(|process| {
        let here = fs::read_link(process.path().join("ns/net")).is_ok_and(|there| there == own);
        let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
        process.file_name().to_str()?.parse::<u32>().ok().filter(|_| here && name.starts_with("passt"))
    });
    let passt = passt.unwrap();
    assert_eq!(status(passt, "Uid"), status(processes[1], "Uid"), "the domain's user");
    assert_eq!(score(passt), score(dom0).max(0));
    host.ok(&["destroy", "web1"]);
}

#[test]
fn a_packet_filter_that_does_not_load_is_given_up_in_time_and_holds_no_other_network() {
    use nix::mount::{MsFlags, mount};
    // An nft that hangs when it reads of the network "slow".
    let mut host = Host::new(false);
    let script = host.path("nft");
    let text = "#!/bin/sh\ntext=$(cat)\ncase $text in *domus-slow*) exec sleep 1000;; esac\n\
                printf '%s' \"$text\" | /usr/local/sbin/nft.real -f -\n";
    fs::write(&script, text).unwrap();
    fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    // For this thread and the processes it starts.
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    mount(Some("none"), "/usr/local/sbin", Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
    let real =
        ["/usr/sbin/nft", "/usr/bin/nft"].into_iter().find(|nft| std::path::Path::new(nft).exists()).unwrap();
    fs::copy(real, "/usr/local/sbin/nft.real").unwrap();
    mount(Some(&script), real, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
    host.start_service();
    define(&host, "slow", r#""addresses": ["10.5.0.1/24"]"#);
    define(&host, "lan", r#""addresses": ["10.6.0.1/24"]"#);
    let began = Instant::now();
    let mut slow = host.command(&["network-start", "slow"]).stderr(Stdio::piped()).spawn().unwrap();
    host.until("its start has begun", || host.ip(&["-o", "link", "show"]).contains(" slow:"));
    host.ok(&["network-start", "lan"]);
    assert_eq!(shown(&host, "lan")["state"], "running");
    assert!(began.elapsed() < Duration::from_secs(5) && slow.try_wait().unwrap().is_none());
    let said = slow.wait_with_output().unwrap();
    let said = String::from_utf8(said.stderr).unwrap();
    assert!(said.contains("did not end within 10s"), "{said}");
    host.ok(&["network-stop", "lan"]);
}

#[test]
fn a_network_lends_addresses_lets_guests_out_and_keeps_them_apart() {
    let host = Host::with_service(false);
    let outside = Beside::new(&host, "wan");
    host.ip(&["addr", "add", "192.0.2.1/24", "dev", "wan"]);
    outside.ok(&["ip", "addr", "add", "192.0.2.2/24", "dev", "eth0"]);
    let before = traces(&host);

    define(&host, "lan", r#""addresses": ["10.5.0.1/24", "fd00:5::1/64"], "domain": "lan.example""#);
    define(&host, "other", r#""addresses": ["10.6.0.1/24"], "bridge": "br-other""#);
    define(&host, "closed", r#""addresses": ["10.7.0.1/24"], "forward": "isolated""#);
    for network in ["lan", "other", "closed"] {
        host.ok(&["network-start", network]);
    }
    host.ok(&["network-start", "lan"]);
    let table = host.ok(&["network-list"]);
    assert!(
        table.contains("br-other") && table.contains("isolated") && !table.contains("stopped"),
        "{table}"
    );
    assert!(host.refused(&["network-undefine", "lan"]).contains("runs: stop it first"));

    let guests: Vec<_> = [("g1", "lan"), ("g2", "br-other"), ("g3", "closed"), ("g4", "lan")]
        .into_iter()
        .map(|(near, bridge)| {
            let guest = Beside::new(&host, near);
            host.ip(&["link", "set", near, "master", bridge]);
            let address = guest.lease(&host);
            (guest, address)
        })
        .collect();
    let [(one, first), (other, far), (closed, _), (beside, near)] = &guests[..] else { panic!() };
    assert!(first.starts_with("10.5.0.") && far.starts_with("10.6.0."), "{first} {far}");
    assert!(host.ok(&["network-leases", "lan"]).contains(first.as_str()));

    assert!(one.reaches("192.0.2.2"), "through NAT, since outside knows no way back");
    assert!(one.reaches("10.5.0.1") && one.reaches(near) && beside.reaches(first));
    assert!(!one.reaches(far) && !other.reaches(first), "another network's guest");
    outside.ok(&["ip", "route", "add", "10.5.0.0/16", "via", "192.0.2.1"]);
    assert!(!outside.reaches(first), "from outside");
    assert!(!closed.reaches("192.0.2.2") && closed.reaches("10.7.0.1"));
    // What listens on the host is not the guests' to reach, but for names.
    let listener = std::net::TcpListener::bind("10.5.0.1:8080").unwrap();
    let connects = ["busybox", "nc", "-w", "1", "10.5.0.1", "8080"];
    assert!(!one.run(&connects).status.success());
    drop(listener);
    let asked = one.run(&["busybox", "nslookup", "-type=a", "nobody.lan.example", "10.5.0.1"]);
    let said = String::from_utf8_lossy(&asked.stdout).into_owned() + &String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("NXDOMAIN"), "{said}");
    host.until("the guest has an IPv6 address of the network", || {
        one.ok(&["ip", "-6", "addr", "show", "dev", "eth0"]).contains("fd00:5:")
    });

    let pid = dnsmasq(&host, "lan");
    signal(pid, Signal::SIGKILL);
    host.until("dnsmasq is back", || ![0, pid].contains(&dnsmasq(&host, "lan")));
    assert_eq!(&one.lease(&host), first, "the lease outlives the process");

    assert!(host.refused(&["network-stop", "lan"]).contains("g1"));
    drop(guests);
    host.until("the guests are gone", || {
        let links = host.traces().links;
        ["g1", "g2", "g3", "g4"].iter().all(|guest| !links.contains(guest))
    });
    for network in ["lan", "other"] {
        host.ok(&["network-stop", network]);
        host.ok(&["network-undefine", network]);
    }
    host.ok(&["network-destroy", "closed"]);
    assert!(host.refused(&["network-stop", "closed"]).contains("does not run"));
    assert!(host.refused(&["network-start", "lan"]).contains("network-define"));
    assert_eq!(traces(&host), before);
}

#[test]
fn a_network_outlives_a_dom0_that_is_killed_and_not_one_that_is_stopped() {
    let mut host = Host::with_service(false);
    let before = traces(&host);
    define(&host, "lan", r#""addresses": ["10.5.0.1/24"]"#);
    define(&host, "auto", r#""addresses": ["10.6.0.1/24"], "autostart": true"#);
    host.ok(&["network-start", "lan"]);
    host.kill_service();
    let old = dnsmasq(&host, "lan");
    host.start_service();
    let list: Vec<serde_json::Value> = serde_json::from_str(&host.ok(&["network-list", "--json"])).unwrap();
    assert!(list.iter().all(|network| network["state"] == "running"), "{list:?}");
    // What serves its guests goes on, too, and is watched by this dom0: another one follows it.
    assert_eq!(dnsmasq(&host, "lan"), old);
    common::signal(old, nix::sys::signal::Signal::SIGKILL);
    host.until("another dnsmasq follows", || dnsmasq(&host, "lan") != old);
    host.stop_service();
    assert_eq!(traces(&host), before);
}

#[test]
fn a_start_that_fails_leaves_nothing_and_says_why() {
    let host = Host::with_service(false);
    let before = traces(&host);
    // Somebody else's bridge, and somebody else's port 53.
    define(&host, "br0", r#""addresses": ["10.5.0.1/24"]"#);
    assert!(host.refused(&["network-start", "br0"]).contains("interface br0 exists"));
    define(&host, "one", r#""addresses": ["10.6.0.1/24"]"#);
    define(&host, "half", r#""addresses": ["10.6.0.129/25"]"#);
    host.ok(&["network-start", "one"]);
    assert!(host.refused(&["network-start", "half"]).contains("has addresses of \"one\""));
    host.ok(&["network-stop", "one"]);
    let bad = host.path("bad.json");
    fs::write(&bad, r#"{ "name": "bad", "addresses": ["10.5.0.0/24"] }"#).unwrap();
    let refused = host.refused(&["network-define", &bad.display().to_string()]);
    assert!(refused.contains("addresses[0]: \"10.5.0.0/24\""), "{refused}");
    assert!(host.refused(&["network-leases", "nowhere"]).contains("network-list"));
    assert!(host.refused(&["network-start", "a/b"]).contains("no network name"));
    assert_eq!(traces(&host), before);
}

#[test]
fn a_guest_is_on_a_network_by_name_which_is_started_for_it_if_that_is_allowed() {
    let host = Host::with_service(true);
    define(&host, "lan", r#""addresses": ["10.1.0.1/24"]"#);
    let ping = "console=ttyS0 mini.test=net-ping mini.ip=10.1.0.2 mini.peer=10.1.0.1 mini.rounds=9 mini.end=poweroff";
    let nets = r#", "nets": [ { "id": "eth0", "network": "lan", "addresses": [ "10.1.0.2" ] } ]"#;
    let file = host.guest("web1", ping, nets);
    let refused = host.refused(&["create", &file]);
    assert!(refused.contains("nets[0].network") && refused.contains("domus network-start lan"), "{refused}");
    define(&host, "lan", r#""addresses": ["10.1.0.1/24"], "autostart": true"#);
    host.ok(&["create", &file]);
    let mut console = Console::attach(&host, "web1");
    console.wait("mini: ok net-ping");
    host.until("the guest switches itself off", || host.domain("web1").is_none());
}
