//! The host's side of the guests' network: bridges and taps, made with `ip` and removed on drop.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A network interface of this test's own.
#[derive(Debug)]
pub struct Link(String);

impl Link {
    /// A bridge that is up, with an address of a 24-bit prefix.
    pub fn bridge(name: &str, address: Ipv4Addr) -> Result<Self> {
        ip(&format!("link add {name} type bridge"))?;
        let link = Self(name.to_owned());
        ip(&format!("addr add {address}/24 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        Ok(link)
    }

    /// A persistent tap with virtio-net headers, up, on `bridge` if one is named.
    pub fn tap(name: &str, bridge: Option<&Link>) -> Result<Self> {
        ip(&format!("tuntap add dev {name} mode tap vnet_hdr"))?;
        let link = Self(name.to_owned());
        if let Some(bridge) = bridge {
            ip(&format!("link set {name} master {}", bridge.0))?;
        }
        ip(&format!("link set {name} up"))?;
        Ok(link)
    }

    /// One that is there already, and is to be removed.
    pub fn existing(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = ip(&format!("link del {}", self.0));
    }
}

/// Runs `ip` with these words.
pub fn ip(words: &str) -> Result<()> {
    let output =
        Command::new("ip").args(words.split(' ')).output().context("cannot start ip: install iproute2")?;
    if !output.status.success() {
        bail!("ip {words}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}
