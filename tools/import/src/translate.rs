//! A translation, and the rules of Domus that both readers bring a foreign config under.

use std::collections::BTreeSet;

use serde::Serialize;
use shared_abi::limits::MAX_VCPUS;
use shared_abi::{DeviceId, DomainName, MacAddress};

use crate::config::Config;
use crate::rules;

/// Upper bound of the list of what is lost: a text of [`crate::MAX_TEXT`] bytes can hold more than anybody reads.
const MAX_LOST: usize = 1000;

/// Characters of a foreign text that are quoted.
const MAX_QUOTED: usize = 100;

/// Where a config without a kernel says that it is to be put.
const NO_KERNEL: &str = "vmlinuz";

/// The policies that Domus has.
const POLICIES: [&str; 5] = ["destroy", "restart", "preserve", "coredump-destroy", "coredump-restart"];

/// A foreign config as one of Domus, and what of it has no counterpart.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// The config.
    pub config: Config,
    /// What has no counterpart, in the order of its lines.
    pub lost: Vec<Lost>,
    /// Of each disk its line, and whether its format is said there expressly.
    #[serde(skip)]
    pub(crate) formats: Vec<(u32, bool)>,
}

/// Something without a counterpart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lost {
    /// Its line, counted from 1.
    pub line: u32,
    /// What is written there, shortened.
    pub what: String,
    /// Why it is not in the config, and what to do about it.
    pub why: String,
}

impl Translation {
    /// Notes what has no counterpart.
    pub(crate) fn lose(&mut self, line: u32, what: &str, why: impl Into<String>) {
        if self.lost.len() < MAX_LOST {
            self.lost.push(Lost { line, what: quoted(what), why: why.into() });
        }
    }

    /// The domain's name. One that Domus does not have becomes one that it has.
    pub(crate) fn name(&mut self, line: u32, name: &str) {
        let own =
            |name: &str| name.parse::<DomainName>().is_ok() && name.bytes().any(|b| !b.is_ascii_digit());
        if own(name) {
            return self.config.name = name.into();
        }
        let tame = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '-' };
        let mut changed: String = name.chars().take(44).map(tame).collect();
        if !own(&changed) {
            changed.insert_str(0, "vm-");
        }
        self.lose(line, name, format!("is no name of Domus': it is {changed:?} here"));
        self.config.name = changed;
    }

    /// Its RAM, in MiB.
    pub(crate) fn memory(&mut self, mib: u64) {
        self.config.memory = format!("{mib}MiB");
    }

    /// Its vCPUs.
    pub(crate) fn vcpus(&mut self, line: u32, what: &str, count: u64) {
        let most = u64::from(MAX_VCPUS);
        if !(1..=most).contains(&count) {
            self.lose(line, what, format!("Domus has 1 to {most} vCPUs"));
        }
        self.config.vcpus = count.clamp(1, most);
    }

    /// One of its policies, as both toolstacks call them.
    pub(crate) fn policy(&mut self, line: u32, key: &str, wish: &str) {
        // What comes closest, where there is no such policy.
        let own = match wish {
            "rename-restart" | "soft-reset" => "restart",
            wish => wish,
        };
        if own != wish || !POLICIES.contains(&own) {
            let why = if POLICIES.contains(&own) {
                format!("is \"{own}\" here")
            } else {
                "there is no such policy".into()
            };
            self.lose(line, &format!("{key} = {wish}"), why);
        }
        if POLICIES.contains(&own) {
            let usual = if key == "on_reboot" { "restart" } else { "destroy" };
            let policy = (own != usual).then(|| own.to_owned());
            match key {
                "on_poweroff" => self.config.on_poweroff = policy,
                "on_reboot" => self.config.on_reboot = policy,
                _ => self.config.on_crash = policy,
            }
        }
    }

    /// A MAC address, if a NIC can have it.
    pub(crate) fn mac(&mut self, line: u32, what: &str, mac: &str) -> Option<String> {
        match mac.parse::<MacAddress>() {
            Ok(mac) => Some(mac.to_string()),
            Err(_) => {
                self.lose(
                    line,
                    what,
                    "is no unicast MAC address: the NIC gets one made from its domain's UUID",
                );
                None
            }
        }
    }

    /// A number in a range that Domus has, if it is.
    pub(crate) fn number(
        &mut self,
        line: u32,
        what: &str,
        number: &str,
        least: u64,
        most: u64,
    ) -> Option<u64> {
        match rules::number(number) {
            Some(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.lose(line, what, format!("{least} to {most} would do"));
                None
            }
        }
    }

    /// Fills in what every config has, and gives each device an id of its own.
    pub(crate) fn whole(mut self) -> Self {
        if self.config.boot.kernel.is_empty() {
            self.config.boot.kernel = NO_KERNEL.into();
            self.lose(
                1,
                "no kernel is named",
                format!(
                    "Domus has no firmware and runs no boot loader: put the guest's kernel at {NO_KERNEL} beside \
                     the config, name its initrd in boot.initrd and its command line in boot.cmdline"
                ),
            );
        }
        if self.config.name.is_empty() {
            self.name(1, "domain");
            self.lose(1, "no name is given", "it is \"domain\" here");
        }
        if self.config.memory.is_empty() {
            self.memory(512);
            self.lose(1, "no memory is given", "it is 512MiB here");
        }
        self.config.vcpus = self.config.vcpus.max(1);
        let mut taken = BTreeSet::new();
        let ids = self.config.disks.iter_mut().map(|disk| (&mut disk.id, "disk"));
        let ids = ids.chain(self.config.nets.iter_mut().map(|net| (&mut net.id, "eth")));
        for (n, (id, kind)) in ids.enumerate() {
            if id.parse::<DeviceId>().is_err() || taken.contains(id) {
                *id = (0..)
                    .map(|k| format!("{kind}{}", n + k))
                    .find(|id| !taken.contains(id))
                    .unwrap_or_default();
            }
            taken.insert(id.clone());
        }
        self.lost.sort_by_key(|lost| lost.line);
        self
    }
}

/// A foreign text as one printable line that is not too long.
pub(crate) fn quoted(text: &str) -> String {
    let mut chars = text.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut short: String = chars.by_ref().take(MAX_QUOTED).collect();
    if chars.next().is_some() {
        short.push('…');
    }
    short
}
