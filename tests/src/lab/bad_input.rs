//! Configs that cannot work: one line that names file, place, value and cure, status 1, and nothing left behind.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::Lab;
use super::domain::{BOOT, Console, Spec};
use super::traces::Traces;
use crate::link::Link;

/// One broken config: what is changed, and the words its error must hold.
struct Case {
    name: &'static str,
    change: fn(&mut Value, &Path),
    words: &'static [&'static str],
}

const CASES: &[Case] = &[
    Case { name: "unknown-key", change: |config, _| config["vcpu"] = json!(2), words: &["vcpu"] },
    Case { name: "wrong-type", change: |config, _| config["vcpus"] = json!("two"), words: &["vcpus", "two"] },
    Case { name: "no-vcpus", change: |config, _| config["vcpus"] = json!(0), words: &["vcpus", "0", "1"] },
    Case {
        name: "too-much-memory",
        change: |config, _| config["memory"] = json!("900GiB"),
        words: &["memory", "900"],
    },
    Case {
        name: "missing-image",
        change: |config, folder| config["disks"][0]["path"] = json!(folder.join("no-such.img")),
        words: &["disks[0].path", "no-such.img"],
    },
    Case {
        name: "directory-for-a-disk",
        change: |config, folder| config["disks"][0]["path"] = json!(folder),
        words: &["disks[0].path", "directory"],
    },
    Case {
        name: "truncated-kernel",
        change: |config, folder| config["boot"]["kernel"] = json!(folder.join("truncated")),
        words: &["boot.kernel", "truncated"],
    },
    Case {
        name: "missing-bridge",
        change: |config, _| config["nets"][0]["bridge"] = json!("nobr0"),
        words: &["nets[0].bridge", "nobr0"],
    },
    Case {
        name: "busy-tap",
        change: |config, _| config["nets"][0] = json!({ "id": "eth0", "tap": "busy0" }),
        words: &["nets[0].tap", "busy0"],
    },
    Case {
        name: "name-twice",
        change: |config, _| config["name"] = json!("holder"),
        words: &["name", "holder"],
    },
];

/// Every case against a dom0 that has one domain running.
pub fn bad_input(lab: &Lab) -> Result<()> {
    let tap = Link::tap("busy0", None)?;
    let holder = Spec::new("holder", 9);
    let mut config = holder.config(lab)?;
    config["nets"][0] = json!({ "id": "eth0", "tap": tap.name() });
    let path = lab.folder().join("holder.json");
    fs::write(&path, config.to_string())?;
    lab.domus(&["create", &path.display().to_string()]).context("the domain that holds tap and name")?;
    // Its guest must have taken the memory it takes, or the cases would be blamed for it.
    let ready = Console::attach(lab, "holder").and_then(|mut console| console.guest.wait_ready(BOOT));
    let result = ready.and_then(|_| cases(lab));
    let destroyed = lab.domus(&["destroy", "holder"]);
    fs::remove_file(holder.image(lab))?;
    result?;
    destroyed.map(|_| ())
}

fn cases(lab: &Lab) -> Result<()> {
    let kernel = fs::read(&lab.images.kernel(crate::images::KernelId::V6_12Cloud)?.vmlinuz)?;
    fs::write(lab.folder().join("truncated"), &kernel[..kernel.len() / 2])?;
    let before = Traces::take()?;
    let spec = Spec::new("broken", 3);
    let good = spec.config(lab)?;
    for case in CASES {
        let mut config = good.clone();
        (case.change)(&mut config, lab.folder());
        let file = lab.folder().join("broken.json");
        fs::write(&file, serde_json::to_string_pretty(&config)?)?;
        refused(lab, &["create", &file.display().to_string()], 1, &["broken.json"], case.words)
            .context(case.name)?;
        before.wait_until_back().context(case.name)?;
    }
    fs::write(lab.folder().join("half.json"), "{ \"name\": \"half\",")?;
    let half = lab.folder().join("half.json").display().to_string();
    refused(lab, &["create", &half], 1, &["half.json"], &[]).context("half a file")?;
    refused(lab, &["create", "/no/such/file.json"], 1, &["/no/such/file.json"], &[]).context("no file")?;
    refused(lab, &["destroy", "nobody"], 1, &["nobody"], &[]).context("no domain")?;
    let usage = lab.domus_output(&["create"])?;
    if usage.status.code() != Some(2) {
        bail!("`domus create` without a file ended with {}", usage.status);
    }
    // The same config unbroken is accepted, or the cases proved nothing.
    fs::write(lab.folder().join("good.json"), good.to_string())?;
    lab.domus(&["check", &lab.folder().join("good.json").display().to_string()])
        .context("the unbroken config")?;
    fs::remove_file(spec.image(lab))?;
    before.wait_until_back()
}

/// Runs `domus` and expects one line of error with all these words.
fn refused(lab: &Lab, args: &[&str], status: i32, file: &[&str], words: &[&str]) -> Result<()> {
    let output = lab.domus_output(args)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    let text = text.trim_end();
    if output.status.code() != Some(status) {
        bail!("ended with {}, said {text:?}", output.status);
    }
    if text.lines().count() != 1 {
        bail!("said {} lines: {text:?}", text.lines().count());
    }
    for word in file.iter().chain(words) {
        if !text.contains(word) {
            bail!("does not say {word:?}: {text:?}");
        }
    }
    Ok(())
}
