//! Debian's own kernels, fetched by apt and unpacked, unmodified. The host installs nothing of them.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use domus_tests::images::KernelId;

use super::Cache;
use crate::command::{command, read, run_quiet};
use crate::packages::apt_get;

/// One unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// The kernel image as Debian ships it.
    pub vmlinuz: PathBuf,
    /// `lib/modules/<version>`, with `modules.dep`.
    pub modules: PathBuf,
}

/// The package that depends on the newest kernel of its kind.
fn meta_package(id: KernelId) -> &'static str {
    match id {
        KernelId::V6_1Cloud => "linux-image-cloud-amd64",
        KernelId::V6_12Cloud => "linux-image-6.12-cloud-amd64",
        KernelId::V6_1 => "linux-image-amd64",
    }
}

/// The kernel `id`, downloaded and unpacked when the cache does not hold it.
pub fn kernel(cache: &Cache, id: KernelId) -> Result<Kernel> {
    let package = match newest(id) {
        Ok(package) => package,
        Err(_) => {
            // A machine that was never updated knows no packages at all.
            run_quiet(&mut apt_get(&["update"]))?;
            newest(id)?
        }
    };
    let recipe = format!("v1 {package}");
    let folder = cache.entry(&format!("kernel-{}", id.name()), "", &[recipe.as_bytes()], |folder| {
        println!("Fetching {package}");
        fs::create_dir_all(folder)?;
        if download(&package, folder).is_err() {
            run_quiet(&mut apt_get(&["update"]))?;
            download(&package, folder)?;
        }
        let archive = only_entry(folder)?;
        run_quiet(command("dpkg", ["--extract"]).arg(&archive).arg(folder))?;
        fs::remove_file(archive)?;
        let version = version(folder)?;
        run_quiet(command("/usr/sbin/depmod", ["--basedir"]).arg(folder).arg(version))
    })?;
    let version = version(&folder)?;
    Ok(Kernel {
        vmlinuz: folder.join("boot").join(format!("vmlinuz-{version}")),
        modules: folder.join("lib/modules").join(version),
    })
}

/// The package, with its version, that the meta package asks for: `linux-image-6.1.0-9-cloud-amd64=6.1.27-1`.
fn newest(id: KernelId) -> Result<String> {
    let meta = meta_package(id);
    let text = read(&mut command("apt-cache", ["show", "--no-all-versions", meta]))?;
    let depends = text.lines().find_map(|line| line.strip_prefix("Depends: ")).context("no Depends line");
    let depends = depends.with_context(|| format!("apt knows no {meta}"))?;
    let (name, rest) =
        depends.split_once(" (= ").with_context(|| format!("{meta} depends on {depends:?}"))?;
    let (version, _) = rest.split_once(')').with_context(|| format!("{meta} depends on {depends:?}"))?;
    Ok(format!("{name}={version}"))
}

fn download(package: &str, folder: &Path) -> Result<()> {
    let mut apt = command("apt-get", ["download", "-o", "APT::Sandbox::User=root", package]);
    run_quiet(apt.current_dir(folder).env("LC_ALL", "C"))
}

fn version(folder: &Path) -> Result<String> {
    let modules = only_entry(&folder.join("lib/modules"))?;
    Ok(modules.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

fn only_entry(folder: &Path) -> Result<PathBuf> {
    let mut entries = fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let first = entries.next().with_context(|| format!("{} is empty", folder.display()))??;
    Ok(first.path())
}
