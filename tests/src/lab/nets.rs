//! One guest on four kinds of network: a managed one with DHCP, DNS and address translation, an isolated one, passt,
//! and a bridge with two queue pairs. Its net backend is killed under traffic, and the cable is pulled.
//!
//! ```text
//!   guest ─┬─ eth0 "lan"  (nat)      ─ bridge, dnsmasq, nftables ─┐
//!          ├─ eth1 "cell" (isolated) ─ bridge, dnsmasq            ├─ host ─ veth ─ namespace "world": iperf3, DNS
//!          ├─ eth2 user              ─ passt ─────────────────────┘
//!          └─ eth3 lab0, two queue pairs
//! ```

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::domain::{BOOT, Domain, Spec};
use super::{BRIDGE, Lab};
use crate::guest::Guest;
use crate::link::{Link, ip};
use domus_driver::process::{Running, poll_until, tied};

const PATIENCE: Duration = Duration::from_secs(120);

/// The server's address in its namespace, and the host's at the other end of the wire.
const WORLD: &str = "198.51.100.2";
const HERE: &str = "198.51.100.1";

/// A port of the host that leads to the guest.
const PORT: u16 = 8080;

/// Every kind of network at once.
pub fn networks(lab: &Lab) -> Result<()> {
    let _world = World::new()?;
    let _networks = Networks::new(lab)?;
    let spec = Spec { vcpus: 2, ..Spec::new("roamer", 4) };
    let mut config = spec.config(lab)?;
    config["nets"] = json!([
        { "id": "eth0", "network": "lan" },
        { "id": "eth1", "network": "cell" },
        { "id": "eth2", "user": { "ports": [format!("tcp:{PORT}:80")] } },
        { "id": "eth3", "bridge": BRIDGE, "queues": 2 },
    ]);
    let file = lab.folder().join("roamer.json");
    fs::write(&file, serde_json::to_string(&config)?)?;
    let domain = Domain::create_from(lab, spec, &file)?;
    let mut console = domain.console()?;
    let guest = &mut console.guest;
    guest.wait_ready(BOOT)?;

    managed(lab, guest).context("the managed network")?;
    isolated(guest).context("the isolated network")?;
    user(guest).context("the user network")?;
    queues_and_cable(lab, guest).context("queues and cable")?;
    killed(lab, guest).context("a net backend that is killed")?;
    leases_go_on(lab, guest).context("a dnsmasq that is killed")?;
    counters(lab)?;

    let refused = lab.domus_output(&["network-stop", "lan"])?;
    ensure!(!refused.status.success(), "a network with a guest on it was stopped");
    guest.start("poweroff -f")?;
    domain.wait_gone()
}

/// A lease, the way out with translated addresses, and names.
fn managed(lab: &Lab, guest: &mut Guest) -> Result<()> {
    lease(guest, "eth0")?;
    let address = guest.run("ip -4 addr show dev eth0", PATIENCE)?;
    ensure!(address.contains("inet 10.78.1."), "no address of the network's: {address}");
    guest.run(&format!("ping -c 2 -W 5 {WORLD} >/dev/null"), PATIENCE)?;
    guest.run(&format!("iperf3 -c {WORLD} -n 2M -p 5201 >/dev/null"), PATIENCE)?;
    name(guest, "eth0")?;
    let mac = guest.run("cat /sys/class/net/eth0/address", PATIENCE)?;
    let leases = lab.domus(&["network-leases", "lan", "--json"])?;
    ensure!(leases.contains(mac.trim()), "{} has no lease in {leases}", mac.trim());
    Ok(())
}

fn isolated(guest: &mut Guest) -> Result<()> {
    lease(guest, "eth1")?;
    ensure!(
        guest.run("ip -4 addr show dev eth1", PATIENCE)?.contains("inet 10.78.2."),
        "no address of the network's"
    );
    // By hand, as a guest that wants out would.
    guest.run(&format!("ip route add {WORLD} via 10.78.2.1 dev eth1"), PATIENCE)?;
    let out = guest.run(&format!("ping -c 1 -W 3 {WORLD} >/dev/null; echo $?"), PATIENCE)?;
    guest.run(&format!("ip route del {WORLD}"), PATIENCE)?;
    ensure!(out.trim() != "0", "the guest got out of an isolated network");
    Ok(())
}

/// A lease, names, TCP out, and TCP in on a port of the host's.
fn user(guest: &mut Guest) -> Result<()> {
    lease(guest, "eth2")?;
    guest.run(&format!("ip route add {WORLD} via $(cat /tmp/gateway.eth2) dev eth2"), PATIENCE)?;
    name(guest, "eth2")?;
    guest.run(&format!("iperf3 -c {WORLD} -n 2M >/dev/null"), PATIENCE).context("TCP out")?;
    guest.run(&format!("iperf3 -c {WORLD} -R -n 2M >/dev/null"), PATIENCE).context("TCP in")?;
    guest.run(&format!("iperf3 -c {WORLD} -u -b 2M -n 256K >/dev/null"), PATIENCE).context("UDP")?;
    guest.run(&format!("ip route del {WORLD}"), PATIENCE)?;
    guest.run("(echo from-the-guest | nc -l -p 80 >/tmp/asked) >/dev/null 2>&1 & sleep 1", PATIENCE)?;
    let script = format!("sleep 2 | busybox nc -w 10 {HERE} {PORT}");
    let answer = Command::new("sh").args(["-c", &script]).output()?;
    let text = String::from_utf8_lossy(&answer.stdout).into_owned();
    ensure!(text.contains("from-the-guest"), "the port forward gave {text:?}");
    Ok(())
}

fn queues_and_cable(lab: &Lab, guest: &mut Guest) -> Result<()> {
    let queues = guest.run("ls -d /sys/class/net/eth3/queues/rx-* | wc -l", PATIENCE)?;
    ensure!(queues.trim() == "2", "{} receive queues, 2 were asked for", queues.trim());
    guest.run(
        "ip addr add 10.77.0.4/24 dev eth3; ip link set eth3 up; ping -c 2 -W 5 10.77.0.1 >/dev/null",
        PATIENCE,
    )?;
    for (state, carrier) in [("down", "0"), ("up", "1")] {
        lab.domus(&["network-set", "roamer", "eth3", "--link", state])?;
        guest
            .run(&format!("n=0; until test $(cat /sys/class/net/eth3/carrier) = {carrier} || test $n = 50; do n=$((n+1)); sleep 0.2; done; test $n -lt 50"), PATIENCE)
            .with_context(|| format!("the guest does not see the cable {state}"))?;
    }
    guest.run("ping -c 2 -W 5 10.77.0.1 >/dev/null", PATIENCE).context("after the cable is back")?;
    Ok(())
}

/// A stream of TCP lives through two deaths of the backend, and one upgrade.
fn killed(lab: &Lab, guest: &mut Guest) -> Result<()> {
    // passt gives the guest the host's own address, so the shortest way is its; and connections through it end with it.
    guest.run(&format!("ip route add {WORLD} via $(cat /tmp/gateway.eth0) dev eth0"), PATIENCE)?;
    guest.run(
        &format!("rm -f /tmp/ended; (iperf3 -c {WORLD} -t 20 -i 5 >/tmp/iperf 2>&1; echo $? >/tmp/ended) >/dev/null 2>&1 &"),
        PATIENCE,
    )?;
    let mut pid = 0;
    for round in 0..3 {
        std::thread::sleep(Duration::from_secs(4));
        pid = backend(lab, pid)?;
        if round == 1 {
            lab.domus(&["backend", "upgrade", "roamer", "eth0"])?;
        } else {
            let killed = Command::new("kill").args(["-9", &pid.to_string()]).status()?;
            ensure!(killed.success(), "cannot kill the backend");
        }
    }
    let ended = guest.run(
        "n=0; until test -e /tmp/ended || test $n = 60; do n=$((n+1)); sleep 1; done; cat /tmp/ended",
        PATIENCE,
    );
    let said = guest.run("cat /tmp/iperf", PATIENCE)?;
    if ended.as_deref().map(str::trim).ok() != Some("0") || !said.contains("receiver") {
        let state = guest.run(
            &format!("ping -c 3 -W 3 {WORLD}; ping -c 1 -W 3 10.78.1.1; ip -s link; netstat -tn; grep virtio /proc/interrupts; ip neigh"),
            PATIENCE,
        )?;
        bail!(
            "iperf3 said {said:?}; {state}; {}",
            lab.domus(&["network-list", "roamer"]).unwrap_or_default()
        );
    }
    // The other NICs had the same backend.
    guest.run("ping -c 2 -W 5 10.77.0.1 >/dev/null", PATIENCE)?;
    let queues = guest.run("ls -d /sys/class/net/eth3/queues/rx-* | wc -l", PATIENCE)?;
    ensure!(queues.trim() == "2", "the queues have gone");
    Ok(())
}

/// Another dnsmasq takes its place, and knows what the first had lent.
fn leases_go_on(lab: &Lab, guest: &mut Guest) -> Result<()> {
    let before = lab.domus(&["network-leases", "lan", "--json"])?;
    let pid = |besides: Option<u32>| {
        let output = Command::new("pgrep").args(["-f", "dnsmasq.*--interface=lan"]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().filter_map(|line| line.parse().ok()).find(|pid| Some(*pid) != besides)
    };
    let first: u32 = pid(None).context("there is no dnsmasq")?;
    Command::new("kill").args(["-9", &first.to_string()]).status()?;
    ensure!(poll_until(Duration::from_secs(20), || pid(Some(first)).is_some()), "no other dnsmasq came");
    lease(guest, "eth0")?;
    let after = lab.domus(&["network-leases", "lan", "--json"])?;
    let address = |text: &str| text.split('"').find(|word| word.starts_with("10.78.1.")).map(str::to_owned);
    ensure!(address(&before).is_some() && address(&before) == address(&after), "{before} became {after}");
    Ok(())
}

/// What has gone through is counted.
fn counters(lab: &Lab) -> Result<()> {
    let text = lab.domus(&["network-list", "roamer", "--json"])?;
    let listed: Value = serde_json::from_str(&text)?;
    let nics = listed.as_array().or_else(|| listed["nics"].as_array()).context("it is not a list")?;
    ensure!(nics.len() == 4, "{} NICs are listed", nics.len());
    // The backend was killed since, and counts from its start.
    let bytes = |value: &Value| value.to_string().matches("\"bytes\":").count();
    ensure!(nics.iter().all(|nic| bytes(nic) >= 2), "no counters in {text}");
    Ok(())
}

fn lease(guest: &mut Guest, interface: &str) -> Result<()> {
    let command = format!(
        "ip link set {interface} up; udhcpc -i {interface} -n -q -t 10 -T 3 -s /usr/share/udhcpc/default.script"
    );
    guest.run(&command, PATIENCE).map(drop).context("no lease")
}

fn name(guest: &mut Guest, interface: &str) -> Result<()> {
    let server = format!("$(sed -n 's/nameserver //p' /tmp/dns.{interface} | head -n 1)");
    // It asks for an IPv6 address too, which there is none.
    let said = guest.run(&format!("nslookup world.test {server} || true"), PATIENCE)?;
    ensure!(said.contains(WORLD), "world.test is {said}");
    Ok(())
}

/// The net backend's process, another than `besides`.
fn backend(lab: &Lab, besides: u32) -> Result<u32> {
    let mut found = 0;
    let there = || {
        let state = fs::read_to_string("/run/domus/domains/roamer/state.json").unwrap_or_default();
        let state: Value = serde_json::from_str(&state).unwrap_or_default();
        let processes = state["processes"].as_array().into_iter().flatten();
        let net = processes
            .filter(|process| process["role"] == "net")
            .filter_map(|process| process["pid"].as_u64());
        found = net.max().unwrap_or_default() as u32;
        found != 0 && found != besides
    };
    if !poll_until(Duration::from_secs(20), there) {
        bail!(
            "no other net backend came; domus why says {}",
            lab.domus(&["why", "roamer"]).unwrap_or_default()
        );
    }
    Ok(found)
}

/// The two managed networks; destroyed and forgotten when dropped.
struct Networks<'a>(&'a Lab);

impl<'a> Networks<'a> {
    fn new(lab: &'a Lab) -> Result<Self> {
        let networks = Self(lab);
        for (name, address, forward) in [("lan", "10.78.1.1/24", "nat"), ("cell", "10.78.2.1/24", "isolated")]
        {
            let file = lab.folder().join(format!("{name}.network.json"));
            let definition = json!({ "name": name, "addresses": [address], "forward": forward });
            fs::write(&file, serde_json::to_string(&definition)?)?;
            lab.domus(&["network-define", &file.display().to_string()])?;
            lab.domus(&["network-start", name])?;
        }
        Ok(networks)
    }
}

impl Drop for Networks<'_> {
    fn drop(&mut self) {
        for name in ["lan", "cell"] {
            let _ = self.0.domus_output(&["network-destroy", name]);
            let _ = self.0.domus_output(&["network-undefine", name]);
        }
    }
}

/// The world outside the host: a namespace with servers for TCP, UDP and DNS, behind a veth that is also the host's
/// default route.
struct World {
    servers: Vec<Running>,
    _wire: Link,
    _resolver: Resolver,
}

const NAMESPACE: &str = "world";

impl World {
    fn new() -> Result<Self> {
        for module in
            ["veth", "nf_tables", "nft_masq", "nft_chain_nat", "nf_conntrack", "nft_ct", "nft_reject_inet"]
        {
            // What is built in or unknown to this kernel shows later, if it was needed.
            let _ = Command::new("modprobe").args(["-q", module]).stderr(Stdio::null()).status();
        }
        ip(&format!("netns add {NAMESPACE}"))?;
        let resolver = Resolver::new()?;
        ip(&format!("link add outside type veth peer name inside netns {NAMESPACE}"))?;
        let wire = Link::existing("outside");
        let mut world = Self { servers: Vec::new(), _wire: wire, _resolver: resolver };
        ip(&format!("addr add {HERE}/24 dev outside"))?;
        ip("link set outside up")?;
        ip(&format!("-n {NAMESPACE} addr add {WORLD}/24 dev inside"))?;
        ip(&format!("-n {NAMESPACE} link set lo up"))?;
        ip(&format!("-n {NAMESPACE} link set inside up"))?;
        ip(&format!("route add default via {WORLD}"))?;
        for words in [
            "iperf3 -s".to_owned(),
            format!(
                "dnsmasq --keep-in-foreground --conf-file=/dev/null --no-resolv --no-hosts --user=root --pid-file= \
                     --address=/world.test/{WORLD} --local=/test/ --listen-address={WORLD} --bind-interfaces"
            ),
        ] {
            let mut command = tied("ip");
            command.args(["netns", "exec", NAMESPACE]).args(words.split_whitespace());
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            world.servers.push(Running::start("a server", &mut command)?);
        }
        Ok(world)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.servers.clear();
        let _ = ip(&format!("netns del {NAMESPACE}"));
    }
}

/// Whom the host asks for names: a file of the test's own over the host's, taken away when dropped.
struct Resolver {
    _file: tempfile::NamedTempFile,
}

const RESOLV: &str = "/etc/resolv.conf";

impl Resolver {
    fn new() -> Result<Self> {
        let mut file = tempfile::NamedTempFile::new()?;
        writeln!(file, "nameserver {WORLD}")?;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644))?;
        // A place to put it on, where there is none.
        fs::File::options().create(true).append(true).open(RESOLV).context("cannot open /etc/resolv.conf")?;
        let status = Command::new("mount").arg("--bind").arg(file.path()).arg(RESOLV).status()?;
        ensure!(status.success(), "cannot put a file over {RESOLV}");
        Ok(Self { _file: file })
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(RESOLV).status();
    }
}
