//! The paths of the lab's images: written by the tools that make them, read by the tests that boot them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// One of Debian's kernels, by what it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum KernelId {
    /// Debian 12's cloud kernel: virtio-pci is a module.
    #[serde(rename = "6.1-cloud")]
    V6_1Cloud,
    /// The cloud kernel of Debian 12's 6.12 line: virtio-pci is built in.
    #[serde(rename = "6.12-cloud")]
    V6_12Cloud,
    /// Debian 12's kernel for real machines.
    #[serde(rename = "6.1")]
    V6_1,
}

impl KernelId {
    /// The kernel of the lab's machine: it has nvme and virtiofs built in, and `kvm-amd`.
    pub const LAB: Self = Self::V6_12Cloud;

    /// The name as it is written in files and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::V6_1Cloud => "6.1-cloud",
            Self::V6_12Cloud => "6.12-cloud",
            Self::V6_1 => "6.1",
        }
    }
}

/// The command line in the unified kernel image.
pub const UKI_CMDLINE: &str = "console=ttyS0 quiet root=/dev/vda rw panic=-1 of=uki";

/// One kernel's files.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelFiles {
    /// The kernel as Debian ships it.
    pub vmlinuz: PathBuf,
    /// The lab's initrd for it.
    pub initrd: PathBuf,
}

/// Everything the tests boot from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Images {
    /// The kernels, with an initrd for each.
    pub kernels: BTreeMap<KernelId, KernelFiles>,
    /// ext4 image with the test guests' root file system; copied before it is written to.
    pub guest: PathBuf,
    /// The lab's kernel without its PVH note, by its compressor, and `uki`, a unified kernel image of it.
    #[serde(default)]
    pub repacked: BTreeMap<String, PathBuf>,
    /// ext4 image with a whole Debian, for the lab's machine and the demo's guest.
    pub debian: PathBuf,
}

impl Images {
    /// Reads a list written by [`Images::save`]; relative paths start at its folder.
    pub fn load(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut images: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is not a list of images", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        for files in images.kernels.values_mut() {
            files.vmlinuz = folder.join(&files.vmlinuz);
            files.initrd = folder.join(&files.initrd);
        }
        for file in images.repacked.values_mut() {
            *file = folder.join(&file);
        }
        images.guest = folder.join(&images.guest);
        images.debian = folder.join(&images.debian);
        Ok(images)
    }

    /// Writes the list to `path`.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The files of `id`; an error names the kernel when it was not made.
    pub fn kernel(&self, id: KernelId) -> Result<&KernelFiles> {
        self.kernels.get(&id).with_context(|| format!("no kernel {} among the images", id.name()))
    }
}
