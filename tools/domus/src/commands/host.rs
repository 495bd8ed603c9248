//! `domus info`: the host's hardware, kernel and dom0, under xl's keys where they fit.

use std::fs;
use std::path::Path;

use clap::Args;
use domus_api::Dom0Client;
use serde::Serialize;

use crate::client::{answer, connect};
use crate::output::print;

/// Upper bound of the nodes and of the CPUs that are looked at: as many as Linux allows.
const MAX_CPUS: u32 = 8192;

/// The command line of `info`.
#[derive(Debug, Args)]
pub struct InfoArgs {
    /// Which CPUs and how much memory each of its nodes has, too
    #[arg(short, long)]
    numa: bool,
    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// The host.
#[derive(Debug, Serialize)]
struct Host {
    host: String,
    release: String,
    machine: String,
    nr_cpus: u32,
    nr_nodes: usize,
    threads_per_core: usize,
    cpu_model: String,
    cpu_mhz: Option<f64>,
    /// MiB.
    total_memory: u64,
    /// MiB that could be given to guests without swapping.
    free_memory: u64,
    /// What runs guests: kvm_intel, kvm_amd, or another module's or the kernel's own.
    kvm: Option<&'static str>,
    domus_version: String,
    dom0_pid: u32,
    run_dir: String,
    domains: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_topology: Option<Vec<Cpu>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    numa_info: Option<Vec<Node>>,
}

/// A CPU's place.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Cpu {
    cpu: u32,
    core: u32,
    socket: u32,
    node: Option<u32>,
}

/// A NUMA node.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Node {
    node: u32,
    /// MiB.
    memory: u64,
    /// MiB.
    free: u64,
    /// To each node, in order.
    distances: Vec<u32>,
    cpus: Vec<u32>,
}

/// `domus info`.
pub async fn info(dir: Option<&Path>, args: InfoArgs) -> anyhow::Result<()> {
    let InfoArgs { numa, json } = args;
    let dom0 = answer(connect(dir).await?.info().await)?;
    let sys = Path::new("/sys/devices/system");
    let name = |part: &std::ffi::OsStr| part.to_string_lossy().into_owned();
    let uname = nix::sys::utsname::uname()?;
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let of_cpu = |key: &str| {
        cpuinfo.lines().find_map(|line| {
            line.split_once(':').filter(|(is, _)| is.trim() == key).map(|(_, value)| value.trim().to_owned())
        })
    };
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let nodes = nodes(sys);
    let module = ["kvm_intel", "kvm_amd"].into_iter().find(|it| Path::new("/sys/module").join(it).exists());
    let host = Host {
        host: name(uname.nodename()),
        release: name(uname.release()),
        machine: name(uname.machine()),
        nr_cpus: dom0.cpus,
        nr_nodes: nodes.len().max(1),
        threads_per_core: list(&read(&sys.join("cpu/cpu0/topology/thread_siblings_list"))).len().max(1),
        cpu_model: of_cpu("model name").unwrap_or_default(),
        cpu_mhz: of_cpu("cpu MHz").and_then(|mhz| mhz.parse().ok()),
        total_memory: dom0.memory_mib,
        free_memory: kib(&meminfo, "MemAvailable:") >> 10,
        kvm: module.or(Path::new("/dev/kvm").exists().then_some("other")),
        domus_version: dom0.version,
        dom0_pid: dom0.pid,
        run_dir: dom0.run_dir,
        domains: dom0.domains,
        cpu_topology: numa.then(|| cpus(sys, &nodes)),
        numa_info: numa.then_some(nodes),
    };
    print(&if json { serde_json::to_string_pretty(&host)? } else { text(&host) })
}

fn text(host: &Host) -> String {
    let mhz = host.cpu_mhz.map_or("-".into(), |mhz| format!("{mhz:.3}"));
    let mut text: Vec<String> = [
        ("host", host.host.clone()),
        ("release", host.release.clone()),
        ("machine", host.machine.clone()),
        ("nr_cpus", host.nr_cpus.to_string()),
        ("nr_nodes", host.nr_nodes.to_string()),
        ("threads_per_core", host.threads_per_core.to_string()),
        ("cpu_model", host.cpu_model.clone()),
        ("cpu_mhz", mhz),
        ("total_memory", host.total_memory.to_string()),
        ("free_memory", host.free_memory.to_string()),
        ("kvm", host.kvm.unwrap_or("none: there is no /dev/kvm").into()),
        ("domus_version", host.domus_version.clone()),
        ("dom0_pid", host.dom0_pid.to_string()),
        ("run_dir", host.run_dir.clone()),
        ("domains", host.domains.to_string()),
    ]
    .into_iter()
    .map(|(key, value)| format!("{key:<22} : {value}"))
    .collect();
    if let Some(cpus) = &host.cpu_topology {
        text.push(format!(
            "cpu_topology           :\n{:<4} {:>7} {:>7} {:>7}",
            "cpu:", "core", "socket", "node"
        ));
        text.extend(cpus.iter().map(|Cpu { cpu, core, socket, node }| {
            let node = node.map_or("-".into(), |node| node.to_string());
            format!("{:<4} {core:>7} {socket:>7} {node:>7}", format!("{cpu}:"))
        }));
    }
    if let Some(nodes) = &host.numa_info {
        text.push(format!(
            "numa_info              :\n{:<5} {:>8} {:>8}  distances  cpus",
            "node:", "memsize", "memfree"
        ));
        text.extend(nodes.iter().map(|Node { node, memory, free, distances, cpus }| {
            let words = |list: &[u32]| list.iter().map(u32::to_string).collect::<Vec<_>>().join(",");
            format!(
                "{:<5} {memory:>8} {free:>8}  {:<9}  {}",
                format!("{node}:"),
                words(distances),
                words(cpus)
            )
        }));
    }
    text.join("\n")
}

/// The nodes, as `/sys/devices/system` has them.
fn nodes(sys: &Path) -> Vec<Node> {
    let there = list(&read(&sys.join("node/online")));
    let node = |node: u32| {
        let dir = sys.join(format!("node/node{node}"));
        let meminfo = read(&dir.join("meminfo"));
        Node {
            node,
            memory: kib(&meminfo, "MemTotal:") >> 10,
            free: kib(&meminfo, "MemFree:") >> 10,
            distances: read(&dir.join("distance"))
                .split_whitespace()
                .filter_map(|it| it.parse().ok())
                .collect(),
            cpus: list(&read(&dir.join("cpulist"))),
        }
    };
    there.into_iter().map(node).collect()
}

/// The CPUs that are online.
fn cpus(sys: &Path, nodes: &[Node]) -> Vec<Cpu> {
    let number = |cpu: u32, file: &str| {
        read(&sys.join(format!("cpu/cpu{cpu}/topology/{file}"))).trim().parse().unwrap_or_default()
    };
    let online = list(&read(&sys.join("cpu/online"))).into_iter();
    online
        .map(|cpu| Cpu {
            cpu,
            core: number(cpu, "core_id"),
            socket: number(cpu, "physical_package_id"),
            node: nodes.iter().find(|node| node.cpus.contains(&cpu)).map(|node| node.node),
        })
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// A number of KiB after `key`, where a line has it: `Node 0 MemTotal: 1024 kB`.
fn kib(text: &str, key: &str) -> u64 {
    let line = text.lines().find_map(|line| line.split_once(key)).map_or("", |(_, rest)| rest);
    line.split_whitespace().next().and_then(|number| number.parse().ok()).unwrap_or_default()
}

/// A list as the kernel writes them: `0-3,8`.
fn list(text: &str) -> Vec<u32> {
    let ranges = text.trim().split(',').filter_map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(first.parse::<u32>().ok()?..=last.parse::<u32>().ok()?.min(MAX_CPUS))
    });
    ranges.flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_and_cpus_of_a_host_with_two_sockets_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("node/online", "0-1\n");
        write("cpu/online", "0-2\n");
        for (node, cpus) in [(0, "0,2"), (1, "1")] {
            write(&format!("node/node{node}/cpulist"), cpus);
            write(&format!("node/node{node}/distance"), "10 21\n");
            write(
                &format!("node/node{node}/meminfo"),
                &format!("Node {node} MemTotal: 4194304 kB\nNode {node} MemFree: 1048576 kB\n"),
            );
        }
        for (cpu, core, socket) in [(0, 0, 0), (1, 0, 1), (2, 1, 0)] {
            write(&format!("cpu/cpu{cpu}/topology/core_id"), &core.to_string());
            write(&format!("cpu/cpu{cpu}/topology/physical_package_id"), &format!("{socket}\n"));
        }
        let nodes = nodes(dir.path());
        let node = |node, cpus| Node { node, memory: 4096, free: 1024, distances: vec![10, 21], cpus };
        assert_eq!(nodes, [node(0, vec![0, 2]), node(1, vec![1])]);
        let cpu = |cpu, core, socket, node| Cpu { cpu, core, socket, node: Some(node) };
        assert_eq!(cpus(dir.path(), &nodes), [cpu(0, 0, 0, 0), cpu(1, 0, 1, 1), cpu(2, 1, 0, 0)]);
    }

    #[test]
    fn what_the_kernel_does_not_say_is_nothing_and_no_list_is_endless() {
        assert!(list("").is_empty());
        assert_eq!(list("0-2,7\n"), [0, 1, 2, 7]);
        assert_eq!(list("0-4294967295").len() as u32, MAX_CPUS + 1);
        assert!(nodes(Path::new("/nowhere")).is_empty());
    }
}
