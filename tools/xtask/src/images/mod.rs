//! The lab's images: made from Debian's packages when they are missing, kept by the hash of their recipes.
//!
//! An image is made under a temporary name and renamed when it is whole, so an interrupted build leaves no image that
//! looks complete. One process at a time makes images; others wait for it.

mod cpio;
mod debian;
mod guest_root;
mod initrd;
mod kernels;
mod repacked;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::hash::{DefaultHasher, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use domus_tests::images::{Images, KernelFiles, KernelId};

use crate::command::{command, run_quiet};
use crate::workspace;

/// Kernels that the tests boot.
pub const KERNELS: &[KernelId] = &[KernelId::V6_1Cloud, KernelId::V6_12Cloud];

/// Makes whatever is missing and returns where everything is.
pub fn images(ids: &[KernelId]) -> Result<Images> {
    let cache = Cache::open(workspace::images())?;
    let images = with_debian(&cache, ids)?;
    let guest_recipe = [guest_root::SOURCE, guest_root::GUEST_INIT].map(str::as_bytes);
    let guest = cache.entry("guest", ".ext4", &guest_recipe, |path| {
        let tree = Tree::new(path)?;
        guest_root::build(&tree.0, path)
    })?;
    let lab = images.kernel(KernelId::LAB)?;
    let names = [&lab.vmlinuz, &lab.initrd].map(|path| path.as_os_str().as_encoded_bytes());
    let recipe = [repacked::SOURCE.as_bytes(), names[0], names[1]];
    let folder =
        cache.entry("repacked", "", &recipe, |folder| repacked::build(&lab.vmlinuz, &lab.initrd, folder))?;
    Ok(Images { guest, repacked: repacked::files(&folder), ..images })
}

/// A kernel and Debian's root file system, without that of the test guests, whose path is empty.
pub fn debian_only(id: KernelId) -> Result<Images> {
    with_debian(&Cache::open(workspace::images())?, &[id])
}

fn with_debian(cache: &Cache, ids: &[KernelId]) -> Result<Images> {
    let mut kernels = BTreeMap::new();
    let mut lab_kernel = None;
    for id in ids {
        let kernel = kernels::kernel(cache, *id)?;
        let recipe = [initrd::SOURCE, initrd::SCRIPT, cpio::SOURCE].map(str::as_bytes);
        let kernel_path = kernel.vmlinuz.as_os_str().as_encoded_bytes();
        let recipe = [recipe.as_slice(), &[kernel_path]].concat();
        let initrd = cache.entry(&format!("initrd-{}", id.name()), ".img", &recipe, |path| {
            Ok(fs::write(path, initrd::initrd(&kernel, path)?)?)
        })?;
        kernels.insert(*id, KernelFiles { vmlinuz: kernel.vmlinuz.clone(), initrd });
        if *id == KernelId::LAB {
            lab_kernel = Some(kernel);
        }
    }
    let lab_kernel = lab_kernel.context("the outer machine's kernel must be among the kernels")?;
    let mut recipe = debian::recipe();
    recipe.push(lab_kernel.modules.as_os_str().as_encoded_bytes());
    let debian = cache.entry("debian", ".ext4", &recipe, |path| {
        let tree = Tree::new(path)?;
        debian::build(&tree.0, path, &lab_kernel)
    })?;
    Ok(Images { kernels, guest: PathBuf::new(), repacked: BTreeMap::new(), debian })
}

/// The folder of finished images.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    /// Held for as long as images are made.
    _lock: File,
}

impl Cache {
    fn open(folder: PathBuf) -> Result<Self> {
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let lock = File::create(folder.join(".lock"))?;
        lock.lock().context("cannot lock the folder of images")?;
        Ok(Self { folder, _lock: lock })
    }

    /// The file or folder `name-HASH suffix`, made by `make` when it is not there; older ones of that name are removed.
    pub fn entry(
        &self,
        name: &str,
        suffix: &str,
        recipe: &[&[u8]],
        make: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let mut hasher = DefaultHasher::new();
        for part in recipe {
            hasher.write(part);
            hasher.write_u8(0xff);
        }
        let path = self.folder.join(format!("{name}-{:016x}{suffix}", hasher.finish()));
        if path.exists() {
            return Ok(path);
        }
        self.remove_others(name, suffix)?;
        let partial = self.folder.join(format!("partial-{name}{suffix}"));
        remove(&partial)?;
        make(&partial).with_context(|| format!("cannot make the image {}", path.display()))?;
        fs::rename(&partial, &path)?;
        Ok(path)
    }

    fn remove_others(&self, name: &str, suffix: &str) -> Result<()> {
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let middle = file.strip_prefix(&format!("{name}-")).and_then(|rest| rest.strip_suffix(suffix));
            if middle
                .is_some_and(|hash| hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()))
            {
                remove(&path)?;
            }
        }
        Ok(())
    }
}

/// A folder beside an image under construction, removed when the image is made.
struct Tree(PathBuf);

impl Tree {
    fn new(image: &Path) -> Result<Self> {
        let path = image.with_extension("tree");
        remove(&path)?;
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn remove(path: &Path) -> Result<()> {
    if path.is_dir() {
        fs::remove_dir_all(path)?;
    } else if path.exists() {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// Makes an ext4 image of `size` (mke2fs' notation) that holds `tree`, without mounting anything.
fn ext4(tree: &Path, image: &Path, size: &str) -> Result<()> {
    let mut mke2fs = command("/sbin/mke2fs", ["-q", "-t", "ext4", "-F", "-E", "root_owner=0:0", "-d"]);
    run_quiet(mke2fs.arg(tree).arg(image).arg(size))
}
