//! Networks that dom0 manages, and a running domain's NICs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use clap::{Args, ValueEnum};
use domus_api::{Dom0Client, LeaseInfo, NetworkInfo, NicCounters, NicInfo, TrafficInfo, read_config};

use crate::client::{answer, connect};
use crate::limits::NicLimits;
use crate::output::print;

/// Whether a cable is plugged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Link {
    /// It is.
    Up,
    /// It is not.
    Down,
}

/// Changes of a NIC.
#[derive(Debug, Args)]
pub struct NicSettings {
    /// Plug the cable in, or pull it; the guest is told
    #[arg(long)]
    link: Option<Link>,
    /// Have the guest announce itself to its network
    #[arg(long)]
    announce: bool,
    #[command(flatten)]
    limits: NicLimits,
}

/// The command line of `network-list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// The domain's name or ID
    domain: Option<String>,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// The command line of `network-define`.
#[derive(Debug, Args)]
pub struct DefineArgs {
    /// Its definition, a JSON file
    file: PathBuf,
}

/// The command line of the commands that take a network and nothing else.
#[derive(Debug, Args)]
pub struct NetworkArgs {
    /// The network
    network: String,
}

/// The command line of `network-leases`.
#[derive(Debug, Args)]
pub struct LeasesArgs {
    /// The network
    network: String,
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// The command line of `network-set`.
#[derive(Debug, Args)]
pub struct SetArgs {
    /// The domain's name or ID
    name: String,
    /// The NIC's id
    nic: String,
    /// What is to change
    #[command(flatten)]
    settings: NicSettings,
}

/// `domus network-define`.
pub async fn define(dir: Option<&Path>, DefineArgs { file }: DefineArgs) -> anyhow::Result<()> {
    let (text, _) = read_config(&file)?;
    let name = file.to_str().context("the path of the definition is no UTF-8: rename it")?;
    answer(connect(dir).await?.network_define(&text, name).await).map(drop)
}

/// `domus network-undefine`.
pub async fn undefine(dir: Option<&Path>, args: NetworkArgs) -> anyhow::Result<()> {
    answer(connect(dir).await?.network_undefine(&args.network).await)
}

/// `domus network-start`.
pub async fn start(dir: Option<&Path>, args: NetworkArgs) -> anyhow::Result<()> {
    answer(connect(dir).await?.network_start(&args.network).await)
}

/// `domus network-stop`, and with `anyway` `domus network-destroy`.
pub async fn stop(dir: Option<&Path>, args: NetworkArgs, anyway: bool) -> anyhow::Result<()> {
    answer(connect(dir).await?.network_stop(&args.network, anyway).await)
}

/// `domus network-list`.
pub async fn list(dir: Option<&Path>, args: ListArgs) -> anyhow::Result<()> {
    let ListArgs { domain, json } = args;
    let mut connection = connect(dir).await?;
    print(&match domain {
        None => {
            let networks = answer(connection.network_list().await)?.networks;
            match networks.as_slice() {
                [] if !json => "there are no networks: domus network-define makes one".into(),
                _ if json => serde_json::to_string_pretty(&networks)?,
                _ => networks_table(&networks),
            }
        }
        Some(domain) => {
            let nics = answer(connection.nic_list(&domain).await)?.nics;
            match nics.as_slice() {
                [] if !json => format!("{domain} has no NICs"),
                _ if json => serde_json::to_string_pretty(&nics)?,
                _ => nics_table(&nics),
            }
        }
    })
}

fn networks_table(networks: &[NetworkInfo]) -> String {
    let mut text = format!(
        "{:<15} {:<8} {:<9} {:<9} {:<15} Addresses",
        "Name", "State", "Autostart", "Forward", "Bridge"
    );
    for NetworkInfo { name, bridge, addresses, forward, autostart, state, fault, .. } in networks {
        let autostart = if *autostart { "yes" } else { "no" };
        text += &format!(
            "\n{name:<15} {state:<8} {autostart:<9} {forward:<9} {bridge:<15} {}",
            addresses.join(" ")
        );
        if let Some(fault) = fault {
            text += &format!("\n{:<15} {fault}", "");
        }
    }
    text
}

fn nics_table(nics: &[NicInfo]) -> String {
    let mut text = format!(
        "{:<12} {:<17} {:<5} {:<8} {:>5} {:>12} {:>14} {:>12} {:>14} {:>8}  Wire",
        "NIC", "MAC", "Link", "State", "Pairs", "Received", "Bytes", "Sent", "Bytes", "Dropped"
    );
    for nic in nics {
        let NicInfo { id, kind, wire, mac, pairs, link, state, limits, counters, .. } = nic;
        let count = |of: fn(&NicCounters) -> u64| {
            counters.as_ref().map_or("-".into(), |counters| of(counters).to_string())
        };
        let dropped = |it: &NicCounters| {
            let of = |traffic: &TrafficInfo| traffic.drops.iter().map(|drop| drop.packets).sum::<u64>();
            of(&it.receive) + of(&it.transmit)
        };
        text += &format!(
            "\n{id:<12} {mac:<17} {link:<5} {state:<8} {pairs:>5} {:>12} {:>14} {:>12} {:>14} {:>8}  {kind} {wire}",
            count(|it| it.receive.packets),
            count(|it| it.receive.bytes),
            count(|it| it.transmit.packets),
            count(|it| it.transmit.bytes),
            count(dropped),
        );
        for limit in limits {
            text += &format!("\n{:<12} limit {} {}", "", limit.name, limit.rate);
        }
    }
    text
}

/// `domus network-leases`.
pub async fn leases(dir: Option<&Path>, args: LeasesArgs) -> anyhow::Result<()> {
    let LeasesArgs { network, json } = args;
    let leases = answer(connect(dir).await?.network_leases(&network).await)?.leases;
    print(&if json { serde_json::to_string_pretty(&leases)? } else { leases_table(&leases) })
}

fn leases_table(leases: &[LeaseInfo]) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs();
    let mut text = format!("{:<40} {:<17} {:>8}  Name", "Address", "MAC", "Seconds");
    for LeaseInfo { ip, mac, name, expires } in leases {
        let left = expires.map_or("-".into(), |at| at.saturating_sub(now).to_string());
        text += &format!("\n{ip:<40} {mac:<17} {left:>8}  {}", name.as_deref().unwrap_or("-"));
    }
    text
}

/// `domus network-set`.
pub async fn set(dir: Option<&Path>, args: SetArgs) -> anyhow::Result<()> {
    let SetArgs { name, nic, settings } = args;
    let NicSettings { link, announce, limits: NicLimits(limits) } = settings;
    if link.is_none() && !announce && limits.is_empty() {
        bail!("nothing to set: say what, such as --link down, --announce or --receive-bits 100M");
    }
    let up = link.map(|link| link == Link::Up);
    answer(connect(dir).await?.nic_set(&name, &nic, up, announce, &limits).await)
}
